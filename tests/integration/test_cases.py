"""Odd input as people met it: all cases of ../shared/cases, each with what it is to give.

The generators beside the checkout make the cases from a phantom archive; `case_table.py` says
what is right. Every case is cut into hospitals as a user would (`consilium-sim partition`), and
what that accepts is decoded. Nothing may end in a traceback, and nothing may be lost unsaid.
"""

import hashlib
import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from client.data.cache import Cache, build_cache
from client.data.nih import Archive
from common.errors import InputError
from common.plan import Plan
from simulations.experiment import preflight
from simulations.experiment.folder import Request
from simulations.experiment.survey import Survey
from tests import programs
from tests.integration.case_table import CASES, FIRST, OK, PLANS, REFUSED, REMARK, Expected

pytestmark = pytest.mark.slow
GENERATORS = ("make_tables.py", "make_images.py", "make_folders.py")
TABLES = ("b-", "h-", "l-", "s-", "t-")  # cases whose pixels are those of every other case
SIZE = 32  # pixels per side of what is decoded
PROBLEM = re.compile(r"(?:error: )?(?P<where>.+?): found .+; allowed: .+\. \S.*")
MORE = re.compile(r"\.\.\. and [\d,]+ more of this kind")
# Newlines part the lines; nothing else that moves a terminal's cursor may be printed.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")
PERSON = r"^(\d{8})_"  # of an image's name: the number of its patient
PICTURES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".gif", ".webp")
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
# What a user's interpreter does not show.
HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


@dataclass(frozen=True)
class Folders:
    """base: the archive that all cases come from. out: one folder a case. plans: their plans."""

    base: Path
    out: Path
    plans: Path


@dataclass
class Tried:
    """How a case ended. printed: by `partition`; said: printed, and the reader's words; error:
    what refused it, "" if nothing did; warned: warnings of libraries that a user would see."""

    code: int
    printed: str
    said: str
    error: str
    warned: list[str] = field(default_factory=list)
    found: Survey | None = None
    cache: Cache | None = None

    @property
    def archive(self) -> Archive:
        assert self.found is not None
        return self.found.sources.archive

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is remarkable about the input itself, and not about what a plan makes of it."""
        of_cache = self.cache.remarks if self.cache is not None else ()
        return (*self.archive.remarks, *of_cache)

    @property
    def outcome(self) -> str:
        return REFUSED if self.code == 2 else REMARK if self.remarks else OK


@pytest.fixture(scope="session")
def folders(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """All cases, made by their generators from a phantom of this product."""
    generators = shared_dir / "cases"
    if not generators.is_dir():
        pytest.skip("the folder ../shared/cases (odd input) is not beside this checkout")
    work = tmp_path_factory.mktemp("cases")
    base, out = work / "base", work / "out"
    made = typed("phantom", base, "--images", 40, "--size", 64, "--hospitals", 2)
    assert made.code == 0, made.printed
    for name in GENERATORS:
        ended = subprocess.run(
            [sys.executable, "-B", str(generators / name), str(base), str(out)],
            cwd=work, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    return Folders(base, out, generators / "plans")


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """A terminal in which no table is cut, and to which no library writes behind Python's back."""
    monkeypatch.setenv("COLUMNS", "240")
    yield
    behind = capfd.readouterr()
    assert not behind.out + behind.err, "a library writes to the terminal by itself"


def typed(*words: object) -> Tried:
    """`consilium-sim` with these words; its survey of the data is kept."""
    found, survey = [], preflight.survey

    def kept(plan: Plan, request: Request) -> Survey:
        found.append(survey(plan, request))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        patch.setattr(preflight, "survey", kept)
        ended = programs.typed("consilium-sim", *words)
    surveyed = found[0] if ended.code == 0 and found else None
    said = ended.out + ended.err
    return Tried(ended.code, said, said, ended.err, _shown(warned), surveyed)


