"""What the tables alone tell of a run: archives, hospitals, tests. Not a pixel is decoded."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from client.data.nih import Archive, open_archive
from common.errors import DataError, InputError, PartitionError, Problem, escaped
from common.plan import Plan
from simulations.experiment.folder import Request
from simulations.experiment.hospitals import MASK_HOSPITAL, POOLED, Hospital, hospital
from simulations.experiment.prospects import data_remarks, left_out_remarks, plan_remarks
from simulations.partition import Partition, overview, partition, read_groups
from simulations.phantom import phantom_table

# What the experiment adds to the hospitals, and what lies beside their folders.
RESERVED = (MASK_HOSPITAL, POOLED, "global_test", "lungs_test", "partition")
GROUPS_FILE = "hospitals.csv"


@dataclass(frozen=True, eq=False)
class Sources:
    """Where the images come from.

    archive: has the findings. masks: a second archive, whose images become the hospital of
    masks; None without. groups: patient -> hospital, None if nobody says. name: the archive's.
    """

    archive: Archive
    masks: Archive | None
    groups: Mapping[str, str] | None
    name: str

    @property
    def skipped(self) -> pd.DataFrame:
        """What --skip-bad left out of both archives: image, reason."""
        parts = [each.skipped for each in (self.archive, self.masks) if each is not None]
        return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True, eq=False)
class Cut:
    """The hospitals, and the tests that none of them has.

    parts: those of the archive. hospitals: all, that of masks last. lungs_test: images with a
    mask that no hospital has. unused_masks: of patients in the findings test, in no place.
    """

    parts: Partition
    hospitals: tuple[Hospital, ...]
    lungs_test: list[str]
    unused_masks: int

    def masks(self) -> dict[str, int]:
        """How many lung masks train, validate and test, and how many are left out."""
        own = [each.rows.loc[each.rows["outlined"], "split"] for each in self.hospitals]
        counts = {split: sum(int((e == split).sum()) for e in own) for split in ("train", "val")}
        return counts | {"test": len(self.lungs_test), "left_out": self.unused_masks}


@dataclass(frozen=True, eq=False)
class Survey:
    """Archives and hospitals before decoding, and what a person should know of them."""

    sources: Sources
    cut: Cut
    remarks: tuple[str, ...]

    def overview(self) -> dict[str, Any]:
        """All of it ready for JSON."""
        found = overview(self.cut.parts)
        return found | {"masks": self.cut.masks(), "remarks": list(self.remarks)}


def survey(plan: Plan, request: Request) -> Survey:
    """Read the tables of what is asked, and cut them into hospitals.

    Raises DataError or PartitionError with what is wrong with the archive, the masks or the
    hospitals that the plan asks for.
    """
    sources = open_sources(plan, request)
    table = _outlined(sources.archive)
    masks = None if sources.masks is None else _outlined(sources.masks)
    done = cut(plan, table, masks, sources)
    return Survey(sources, done, remarks(plan, sources, done, sources.skipped))


def remarks(
    plan: Plan, sources: Sources, done: Cut, skipped: pd.DataFrame, more: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """All that a person should know of a run's data, each thing once, on a line that prints.

    skipped: what was left out (image, reason). more: what decoding has to say.
    """
    archives = [each.remarks for each in (sources.archive, sources.masks) if each is not None]
    known = done.parts.table.set_index("image").loc[done.parts.test["image"], "labelled"]
    found = [remark for each in archives for remark in each]
    found += [*more, *left_out_remarks(skipped)]
    found += data_remarks(plan, done.hospitals, int(known.sum()), len(done.lungs_test))
    found += plan_remarks(plan, done.hospitals)
    return tuple(dict.fromkeys(escaped(remark) for remark in found))


def open_sources(plan: Plan, request: Request) -> Sources:
    """Open what the request names, or say what its phantom will be, without drawing it.

    Raises DataError, PartitionError for hospitals.csv, InputError for masks that fit no phantom.
    """
    data, skip_bad = request.data, request.skip_bad
    outside = request.masks is not None and (request.masks / "images").is_dir()
    inside = None if outside else request.masks
    groups: Mapping[str, str] | None
    if data is None:
        if inside is not None:
            what = "a folder without images/" if inside.is_dir() else "no such folder"
            found, allowed = f"{inside}, {what}, without --data", "a folder with images/ and masks/"
            step = "Name the archive of these masks: a phantom has masks of its own."
            raise InputError(Problem("command line", "--masks", found, allowed, step))
        archive, groups = _phantom(plan)
    else:
        archive = open_archive(data, masks=inside, skip_bad=skip_bad)
        # Beside the table, which may lie in a folder of the one that was named.
        files = [folder / GROUPS_FILE for folder in (archive.root, data)]
        # A link that leads nowhere is there, too: reading it says what is wrong.
        file = next((file for file in files if os.path.lexists(file)), None)
        groups = None if file is None else read_groups(file)
    masks = None
    if outside and request.masks is not None:
        masks = open_archive(request.masks, skip_bad=skip_bad)
        _refuse_clash(archive, masks)
    name = archive.root.name if data is None else data.absolute().name
    return Sources(archive, masks, groups, name)


def _phantom(plan: Plan) -> tuple[Archive, dict[str, str]]:
    """The phantom that the plan asks for, as its archive will be opened; it has all masks."""
    simulation = plan.simulation
    table, groups = phantom_table(simulation.phantom_images, simulation.sites, plan.seed)
    table = table.assign(path="", mask=table["image"])
    nothing = pd.DataFrame({"image": [], "reason": []}, dtype="str")
    return Archive(Path("archive").absolute(), table, pd.DataFrame(), nothing), groups


def _refuse_clash(first: Archive, second: Archive) -> None:
    """Two archives share one cache, in which an image has one name."""
    clash = set(first.table["image"]) & set(second.table["image"])
    if clash:
        raise DataError(
            Problem(
                str(second.root),
                f"image {min(clash)!r}",
                f"{len(clash)} names that the archive has too",
                "other names",
                "Give --masks the folder of masks alone if they belong to the archive's images.",
            )
        )


def _outlined(archive: Archive) -> pd.DataFrame:
    return archive.table.assign(outlined=archive.table["mask"].ne(""))


def cut(plan: Plan, table: pd.DataFrame, masks: pd.DataFrame | None, sources: Sources) -> Cut:
    """Cut tables of images into the plan's hospitals and the tests.

    table: the archive's, as `open_archive` describes it, with a bool column outlined (it has a
    lung mask); masks: that of the second archive. Raises PartitionError when the plan cannot be
    met, for a reserved name as well.
    """
    _check_caps(plan, masks is not None)
    spec, sites = plan.simulation.partition, plan.simulation.sites
    parts = partition(table, spec, sites, plan.seed, sources.groups)
    _refuse_reserved(list(parts.sites), sources.archive.root / GROUPS_FILE)
    facts = table.set_index("image").drop(columns=["patient", "split", "labelled"])
    hospitals = [
        hospital(plan, name, parts.annotates[name], number, rows.join(facts, on="image"))
        for number, (name, rows) in enumerate(parts.sites.items())
    ]
    if masks is None:
        in_test = table["image"].isin(parts.test["image"]) & table["outlined"]
        return Cut(parts, tuple(hospitals), list(table.loc[in_test, "image"]), 0)
    outlined = masks[masks["outlined"]]
    held_back, own, unused = _share_masks(outlined, plan, parts)
    facts = outlined.set_index("image").drop(columns=["split", "labelled"])
    own = own.join(facts, on="image")
    hospitals.append(hospital(plan, MASK_HOSPITAL, (), len(hospitals), own))
    return Cut(parts, tuple(hospitals), held_back, unused)


def _refuse_reserved(names: list[str], file: Path) -> None:
    """Raise PartitionError for a hospital with a name of ours, in capitals or not."""
    taken = [name for name in names if name.casefold() in RESERVED]
    if taken:
        found = f"a hospital named {taken[0]!r}"
        allowed = f"a name other than {', '.join(sorted(RESERVED))}"
        raise PartitionError(Problem(str(file), "column 'Hospital'", found, allowed, "Rename it."))


def _check_caps(plan: Plan, masks: bool) -> None:
    """Raises PartitionError when the plan's budgets miss the hospital of masks."""
    caps, needed = plan.simulation.lifetime_epsilon, plan.simulation.sites + masks
    if caps is not None and len(caps) < needed:
        found = f"{len(caps)} numbers"
        allowed = f"{needed}: one for each hospital, the hospital of masks last"
        key = "key 'simulation.lifetime_epsilon'"
        raise PartitionError(Problem("plan", key, found, allowed, "Add the missing ones."))


