"""What each case of odd input is to give, written from what is right and not from the code.

The cases start from one archive (40 images of 25 patients, 64 px, masks apart) and change one
thing each. Row numbers are line numbers of the changed file, the header being row 1.
"""

import re
from dataclasses import dataclass
from importlib.util import find_spec

OK, REMARK, REFUSED = "ok", "remark", "refused"
TABLE = r"Data_Entry_2017_v2020\.csv"
FIRST = r"00000001_000"  # the image that the image cases replace
# Advice that sends a user the wrong way, where the cause is another.
COPY, COMPLETE = r"(?i)copy the file again", r"(?i)complete the archive"


@dataclass(frozen=True)
class Expected:
    """What one case may end in, and what must then be said and be true.

    outcomes: of "ok" (read without a word), "remark" (read, and something said) and "refused"
    (exit code 2). says: patterns, each of which must be found in the message, or in the remarks
    where "ok" is not allowed; CASE stands for the name of the case's folder. never: patterns
    that must not be found. one_cause: the refusal is one message.

    images, patients, masks: how many of each are in the result, if it is read; the images of one
    person have one patient there unless `persons` is False. pixels: what the first image looks
    like: "same" (as before the change), "inverse", or "" for unknown; or_word: a remark that
    names it will do instead. drops: whether the reader leaves out what it refused, when asked to
    leave out what is bad. plan: the file of ../shared/cases/plans to go with it.
    """

    outcomes: frozenset[str]
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    one_cause: bool = False
    images: tuple[int, ...] = (40,)
    patients: tuple[int, ...] = (25,)
    masks: int = 0
    persons: bool = True
    pixels: str = ""
    or_word: bool = False
    drops: bool = True
    plan: str = "tiny.yaml"


def read(**more: object) -> Expected:
    """Read; a remark is allowed, and nothing has to be said."""
    return _expected({OK, REMARK}, (), more)


def read_or_refused(*says: str, **more: object) -> Expected:
    """Read, or refused with these words."""
    return _expected({OK, REMARK, REFUSED}, says, more)


def remarked(*says: str, **more: object) -> Expected:
    """Read, and these words are said."""
    return _expected({REMARK}, says, more)


def said(*says: str, **more: object) -> Expected:
    """Read or refused, and these words are said in either case."""
    return _expected({REMARK, REFUSED}, says, more)


def refused(*says: str, **more: object) -> Expected:
    """Refused, with these words."""
    return _expected({REFUSED}, says, more)


def _expected(outcomes: set[str], says: tuple[str, ...], more: dict[str, object]) -> Expected:
    for pattern in says:
        re.compile(pattern)
    return Expected(frozenset(outcomes), says, **more)  # type: ignore[arg-type]


def _image(suffix: str = r"\.png") -> str:
    return FIRST + suffix