def _shown(warned: list[warnings.WarningMessage]) -> list[str]:
    return [str(each.message) for each in warned if not issubclass(each.category, HIDDEN)]


def tried(case: Path, plan: Path, work: Path, skip_bad: bool = False) -> Tried:
    """Cut a case into hospitals, and decode what is accepted into work/, if pixels matter."""
    before = _listing(case)
    ended = typed("partition", plan, "--data", case, *["--skip-bad"] * skip_bad)
    if ended.code == 0 and not case.name.startswith(TABLES):
        _decode(ended, work / "cache", skip_bad)
    assert _listing(case) == before, "the archive was written to"
    return ended


def _decode(ended: Tried, folder: Path, skip_bad: bool) -> None:
    """Build the cache of what was accepted; note how that ended."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            ended.cache = build_cache(ended.archive, folder, SIZE, workers=1, skip_bad=skip_bad)
            ended.said += "\n".join(ended.cache.remarks)
        except InputError as refusal:
            ended.error = f"error: {refusal}"
            ended.code, ended.said = refusal.exit_code, ended.said + ended.error
        except Exception:
            ended.code, ended.said = 1, ended.said + traceback.format_exc()
    ended.warned += _shown(warned)


def _listing(folder: Path) -> list[bytes]:
    """Every name in a folder, as bytes: some are no text."""
    return sorted(
        os.path.join(top, name)  # noqa: PTH118
        for top, inner, names in os.walk(os.fsencode(folder))
        for name in (*inner, *names)
    )


# ---- What holds for every case, whether the table knows it or not.


def check_ending(ended: Tried, case: Path, plan: Path) -> None:
    """No traceback, an honest exit code, readable words, messages with all their parts."""
    assert not re.search("Traceback|fault of the program", ended.said), ended.said
    assert ended.code in (0, 2), ended.said
    assert not ended.warned, f"warnings of libraries reach the user: {ended.warned}"
    control = CONTROL.search(ended.said.replace("\n", ""))
    assert not control, f"{control!r} in {ended.said!r}"
    if ended.code == 0:
        return
    jargon = re.search(r"codec can't|C error|Errno|NoneType|has no attribute", ended.error)
    assert not jargon, f"a library's words: {ended.error}"
    lines = [line for line in ended.error.splitlines() if not MORE.fullmatch(line)]
    assert lines, "refused without a word"
    for line in lines:
        parts = PROBLEM.fullmatch(line)
        assert parts, f"not 'FILE: AT: found X; allowed: Y. NEXT': {line}"
        places = (str(case), str(plan), plan.name, "key '")
        assert any(place in parts["where"] for place in places), f"names no file or key: {line}"


def check_remarks(ended: Tried) -> None:
    """Each remark on the tables is printed once by the command."""
    assert ended.found is not None
    printed = "".join(ended.printed.split())
    for remark in ended.found.remarks:
        times = printed.count("".join(remark.split()))
        assert times == 1, f"{times} times in the output: {remark}\n{ended.printed}"


def check_nothing_lost(ended: Tried, case: Path) -> None:
    """Every picture and mask of the case is in the result, or is said not to be."""
    table = ended.archive.table
    assert table["image"].is_unique
    used = {_digest(Path(path)) for path in table["path"]}
    lost = [path.name for path in _pictures(case) if _digest(path) not in used]
    assert _named(lost, ended.said), f"lost without a word: {lost}\n{ended.said}"
    folder = case / "masks"
    masks = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    unused = sorted(set(masks) - {Path(path).name for path in table["mask"] if path})
    assert _named(unused, ended.said), f"masks lost without a word: {unused}\n{ended.said}"
    if ended.cache is not None:
        index, bad = ended.cache.index, set(ended.cache.skipped["image"])
        assert set(index["image"]) == set(table["image"]) - bad
        outlined = set(index.loc[index["mask_row"] >= 0, "image"])
        assert outlined == set(table.loc[table["mask"].ne(""), "image"]) - bad


def _named(names: list[str], said: str) -> bool:
    """Whether a text names these, or says how many they are and names one."""
    count = re.search(rf"\b{len(names)}\b", said) and any(name in said for name in names)
    return bool(count) or all(name in said for name in names)


def _pictures(case: Path) -> Iterator[Path]:
    """Files that hold or claim to hold a picture, besides the masks and a Mac's own files."""
    for top, folders, names in os.walk(case, followlinks=True):
        folders[:] = [name for name in folders if name not in ("masks", "__MACOSX")]
        for path in (Path(top) / name for name in names):
            if not path.is_file() or path.name.startswith("."):
                continue
            with path.open("rb") as file:
                start = file.read(132)
            known = start.startswith(MAGIC) or start[128:] == b"DICM"
            if known or path.suffix.lower() in PICTURES:
                yield path


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes()).digest()


