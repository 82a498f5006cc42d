"""The partitioner: strata are dealt out to hospitals, then cut into training, val and test."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.errors import PartitionError, Problem
from common.simulated import PartitionPlan
from simulations.partition.labels import hide_labels, label_problems, share_findings
from simulations.partition.patients import describe_patients
from simulations.partition.result import Partition, cannot, stream
from simulations.partition.schemes import (
    MEANING,
    Scheme,
    log_normal_shares,
    make_scheme,
    scheme_problems,
)

NO_HOSPITAL = "no hospital of the plan takes this kind of patient"
SUBSAMPLED = "left out to reach quantity_ratio"


def partition(
    table: pd.DataFrame,
    spec: PartitionPlan,
    sites: int,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> Partition:
    """Deal the patients of `table` out to `sites` hospitals, as `spec` asks.

    table: an archive's table (image, patient, follow_up, age, sex, view, labelled, findings,
    and split if it has an official test list); its order does not matter. groups: patient ->
    hospital, for the scheme `hospitals`. The same seed gives the same hospitals.

    The official test list is the global test; without one, `test_fraction` of every
    hospital's patients are. Raises PartitionError with every reason why it cannot be done.
    """
    patients = describe_patients(table)
    problems = [
        *_patient_problems(patients, spec, sites),
        *scheme_problems(patients, spec, sites, groups),
        *label_problems(spec, sites),
    ]
    if problems:
        raise PartitionError(problems)
    scheme = make_scheme(table, patients, spec, sites, seed, groups)
    names = scheme.shares.columns.tolist()
    placed = _deal_out(patients, scheme, seed)
    in_test = patients["in_test"]
    if not in_test.any():
        in_test = _carve_test(placed, names, spec.test_fraction, seed)
    home = placed.mask(in_test, "")
    reason = pd.Series("", index=patients.index).mask((placed == "") & ~in_test, NO_HOSPITAL)
    fixed_sizes = spec.scheme in ("case-mix", "hospitals")
    _refuse_small(home, names, spec, "scheme" if fixed_sizes else "sizes")
    if spec.quantity_ratio is not None and fixed_sizes:
        dropped = _subsample(patients["images"], home, names, spec, seed)
        reason = reason.mask(dropped, SUBSAMPLED)
        home = home.mask(dropped, "")
        _refuse_small(home, names, spec, "sizes")
    validates = _choose_val(home, names, spec.val_fraction, seed)
    rows = table[["image", "patient", "labelled"]].sort_values(["patient", "image"])
    test = rows[["image", "patient"]].assign(site=rows["patient"].map(placed))
    left_out = rows[["image", "patient"]].assign(reason=rows["patient"].map(reason))
    return Partition(
        sites=_site_rows(rows, home, validates, names, spec, seed),
        annotates=share_findings(names, spec.findings_per_site, stream(seed, "findings")),
        test=test[rows["patient"].map(in_test)].reset_index(drop=True),
        left_out=left_out[left_out["reason"] != ""].reset_index(drop=True),
        spec=spec,
        seed=seed,
        table=table,
    )


def deal(
    images: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Hospital position (n,) int64 of each of n patients with `images` (n,) images.

    In random order, each goes to the hospital that lacks most images of its share (k,): the
    sizes come out right although a few patients own many images.
    """
    lacking = shares * images.sum()
    positions = np.empty(len(images), dtype=np.int64)
    for patient in rng.permutation(len(images)):
        site = int(lacking.argmax())
        positions[patient] = site
        lacking[site] -= images[patient]
    return positions


def _deal_out(patients: pd.DataFrame, scheme: Scheme, seed: int) -> "pd.Series[str]":
    """Patient -> hospital ("" for none), test patients apart but by the same shares."""
    names = scheme.shares.columns.to_numpy(dtype=object)
    strata = scheme.strata.to_numpy(dtype=object)
    images = patients["images"].to_numpy(dtype=np.int64)
    placed = np.full(len(patients), "", dtype=object)
    for part, step in (("in_pool", "pool"), ("in_test", "test")):
        rng = stream(seed, step)
        inside = patients[part].to_numpy(dtype=bool)
        shares = scheme.shares.to_numpy(dtype=np.float64)
        for stratum, of_stratum in zip(scheme.shares.index, shares, strict=True):
            members = np.flatnonzero(inside & (strata == stratum))
            placed[members] = names[deal(images[members], of_stratum, rng)]
    return pd.Series(placed, index=patients.index, dtype="str")


def _carve_test(
    placed: "pd.Series[str]", names: list[str], fraction: float, seed: int
) -> "pd.Series[bool]":
    """Patient -> bool: the share `fraction` (at least one) of every hospital's patients."""
    rng = stream(seed, "carve")
    carved = pd.Series(False, index=placed.index)
    for name in names:
        members = placed.index[placed == name].to_numpy()
        number = max(1, round(fraction * len(members)))
        carved.loc[rng.permutation(members)[:number]] = True
    return carved