TABLES = {
    # Other separators and encodings: read, or one message that names the cause.
    "t-semicolon": read_or_refused(TABLE, r"(?i)semicolon|';'", one_cause=True),
    "t-semicolon-bom-crlf": read_or_refused(TABLE, r"(?i)semicolon|';'", one_cause=True),
    "t-tab": read_or_refused(TABLE, r"(?i)\btabs?\b|\\t", one_cause=True),
    "t-bom-crlf": read(),
    "t-utf16": read_or_refused(TABLE, r"UTF-?16", r"UTF-8", one_cause=True),
    "t-latin1": refused(TABLE, r"row 2\b", r"UTF-8|No Finding\\?\S"),
    # Columns.
    "t-pandas-index": read(),
    "t-kaggle-unnamed11": read(),
    "t-extra-column": said(TABLE, r"\bpath\b", r"\bfold\b"),
    "t-header-lower": read_or_refused(TABLE, r"(?i)image index"),
    "t-header-space": read(),
    # Numbers.
    "t-float-ids": read(),
    "t-float-follow-age": read_or_refused(TABLE, r"row 2\b", r"Follow-up", r"0\.0"),
    "t-thousands": refused(TABLE, r"row 2\b", r"Patient ID", r"1,001"),
    "t-age-414": said(TABLE, r"(?i)\bage", r"\b1\b|row 4\b", r"120|414"),
    "t-age-negative": refused(TABLE, r"row 4\b", r"Patient Age", r"-3"),
    "t-age-nan": said(TABLE, r"row 4\b|\b1\b", r"(?i)\bage", r"nan|unknown|blank"),
    "t-age-decimal-comma": said(TABLE, r"row 4\b|\b1\b", r"(?i)\bage", r"58,5"),
    # Labels.
    "t-label-lower": read_or_refused(TABLE, r"row 2\b", r"no finding"),
    "t-label-no-findings": read_or_refused(TABLE, r"row 2\b", r"No Findings", r"No Finding\b"),
    "t-label-spaces": read(),
    "t-label-trailing-bar": read_or_refused(TABLE, r"row 3\b", r"Pneumonia\|'"),
    "t-label-comma-joined": read_or_refused(
        TABLE, r"row 3\b", r"Atelectasis,Cardiomegaly", r"joined by \|"
    ),
    "t-label-combined": refused(TABLE, r"row 5\b", r"No Finding\|Edema"),
    "t-label-plt": read_or_refused(TABLE, r"row 22\b", r"Pleural Thickening"),
    # Sex and view.
    "t-view-lateral": refused(TABLE, r"row 5\b", r"View Position", r"\bLL\b", r"\bPA, AP\b"),
    "t-view-missing": read(),
    "t-sex-lower": read_or_refused(TABLE, r"row 2\b", r"Patient (Sex|Gender)", r"'m'"),
    "t-sex-words": read_or_refused(TABLE, r"row 2\b", r"Patient (Sex|Gender)", r"'Male'"),
    # Names of images.
    "t-image-winpath": read_or_refused(r"images_001\\{1,2}images\\{1,2}00000001_000\.png"),
    "t-image-posixpath": read_or_refused(r"images_001/images/00000001_000\.png"),
    "t-image-upper": read(),
    "t-image-spaces": read(),
    "t-image-noext": read(),
    "t-dup-row": refused(TABLE, r"row 7\b", r"00000003_000\.png"),
    # Quotes: the row where the quote opens, and no row that it swallowed.
    "t-open-quote": refused(TABLE, r"row 7\b", r"(?i)quot", one_cause=True, never=(r"row 41\b",)),
    "t-quoted-newline": read_or_refused(TABLE, r"row 6\b"),
    # Nothing, or something else, in the place of the table.
    "t-header-only": refused(TABLE, r"(?i)\b(no|0|without) (\w+ )?rows?\b|empty"),
    "t-empty": refused(TABLE, r"(?i)empty", one_cause=True),
    "t-lfs-pointer": refused(TABLE, r"(?i)\blfs\b", one_cause=True),
    "t-html": refused(TABLE, r"(?i)html|web page", one_cause=True),
    "t-gz-not-gz": read_or_refused(TABLE + r"\.gz", r"(?i)gzip", one_cause=True),
    "t-gz-truncated": refused(
        TABLE + r"\.gz", r"(?i)truncat|cut off|ends? (too )?early|incomplete", one_cause=True
    ),
    "t-name-1": read_or_refused(r"(?i)no label table", TABLE),
    "t-name-lower": read_or_refused(r"(?i)no label table", TABLE),
    "t-xlsx": refused(r"(?i)no label table", TABLE),
    "t-xlsx-renamed": refused(
        TABLE, r"(?i)excel|xlsx|zip|no text|not (a )?text|binary|UTF-8", one_cause=True
    ),
    "t-dangling-link": refused(TABLE, r"(?i)link|no such file|no label table", one_cause=True),
    "t-table-is-folder": refused(TABLE, r"(?i)folder|directory|no label table", one_cause=True),
}  # fmt: skip

TRAIN, TEST = r"train_val_list\.txt", r"test_list\.txt"
GROUPS, BOXES = r"hospitals\.csv", r"BBox_List_2017\.csv"
HOSPITALS = "tiny-h.yaml"