def check_people(ended: Tried, persons: bool) -> None:
    """Nobody is two patients, lies in two hospitals, or on two sides of a split."""
    assert ended.found is not None
    parts = ended.found.cut.parts
    sides = [rows.assign(side=name + rows["split"]) for name, rows in parts.sites.items()]
    sides += [parts.test.assign(side="test"), parts.left_out.assign(side="left out")]
    where = pd.concat([rows[["image", "patient", "side"]] for rows in sides])
    table = ended.archive.table
    assert sorted(where["image"]) == sorted(table["image"]), "images lost on the way to hospitals"
    assert where.groupby("patient")["side"].nunique().max() == 1, where
    if persons:
        number = where["image"].str.extract(PERSON, expand=False)
        known = where[number.notna()].assign(number=number.dropna().astype(int).astype(str))
        assert known["patient"].eq(known["number"]).all(), known[
            known["patient"] != known["number"]
        ]
    shown = next(line for line in ended.printed.splitlines() if re.search(r"\bimages\b.*\d", line))
    told = sum(int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", shown))
    assert told + len(parts.left_out) == len(table), f"the printed table says {told} images"


def check_always(ended: Tried, case: Path, plan: Path, persons: bool = True) -> None:
    check_ending(ended, case, plan)
    if ended.found is not None:
        check_remarks(ended)
        check_people(ended, persons)
        check_nothing_lost(ended, case)


# ---- What the table asks of one case.


def check_expected(ended: Tried, expected: Expected, folders: Folders, name: str) -> None:
    said = ended.error if ended.code == 2 else ended.said
    said = said.replace(str(folders.out / name), "CASE")
    outcome = ended.outcome
    if outcome == OK and OK not in expected.outcomes:
        outcome = REMARK  # of the plan's hospitals: the words below decide
    assert outcome in expected.outcomes, f"{outcome}, not {set(expected.outcomes)}: {said}"
    if outcome == REFUSED or OK not in expected.outcomes:
        assert outcome == REFUSED or ended.found is not None
        words = said if outcome == REFUSED else "\n".join((*ended.found.remarks, *ended.remarks))  # type: ignore[union-attr]
        words = words.replace(str(folders.out / name), "CASE")
        missing = [pattern for pattern in expected.says if not re.search(pattern, words)]
        assert not missing, f"{outcome}, without {missing}: {words}"
    for pattern in expected.never:
        assert not re.search(pattern, said), f"{pattern} in {said}"
    if outcome == REFUSED:
        one = len(said.strip().splitlines()) == 1
        assert one or not expected.one_cause, f"many messages of one cause: {said}"
        return
    table = ended.archive.table
    assert len(table) in expected.images, f"{len(table)} images"
    assert table["patient"].nunique() in expected.patients, sorted(table["patient"].unique())
    assert int(table["mask"].ne("").sum()) == expected.masks
    if ended.cache is None:
        return
    named = outcome == REMARK and FIRST in said
    if expected.pixels and not (expected.or_word and named):
        check_pixels(ended.cache, folders.base, expected.pixels == "inverse")
    if expected.masks and outcome == OK:
        check_masks(ended.cache, folders.base)


def check_pixels(cache: Cache, base: Path, inverse: bool) -> None:
    """The first image is the picture that it was made from: same shapes, same contrast."""
    row = cache.index.loc[cache.index["image"].str.startswith(FIRST), "row"].iloc[0]
    seen = cache.images[row].astype(float)
    original = _small(base / "images_001/images" / f"{FIRST}.png")
    likeness = np.corrcoef(seen.ravel(), original.ravel())[0, 1] * (-1 if inverse else 1)
    assert likeness > 0.95, f"not the picture that it was: correlation {likeness:.2f}"
    contrast = seen.std() / original.std()
    assert 0.8 < contrast < 1.6, f"contrast changed by {contrast:.2f}"


def check_masks(cache: Cache, base: Path) -> None:
    """The masks are those that the case was made from."""
    for image, place in cache.index.loc[cache.index["mask_row"] >= 0, ["image", "mask_row"]].values:
        seen, original = cache.masks[place] > 0, _small(base / "masks" / image) >= 128
        overlap = (seen & original).sum() / (seen | original).sum()
        assert overlap > 0.9, f"mask of {image}: overlap {overlap:.2f}"


def _small(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        small = picture.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small, dtype=float)


def check_skipping(ended: Tried, expected: Expected, work: Path) -> None:
    """What the reader refuses can be left out, by name, or is refused again."""
    again = Tried(0, "", "", "", found=ended.found)
    _decode(again, work / "skipping", skip_bad=True)
    if not expected.drops:
        assert again.code == 2, "left out, although it must not be"
        check_advice(again)
        return
    assert again.cache is not None, again.said
    table, index = ended.archive.table, again.cache.index
    images = len(table) - len(index)
    masks = int(table["mask"].ne("").sum() - (index["mask_row"] >= 0).sum())
    assert max(images, masks) == len(again.cache.skipped) > 0


def check_advice(ended: Tried) -> None:
    """Who has asked to leave out what is bad is not told to ask for it."""
    advice = re.search(r"leave \w+ out with --skip-bad", ended.error)
    assert not advice, f"refused under --skip-bad, which it names as the way out: {ended.error}"


# ---- The tests.


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_case_gives_what_is_right(name: str, folders: Folders, tmp_path: Path) -> None:
    case, expected = folders.out / name, CASES[name]
    assert case.is_dir(), "the generators make no such case"
    plan = folders.plans / expected.plan
    ended = tried(case, plan, tmp_path)
    check_always(ended, case, plan, expected.persons)
    check_expected(ended, expected, folders, name)
    if ended.code == 2 and ended.found is not None:
        check_skipping(ended, expected, tmp_path)
    elif ended.code == 2:
        leaving_out = tried(case, plan, tmp_path / "skipping", skip_bad=True)
        check_always(leaving_out, case, plan, expected.persons)
        if leaving_out.code == 2:
            check_expected(leaving_out, expected, folders, name)
            check_advice(leaving_out)


@pytest.mark.parametrize("name", sorted(PLANS))
def test_a_plan_gives_what_is_right(name: str, folders: Folders, tmp_path: Path) -> None:
    plan = folders.plans / name
    ended = tried(folders.base, plan, tmp_path)
    check_always(ended, folders.base, plan)
    check_expected(ended, PLANS[name], folders, folders.base.name)


def test_cases_beyond_the_table_end_well(folders: Folders, tmp_path: Path) -> None:
    for case in sorted(folders.out.iterdir()):
        if case.name in CASES:
            continue
        grouped = (case / "hospitals.csv").exists()
        plan = folders.plans / ("tiny-h.yaml" if grouped else "tiny.yaml")
        ended = tried(case, plan, tmp_path / case.name)
        check_always(ended, case, plan, persons=ended.code == 0 and not ended.remarks)
