"""Names of image files, in the one spelling in which they are compared."""

import unicodedata
from collections.abc import Iterable

from client.data.pixels.images import IMAGE_SUFFIXES

# Endings of pictures that are not read. What else a folder may hold is known by its content.
OTHER_PICTURES = frozenset(
    f".{ending}"
    for group in (
        "apng avif bmp fits gif hdr heic heif ico j2k jfif jp2 jpe jpf jpx mha mhd nii",
        "npy npz nrrd pbm pcx pgm pnm ppm psd svg tga tif tiff webp",
    )
    for ending in group.split()
)
# Endings that DICOM files bear, and others too: their content tells.
_PERHAPS_DICOM = (".dic", ".dc3", ".ima", ".img", ".raw")
_SHOWN = 5  # names in one message


def stem(name: str) -> str:
    """What identifies an image: its file name without the ending, in one Unicode spelling.

    Only the ending of a picture is taken off: `1.2.840.113` is a whole name. A Mac writes an
    umlaut as two characters (NFD), all others as one (NFC): both are the same name. Blanks
    around it do not count, as they do not in a table.
    """
    head, dot, ending = name.strip().rpartition(".")
    suffix = f".{ending.lower()}"
    known = suffix in OTHER_PICTURES or suffix in IMAGE_SUFFIXES or suffix in _PERHAPS_DICOM
    return unicodedata.normalize("NFC", head if dot and head and known else name).strip()


def unsafe(name: str) -> bool:
    """Whether a name cannot be a cell of a table: control characters, not UTF-8, or blank."""
    if name.isascii() and name.isprintable():
        return not stem(name)
    return not stem(name) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def first(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def beginnings(name: str) -> list[str]:
    """What of a name stands before each of its separators, the longest first."""
    ends = [end for end in range(1, len(name)) if not name[end].isalnum()]
    return [name[:end].rstrip() for end in reversed(ends)]


class Names:
    """The names of an archive's images, as stems, found by how other files spell them."""

    def __init__(self, stems: Iterable[str]) -> None:
        self._exact = set(stems)
        self._folded: dict[str, str | None] | None = None  # made when it is needed

    def __contains__(self, other: str) -> bool:
        """Whether a stem is among them, equal in case, too."""
        return other in self._exact

    def find(self, other: str) -> str | None:
        """The stem that this is: equal, or else equal but for upper and lower case.

        None when there is none, or when case alone tells two of them apart.
        """
        if other in self._exact:
            return other
        if self._folded is None:
            self._folded = {}
            for one in self._exact:
                folded = one.casefold()
                self._folded[folded] = None if folded in self._folded else one
        return self._folded.get(other.casefold())
