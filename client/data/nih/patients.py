"""Whose an image without a row is: by the name of another image that its own name bears.

`00000003_001 (1)`, `00000003_001 - Kopie` and `Copy of 00000003_001` are what file managers call
a second copy. None of them may become a patient of its own.
"""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from client.data.nih.folders import File
from client.data.tables.identity import patient_id, patient_of_name, spelling
from client.data.tables.names import Names, beginnings
from common.findings import FINDINGS

_NIH_NAME = re.compile(r"(?<![0-9])[0-9]{8}_[0-9]{3}(?![0-9])")
_UID = re.compile(r"[0-9]+(\.[0-9]+){3,}")  # of DICOM: its last part marks no copy
_COPY = (
    "copy|kopie|copie|copia|cópia|còpia|kopia|kópia|kopija|kopi|kopya|kopio|másolat|salinan|"
    "копия|копія|コピー|副本|复件|複本|복사본"
)
_SUFFIX = re.compile(
    rf"(?:[ _-]*\([0-9]{{1,3}}\)|[ _.–—-]+(?:{_COPY})(?: ?\(?[0-9]{{1,3}}\)?)?"
    r"|のコピー ?[0-9]{0,3}|\.[0-9]{1,3}|~[0-9]{0,3}~?)",
    re.IGNORECASE,
)
_PREFIX = re.compile(
    rf"(?:{_COPY})(?: ?\([0-9]{{1,3}}\))?(?:[ _](?:of|von|de|di|van|av|af|do))?[ _–—～~-]+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Owner:
    """Whose an image is. bears: the other image whose name it bears; known: not a guess.

    A guess is the name of the file: an image that nothing else is known of.
    """

    patient: str
    bears: str = ""
    known: bool = True


class Owners:
    """Finds the patients of images without a row, from the rows and the other images' names."""

    def __init__(self, rows: pd.DataFrame, files: list[File]) -> None:
        """rows: as `read_table`, with the column stem. files: the images without a row."""
        stems = rows["stem"].tolist()
        self._of_row = dict(zip(stems, rows["patient"].tolist(), strict=True))
        self._rows = Names(stems)
        self._files = Names(file.stem for file in files)
        # Whoever is guessed may be a patient of the rows, or of another file, spelled otherwise.
        patients = dict.fromkeys(self._of_row.values()) if files else {}
        self._of_spelling = {spelling(patient): patient for patient in patients}
        # A hospital may call its patients otherwise than the file names do.
        self._of_number: dict[str, str] = {}
        for one, patient in self._of_row.items() if files else ():
            number = patient_of_name(one)
            if number is not None:
                self._of_number.setdefault(number, patient)

    def of(self, name: str) -> Owner:
        """The owner of the image with this stem."""
        number = patient_of_name(name)
        if number is not None:
            patient = self._of_row.get(name) or self._of_number.get(number, number)
            return Owner(patient)
        row = self._row_in(name)
        if row is not None:
            return Owner(self._of_row[row], row)
        inside = _NIH_NAME.search(name)
        if inside:
            return Owner(self.of(inside[0]).patient, inside[0])
        for shorter in _without_copy_marks(name):
            other = self._files.find(shorter)
            if other is not None and other != name:
                return Owner(self.of(other).patient, other)
        guess = patient_id(name) or name
        return Owner(self._of_spelling.setdefault(spelling(guess), guess), known=False)

    def _row_in(self, name: str) -> str | None:
        """The row whose name this one bears: marked as a copy, or before a separator."""
        if _UID.fullmatch(name):
            return None
        for shorter in (*_without_copy_marks(name), *beginnings(name)):
            row = self._rows.find(shorter)
            if row is not None:
                return row
        return None


def _without_copy_marks(name: str) -> list[str]:
    """The name without its marks of a copy, one after the other: a copy may be copied."""
    shorter: list[str] = []
    while not _UID.fullmatch(name):
        mark = _last_mark(name)
        if mark is not None:
            name = name[:mark].rstrip()
        else:
            mark_before = _PREFIX.match(name)
            if not mark_before:
                return shorter
            name = name[mark_before.end() :]
        if not name:
            return shorter
        shorter.append(name)
    return shorter


def _last_mark(name: str) -> int | None:
    """Where the last mark of a copy begins that ends with the name."""
    for match in _SUFFIX.finditer(name):
        if match.end() == len(name):
            return match.start()
    return None


def unlabelled_rows(files: list[File], owners: list[Owner]) -> pd.DataFrame:
    """Rows in the shape of `read_table` for images that no table knows: findings -1."""
    size = len(files)
    columns: dict[str, pd.Series] = {
        "image": pd.Series([file.name for file in files], dtype="str"),
        "patient": pd.Series([owner.patient for owner in owners], dtype="str"),
        "follow_up": pd.Series(np.zeros(size, dtype=np.int64)),
        "age": pd.Series(np.full(size, np.nan, dtype=np.float32)),
        "sex": pd.Series([""] * size, dtype="str"),
        "view": pd.Series([""] * size, dtype="str"),
        "labelled": pd.Series(np.zeros(size, dtype=bool)),
    }
    for finding in FINDINGS:
        columns[finding] = pd.Series(np.full(size, -1, dtype=np.int8))
    return pd.DataFrame(columns)
