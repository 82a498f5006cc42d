"""Write a phantom data set in the layout of the official NIH ChestX-ray14 release.

images_001/images/00000001_000.png   8-bit grey; folder 001 holds 4,999 images, others 10,000
masks/00000001_000.png               lung fields, 0 or 255
Data_Entry_2017_v2020.csv            one row per image
BBox_List_2017.csv                   boxes of the eight findings that the release has boxes for
train_val_list.txt, test_list.txt    split by patient
hospitals.csv                        which hospital each patient belongs to
"""

import csv
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import InputError, Problem
from simulations.phantom.patients import hide_labels, sample_cohort, split_patients
from simulations.phantom.render import Study, render
from simulations.phantom.scene import Box

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
TABLE, BOXES, HOSPITALS = "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv", "hospitals.csv"
TRAIN_VAL, TEST = "train_val_list.txt", "test_list.txt"
# The findings with boxes in the release, by their names in its box list.
BOXED = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Effusion": "Effusion",
    "Infiltration": "Infiltrate",
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
}
# (width, height, spacing in mm) of the original films: portable and fixed units of the release.
PORTABLE, FIXED = (2500, 2048, 0.168), (2992, 2991, 0.143)
SMALLEST, LARGEST = 32, 1024
BATCH = 8  # images per task of the process pool

Boxes = list[tuple[str, Box]]


@dataclass(frozen=True)
class _Task:
    """One image to write: its study and where the picture and its mask go."""

    study: Study
    size: int
    picture: str
    mask: str