LISTS = {
    "l-utf16-powershell": read_or_refused(TRAIN, r"UTF-?16", r"UTF-8", one_cause=True),
    "l-paths": read_or_refused(TRAIN, r"images_001/images/00000002_000\.png", never=(COMPLETE,)),
    "l-header": read_or_refused(TRAIN, r"Image Index", never=(COMPLETE,)),
    "l-csv": read_or_refused(TRAIN, r"00000002_000(\.png)?,train", never=(COMPLETE,)),
    "l-quoted": read_or_refused(TRAIN, r"\"00000002_000\.png", never=(COMPLETE,)),
    "l-trailing-space-cr": read(),
    "l-empty-test": said(TEST, r"(?i)empty|\b(no|0) (images?|names?|lines?)\b"),
    "l-twice": refused(TRAIN, r"line 33\b", r"00000002_000\.png", r"line 1\b"),
    "l-both": refused(r"patient '?1'?\b", r"(?i)split|list"),
    "l-only-test": read(),
    "l-only-train": read(),
    "l-none": read(),
}

GIVEN = {
    "h-semicolon": read_or_refused(GROUPS, r"(?i)semicolon|';'", one_cause=True, plan=HOSPITALS),
    "h-space-name": read_or_refused(GROUPS, r"row 2\b", r"St Mary's", plan=HOSPITALS),
    "h-umlaut": read_or_refused(GROUPS, r"row 2\b", r"Köln", plan=HOSPITALS),
    "h-two-hospitals": refused(
        GROUPS, r"row 27\b", r"patient '?1'?\b", r"hospital-1", r"hospital-2", plan=HOSPITALS
    ),
    "h-missing-patient": refused(
        r"hospital", r"\b2 patients\b", r"\b24\b", r"\b25\b", plan=HOSPITALS
    ),
    "h-pooled": refused(GROUPS, r"'pooled'", plan=HOSPITALS),
    # One hospital spelt in two ways, or two whose folders a Mac or Windows cannot tell apart.
    "h-case": said(
        r"\bHospital\b.{1,60}\bhospital\b(?!-)|\bhospital\b(?!-).{1,60}\bHospital\b",
        plan=HOSPITALS,
        never=(r"sites to 3",),
    ),
    "h-float": read(plan=HOSPITALS),
}

OUTLINES = {
    "b-semicolon": read_or_refused(BOXES, r"(?i)semicolon|';'", one_cause=True),
    "b-index": read_or_refused(BOXES, one_cause=True),
    "b-pandas-header": read(),
    "b-other-image": read(),
    "b-long-row": read_or_refused(
        BOXES, r"(row|line) 42\b", one_cause=True, never=(r"UTF-8", COPY)
    ),
    "b-open-quote": refused(BOXES, r"(row|line) 42\b", r"(?i)quot", one_cause=True),
}

PATIENTS = {
    "p-mixed-1-and-1.0": read(),
    # Every row contradicts its file's name: the count, and the first of them.
    "p-shifted-column": said(
        TABLE, r"row 2\b|00000001_000\.png", r"\b40\b|and 20 more", persons=False
    ),
    "p-scientific": refused(TABLE, r"row 9\b", r"Patient ID", r"1\.1E\+05"),
    "p-float-ids-and-unlabelled": remarked(r"\b20 images\b", r"0000000\d_00\d\.png"),
    "p-blank-ids": said(TABLE, r"row 2\b|\b40\b", r"Patient ID"),
    "p-duplicate-pixels": said(
        r"(?i)identical|same|equal", r"\b40\b|\b39\b", r"\b25 patients\b", r"0000\d+_00\d\.png"
    ),
}

SITES = {
    "s-all-normal": read(),
    "s-zero-labels": refused(r"(?i)\blabel"),
    "s-one-patient-site": refused(r"'a'", r"\b1 patient|\b0 patients", plan=HOSPITALS),
    "s-zero-label-site": said(r"(?i)label", r": a\b|'a'", plan=HOSPITALS),
    "s-single-class-site": read(plan=HOSPITALS),
}