def _share_masks(
    outlined: pd.DataFrame, plan: Plan, parts: Partition
) -> tuple[list[str], pd.DataFrame, int]:
    """Share the images that have a mask (image, patient) between the lungs test and a hospital.

    Whole patients go to one side. Images of patients in the findings test go to neither: no
    hospital may know them. Returns the test's images, the hospital's rows (image, split,
    labelled), and how many were left out. Raises PartitionError if none are left to train on.
    """
    held = plan.simulation.mask_test
    known = outlined["patient"].isin(parts.test["patient"])
    masked = outlined.loc[~known, ["image", "patient"]].sort_values("image")
    patients = masked["patient"].drop_duplicates()
    order = np.random.default_rng(plan.seed).permutation(len(patients))
    place = pd.Series(np.arange(len(patients)), index=patients.iloc[order])
    shuffled = masked.iloc[np.argsort(masked["patient"].map(place), kind="stable")]
    in_test = _first_patients(shuffled, held)
    own = shuffled[~in_test]
    in_val = _first_patients(own, round(len(own) * plan.simulation.partition.val_fraction))
    if len(own) < 2 or in_val.all():
        raise PartitionError(
            Problem(
                "partition",
                "key 'simulation.mask_test'",
                f"{held} of {len(masked)} images with a mask",
                "a number that leaves masks to train on",
                "Lower mask_test or give more masks.",
            )
        )
    splits = np.where(in_val, "val", "train")
    rows = pd.DataFrame({"image": own["image"].to_numpy(), "split": splits, "labelled": False})
    return list(shuffled.loc[in_test, "image"]), rows, int(known.sum())


def _first_patients(rows: pd.DataFrame, images: int) -> npt.NDArray[np.bool_]:
    """(N,) bool: the first whole patients of rows grouped by patient, `images` rows or more."""
    first = np.arange(len(rows)) - rows.groupby("patient", sort=False).cumcount().to_numpy()
    return np.asarray(first < images)