def _subsample(
    images: "pd.Series[int]",
    home: "pd.Series[str]",
    names: list[str],
    spec: PartitionPlan,
    seed: int,
) -> "pd.Series[bool]":
    """Patient -> bool: dropped so that the hospitals' sizes become log-normal.

    A case-mix fixes who may be where, so that sizes can only shrink. The larger the hospital,
    the larger its drawn size: as few patients as possible are lost.
    """
    rng = stream(seed, "sizes")
    drawn = np.sort(log_normal_shares(len(names), spec.quantity_ratio, rng))
    have = images.groupby(home).sum().reindex(names, fill_value=0).to_numpy(dtype=np.float64)
    wanted = np.empty(len(names))
    wanted[np.argsort(have, kind="stable")] = drawn
    wanted *= (have / wanted).min()
    dropped = pd.Series(False, index=home.index)
    for name, target in zip(names, wanted, strict=True):
        shuffled = rng.permutation(home.index[home == name].to_numpy())
        reached = images.loc[shuffled].cumsum().to_numpy() if len(shuffled) else np.zeros(0)
        dropped.loc[shuffled[reached > target + 0.5]] = True
    return dropped


def _choose_val(
    home: "pd.Series[str]", names: list[str], fraction: float, seed: int
) -> "pd.Series[bool]":
    """Patient -> bool: the share `fraction` of every hospital's patients, at least one of them
    if the fraction is not 0, and never all of them."""
    rng = stream(seed, "val")
    validates = pd.Series(False, index=home.index)
    for name in names:
        members = home.index[home == name].to_numpy()
        number = min(len(members) - 1, max(1, round(fraction * len(members))))
        if fraction > 0:
            validates.loc[rng.permutation(members)[:number]] = True
    return validates


def _site_rows(
    rows: pd.DataFrame,
    home: "pd.Series[str]",
    validates: "pd.Series[bool]",
    names: list[str],
    spec: PartitionPlan,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Hospital -> DataFrame(image, patient, split, labelled), in the order of `names`."""
    rng = stream(seed, "labels")
    split = np.where(rows["patient"].map(validates), "val", "train")
    rows = rows.assign(split=split, site=rows["patient"].map(home))
    fractions = spec.label_fraction or (1.0,) * len(names)
    frames = {}
    for name, fraction in zip(names, fractions, strict=True):
        frame = rows.loc[rows["site"] == name, ["image", "patient", "split", "labelled"]]
        frame = frame.reset_index(drop=True)
        frames[name] = frame.assign(labelled=hide_labels(frame, fraction, rng))
    return frames


def _patient_problems(patients: pd.DataFrame, spec: PartitionPlan, sites: int) -> list[Problem]:
    """Too few patients, patients on both sides of the official list, no test at all."""
    problems = []
    pool = int(patients["in_pool"].sum())
    if sites > pool:
        step = "Ask for fewer sites, or use a larger archive."
        problems.append(cannot("sites", str(sites), f"at most {pool}, the patients to deal", step))
    both = patients.index[patients["in_pool"] & patients["in_test"]]
    if len(both):
        found = f"{len(both)} patients inside and outside the test list ({both[0]} is one)"
        step = "Mend the archive's split lists."
        problems.append(Problem("partition", "table", found, "each patient on one side", step))
    if not patients["in_test"].any() and spec.test_fraction == 0.0:
        allowed = "more than 0, as the archive has no official test list"
        step = "Set a share of the patients for the test."
        problems.append(cannot("partition.test_fraction", "0.0: no test patients", allowed, step))
    return problems


def _refuse_small(home: "pd.Series[str]", names: list[str], spec: PartitionPlan, by: str) -> None:
    """Raise PartitionError for every hospital without a patient to train and one to validate.

    by: what made it small: "sizes" (quantity_ratio, if the plan has one) or "scheme".
    """
    needed = 2 if spec.val_fraction > 0 else 1
    allowed = f"at least {needed}" + (", one to train and one to validate" if needed == 2 else "")
    if by == "sizes" and spec.quantity_ratio is not None:
        key, step = "partition.quantity_ratio", "Lower quantity_ratio, or ask for fewer sites."
    elif spec.scheme == "case-mix":
        key, step = "partition.case_mix", "Leave this kind out, or use a larger archive."
    elif spec.scheme == "dirichlet":
        key, step = "partition.alpha", "Raise alpha, ask for fewer sites, or change the seed."
    else:
        key, step = "sites", "Ask for fewer sites, or use a larger archive."
    counts = home.value_counts().reindex(names, fill_value=0)
    problems = []
    for name, has in counts[counts < needed].items():
        meaning = MEANING.get(str(name).split("-")[0], "") if spec.scheme == "case-mix" else ""
        found = f"{has} patients left for the hospital {name!r}{meaning}, the test set aside"
        problems.append(cannot(key, found, allowed, step))
    if problems:
        raise PartitionError(problems)