FOLDERS = {
    "f-mac-files": read(),
    "f-images-images": read(),
    "f-zip-double": read(),
    "f-flat": read(),
    # A picture in images/ beside forty that lie with the table; the same picture as one of them.
    "f-flat-plus-docs-images": said(r"logo\.png", images=(40, 41), patients=(25, 26)),
    "f-train-test-folders": read_or_refused(r"(/|in )train\b(?!_)"),
    "f-upper-Images": read_or_refused(r"(/|in )Images\b"),
    "f-images-dash": read_or_refused(r"images-001"),
    "f-images-001-space": read_or_refused(r"images_001 \(1\)"),
    "f-unextracted-zip": refused(r"images_001\.zip", r"(?i)unpack|extract|unzip"),
    "f-kaggle-archive-parent": read_or_refused(r"CASE/archive\b"),
    "f-kaggle-sample": read(),
    "f-dup-stem-jpg-png": refused(_image(), _image(r"\.jpg")),
    "f-dup-two-folders": said(r"images_001/images", r"images_002/images", _image()),
    "f-windows-copy": remarked(
        r"\b3\b", r"00000001_000 \(1\)\.png", r"00000002_000 - (Copy|Kopie)\.png", images=(40, 43)
    ),
    "f-links": read(),
    "f-links-target": refused(r"(?i)no label table", TABLE),
    "f-names-latin1": refused(r"00000001_00(\\x|%|\\udc)[eE]9", one_cause=True),
    # A picture of patient 1, who tests, once more under a name of its own.
    "f-names-newline": said(r"new(\\n|\\x0a)line\.png", images=(40, 41), patients=(25, 26)),
    "f-names-umlaut": said(
        r"Müller_肺_🫁\.png", r"(?i)identical|same|equal", images=(40, 41), patients=(25, 26)
    ),
    "f-names-nfd": read_or_refused(r"(?i)decomposed|composed|NFC|NFD|normali[sz]|accent|unicode"),
    "f-empty-images": refused(r"images_001/images", r"\b40 rows\b|no image"),
}

SAME = {"pixels": "same"}
IMAGES = {
    "i-rgba": read(**SAME),
    "i-palette": read(**SAME),
    "i-1bit": read_or_refused(_image()),
    "i-la": read(**SAME),
    "i-16bit-full": read(**SAME),
    "i-16bit-12bit": read(**SAME, or_word=True),
    "i-cmyk-jpeg": read_or_refused(_image(r"\.jpg"), r"CMYK", **SAME),
    "i-progressive-jpeg": read(**SAME),
    "i-webp-as-png": read_or_refused(_image(), r"(?i)webp", **SAME),
    "i-bmp-as-png": read_or_refused(_image(), r"(?i)bmp|bitmap", **SAME),
    "i-gif-as-png": read_or_refused(_image(), r"\bGIF\b", **SAME),
    "i-tiff-as-png": read_or_refused(_image(), r"\bTIFF\b", **SAME),
    "i-tif": read_or_refused(_image(r"\.tif\b"), r"\.png\b", r"\.dcm\b", **SAME),
    "i-bmp": read_or_refused(_image(r"\.bmp\b"), r"\.png\b", r"\.dcm\b", **SAME),
    "i-jpeg-as-png": read(**SAME),
    "i-png-upper": read(**SAME),
    "i-truncated": refused(_image()),
    "i-truncated-tail": read_or_refused(_image(), **SAME),
    "i-zero": refused(_image(), r"(?i)empty"),
    "i-html": refused(_image(), r"(?i)html|web page|not an image"),
    "i-lfs": refused(_image(), r"(?i)\blfs\b|not an image"),
    "i-bomb-20000": refused(_image(), r"20,?000|400,?000,?000|(?i:pixels)"),
    "i-9500-warn": said(FIRST),  # ninety-two million black pixels
    "i-1x1": said(FIRST),
    "i-strip-1x9000": said(FIRST),
    "i-black": said(FIRST),
    "i-gamma": read(),
    "i-ztxt-bomb": read_or_refused(_image(), **SAME),
    "i-bad-crc": refused(_image()),
    "i-iccp-bad": read_or_refused(_image(), **SAME),
    "i-inverted-16": read(pixels="inverse"),
    "i-exif-rotated": read(**SAME, or_word=True),
    "i-interlaced": read(**SAME),
    "i-2bit": read(**SAME),
    "i-folder-named-png": refused(_image(), r"(?i)folder|directory|not a file"),
    "i-dangling-link": refused(_image(), r"(?i)link|no such file|without an image"),
}

