"""What a person should know of a picture though it stops nothing, and the words for it."""

from collections.abc import Iterable
from dataclasses import dataclass

SHOWN = 5  # names in one remark
# One line a kind, in the order in which they are said; {} is the count.
WORDS = {
    "one-level": "{} images of a single grey level, which show nothing",
    "shape": "{} images smaller than 32 pixels or more than 4 times as long as wide",
    "few-bits": "{} images with 16 bits a pixel that use fewer, scaled by the bits in use",
    "turned": "{} files turned upright by the orientation in their EXIF data",
    "exif": "{} files with EXIF data that cannot be read, shown as they lie",
    "alpha": "{} images with transparent parts, read as if nothing were transparent",
    "tags": "{} DICOM images that are not an upright frontal chest film by their tags",
    "no-header": "{} DICOM files without the header that they should begin with, read all the same",
    "lung-area": "{} masks in which the lungs cover less than 2 % or more than 60 % of the picture",
}


@dataclass(frozen=True)
class Note:
    """One thing to know of one picture. code: a key of WORDS; detail: its value here, or ""."""

    code: str
    detail: str = ""


def remarks(notes: Iterable[tuple[str, Note]]) -> list[str]:
    """One string a kind: how many, and the first names. notes: pairs of a file's name and note."""
    by_code: dict[str, list[str]] = {}
    for name, note in notes:
        told = f"{name} ({note.detail})" if note.detail else name
        by_code.setdefault(note.code, []).append(told)
    return [
        f"{words.format(len(by_code[code]))}: {first_names(by_code[code])}"
        for code, words in WORDS.items()
        if code in by_code
    ]


def first_names(names: list[str]) -> str:
    """The first names, and dots for the others."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