def make_phantom(
    out: Path,
    images: int = 1000,
    size: int = 128,
    hospitals: int = 4,
    seed: int = 0,
    unlabelled: float = 0.1,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a phantom archive to the folder `out` (new or empty) and return `out`.

    images: number of radiographs, each `size` pixels square (32..1024); hospitals: X-ray units
    that differ in acquisition; unlabelled: share of the images (0..1) whose patients have no
    labels; workers: processes (None: all cores of this machine); progress: called with the number
    of images written so far. The same arguments give the same bytes, whatever `workers` is. The
    archive is built beside `out` and moved there when it is complete. With more than one worker,
    a script that calls this needs the `if __name__ == "__main__":` guard.

    Raises InputError for arguments out of range and for a folder that is in use or not writable.
    """
    out = Path(out)
    problems = _argument_problems(images, size, hospitals, seed, unlabelled, workers)
    problems += _folder_problems(out)
    if problems:
        raise InputError(problems)
    studies = sample_cohort(images, hospitals, seed)
    test = split_patients(studies, seed)
    studies = hide_labels(studies, test, unlabelled, seed)
    with _complete_or_nothing(out) as folder:
        tasks = [_task(folder, number, study, size) for number, study in enumerate(studies)]
        for parent in {Path(task.picture).parent for task in tasks} | {folder / "masks"}:
            parent.mkdir(parents=True)
        boxes: list[Boxes] = []
        # Closed explicitly: no process may still write when a stopped run is cleared away.
        with closing(_render_all(tasks, workers or os.cpu_count() or 1)) as batches:
            for found in batches:
                boxes += found
                if progress is not None:
                    progress(len(boxes))
        _write_tables(folder, studies, boxes, test)
    return out


def _task(folder: Path, number: int, study: Study, size: int) -> _Task:
    """Paths of image `number` (from 0), spread over folders as in the release."""
    part = 1 + (number + 5001) // 10000
    picture = folder / f"images_{part:03d}" / "images" / study.image
    return _Task(study, size, str(picture), str(folder / "masks" / study.image))


def _render_all(tasks: Sequence[_Task], workers: int) -> Generator[list[Boxes], None, None]:
    """Write all pictures and masks; yields the boxes of one batch after another, in order."""
    batches = [tasks[start : start + BATCH] for start in range(0, len(tasks), BATCH)]
    workers = min(workers, len(batches))
    if workers == 1:
        yield from map(_render_batch, batches)
        return
    # Spawned, not forked: the caller may hold threads (torch, Ray) that do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_render_batch, batches)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _render_batch(tasks: Sequence[_Task]) -> list[Boxes]:
    """Write the pictures and masks of some tasks; returns their boxes in the same order."""
    boxes = []
    for task in tasks:
        film = render(task.study, task.size)
        Image.fromarray(film.picture).save(task.picture, format="PNG")
        mask = film.mask.astype(np.uint8) * np.uint8(255)
        Image.fromarray(mask).save(task.mask, format="PNG")
        boxes.append(film.boxes)
    return boxes


def _write_tables(
    folder: Path, studies: Sequence[Study], boxes: Sequence[Boxes], test: set[int]
) -> None:
    """The table, the box list, the split lists and the hospitals."""
    _write_rows(folder / TABLE, HEADER, (_row(study) for study in studies))
    known = [(study, box) for study, box in zip(studies, boxes, strict=True) if study.labelled]
    rows = [
        [study.image, BOXED[name], *(f"{value:.1f}" for value in box), "", "", ""]
        for study, found in known
        for name, box in found
        if name in BOXED
    ]
    _write_rows(folder / BOXES, BOX_HEADER, rows)
    homes = {study.patient: f"hospital-{study.hospital + 1}" for study in studies}
    _write_rows(folder / HOSPITALS, "Patient ID,Hospital", homes.items())
    for name, wanted in ((TRAIN_VAL, False), (TEST, True)):
        lines = [f"{study.image}\n" for study in studies if (study.patient in test) == wanted]
        (folder / name).write_text("".join(lines), encoding="utf-8")


def _row(study: Study) -> list[object]:
    """One row of the table; no label at all where the patient has none."""
    labels = "|".join(sorted(name for name, _ in study.findings)) or "No Finding"
    width, height, spacing = PORTABLE if study.view == "AP" else FIXED
    about = [study.image, labels if study.labelled else "", study.follow_up, study.patient]
    return [*about, study.age, study.sex, study.view, width, height, spacing, spacing]


def _write_rows(path: Path, header: str, rows: Iterable[Iterable[object]]) -> None:
    """A CSV file. The header is written as it stands: the release does not quote its commas."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(header + "\n")
        csv.writer(file, lineterminator="\n").writerows(rows)


@contextmanager
def _complete_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, or disappears if anything fails."""
    folder = out.absolute().with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            yield folder
            os.replace(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise InputError(
            Problem(
                str(out),
                "",
                f"cannot write: {error.strerror or error}",
                "a folder that can be written, with room for the images",
                "Choose another folder with --out, or free some space.",
            )
        ) from error


def _argument_problems(
    images: int, size: int, hospitals: int, seed: int, unlabelled: float, workers: int | None
) -> list[Problem]:
    """Every argument out of its range."""
    checks = [
        ("images", images, images >= 1, "1 or more"),
        ("size", size, SMALLEST <= size <= LARGEST, f"{SMALLEST} to {LARGEST} pixels"),
        ("hospitals", hospitals, hospitals >= 1, "1 or more"),
        ("seed", seed, seed >= 0, "0 or more"),
        ("unlabelled", unlabelled, 0.0 <= unlabelled <= 1.0, "a share from 0 to 1"),
        ("workers", workers, workers is None or workers >= 1, "1 or more, or none for all cores"),
    ]
    return [
        Problem("phantom", name, str(value), allowed, f"Give another value for {name}.")
        for name, value, good, allowed in checks
        if not good
    ]


def _folder_problems(out: Path) -> list[Problem]:
    """A target that already holds something is never touched."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return []
        found = "a folder that is not empty" if out.is_dir() else "a file"
    except OSError as error:
        found = f"a folder that cannot be read: {error.strerror}"
    step = "Choose another folder, or delete this one first."
    return [Problem(str(out), "", found, "a new or empty folder", step)]