DCM = r"\.dcm"
# Streams of zeros. Without a decoder they are not damaged, and not dropped; with one they are.
DECODER = find_spec("gdcm") is not None
UNDECODED = {"drops": DECODER, "never": () if DECODER else (COPY, r"(?i)damaged")}
DICOM = {
    "d-mono2": read(**SAME),
    "d-mono1": read(**SAME),
    "d-multiframe": refused(_image(DCM), r"\b2 frame"),
    "d-ext-dicom": read(**SAME),
    "d-ext-DCM": read(**SAME),
    "d-noext": read(**SAME),
    "d-as-png": read(**SAME),
    "d-rle": read(**SAME),
    "d-jpeg2000": read(**SAME),
    "d-jpeg2000-16": read(**SAME),
    "d-jpegls": refused(_image(DCM), r"(?i)jpeg-?\s?ls", **UNDECODED),
    "d-jpeg-lossless": refused(_image(DCM), r"(?i)jpeg,? lossless", **UNDECODED),
    "d-jpeg-baseline": read(**SAME),
    "d-deflated": read(**SAME),
    "d-no-preamble": read_or_refused(_image(DCM), r"DICOM", **SAME),
    "d-no-meta": read_or_refused(_image(DCM), r"DICOM", **SAME),
    "d-no-pixels": refused(_image(DCM), r"(?i)pixel"),
    "d-short-pixels": said(FIRST),
    "d-rgb": read_or_refused(_image(DCM), r"\bRGB\b", **SAME),
    "d-empty-window": read(**SAME),
    "d-two-windows": read(**SAME),
    "d-zero-window": read_or_refused(_image(DCM), r"(?i)window", **SAME),
    "d-constant": said(FIRST),
    "d-lateral": said(FIRST, r"\bCT\b|\bHAND\b|\bLL\b"),
    "d-bits-overlay": read(**SAME),
    "d-signed": read(**SAME),
}

# Leaving out every mask leaves a folder of masks that gives nothing: refused as well.
M = {"masks": 40, "drops": False}
SOME = (r"(?i)mask", r"\b40\b|and 20 more|0000\d+_00\d\.png")
MASKS = {
    "m-01": read(**M),
    "m-rgb": read(**M),
    "m-1bit": read(**M),
    "m-soft": said(*SOME, r"(?i)value|grey level", **M),
    "m-jpeg": said(*SOME, r"(?i)value|grey level", **M),
    "m-other-size": refused(*SOME, r"32 x 32", r"64 x 64", **M),
    "m-16bit-01": read(**M),
    "m-16bit-0-255": read(**M),
    "m-16bit-0-65535": read(**M),
    "m-empty": said(*SOME, **M),
    "m-full": said(*SOME, **M),
    "m-inverted": said(*SOME, **M),
    "m-named-_mask": read_or_refused(
        *SOME, r"_mask", r"(?i)name", never=(r"(?i)add the images",), **M
    ),
    "m-gif": read_or_refused(*SOME, r"\.gif", **M),
    "m-left-right-012": said(*SOME, r"0, 1, 2", **M),
    "m-palette-voc": read_or_refused(*SOME, r"(?i)palette|colour", never=(r"\b38\b",), **M),
    "m-alpha-holds-mask": said(*SOME, **M),
}  # fmt: skip

CASES: dict[str, Expected] = {
    **TABLES, **LISTS, **GIVEN, **OUTLINES, **PATIENTS, **SITES,
    **FOLDERS, **IMAGES, **DICOM, **MASKS,
}  # fmt: skip

# The same for plans, on the archive from which the cases are made.
PLANS: dict[str, Expected] = {
    "tiny.yaml": read(masks=40),
    "tiny-h.yaml": read(masks=40),
    "dup-key.yaml": refused(r"dup-key\.yaml", r"seed", r"line 2\b", r"line 3\b", one_cause=True),
    # A batch above the patients of a hospital, so that every step takes all of them.
    "dp-bigbatch.yaml": said(r"batch", r"\b500\b", masks=40),
    "dp-emptybatch.yaml": read_or_refused(r"batch", masks=40),
    "dp-eps-tiny.yaml": refused(r"epsilon", r"1e-0?9|1\.0e-0?9|0\.000000001"),
}
