"""The schemes. Each sorts patients into strata and says how a stratum is shared out.

| scheme    | a stratum is                     | shares of the hospitals in it         |
|-----------|----------------------------------|---------------------------------------|
| iid       | everybody                        | equal, or log-normal (quantity_ratio) |
| case-mix  | a kind of hospital               | equal among the hospitals of the kind |
| dirichlet | the patient's rarest finding     | one Dirichlet(alpha) draw a finding   |
| hospitals | the patient's own hospital       | all to that hospital                  |

The same strata and shares serve the patients of the official test list, so that a test
patient is counted with the hospital to whose population it belongs.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.errors import Problem
from common.simulated import CaseMix, PartitionPlan
from simulations.partition.groups import group_problems, hospital_names
from simulations.partition.patients import rarest_finding
from simulations.partition.result import cannot, stream

Floats = npt.NDArray[np.float64]
KINDS: tuple[str, ...] = get_args(CaseMix)
MEANING = {
    "outpatient": " (all images PA)",
    "ward": " (PA and AP images, at most half of them AP)",
    "icu": " (more than half of the images AP)",
    "paediatric": " (younger than 18 at the first image)",
    "rural": " (a small random share of the adults)",
}
ADULT = 18.0  # years at the first image
RURAL_SHARE, RURAL_IMAGES = 0.05, 2000  # a rural hospital: the smaller of the two


@dataclass(frozen=True)
class Scheme:
    """Strata: patient -> stratum. Shares: stratum (row) x hospital (column), rows sum to 1.

    A stratum without a row belongs to no hospital.
    """

    strata: "pd.Series[str]"
    shares: pd.DataFrame


def scheme_problems(
    patients: pd.DataFrame, spec: PartitionPlan, sites: int, groups: Mapping[str, str] | None
) -> list[Problem]:
    """What keeps the scheme from naming its hospitals; empty when nothing does."""
    if spec.scheme == "hospitals":
        return group_problems(patients, groups, sites)
    if spec.scheme != "case-mix":
        return []
    if spec.case_mix is None and sites > len(KINDS):
        allowed = f"at most {len(KINDS)} without case_mix ({', '.join(KINDS)})"
        step = "List the kinds in case_mix, repeated ones too, or ask for fewer sites."
        return [cannot("sites", str(sites), allowed, step)]
    if spec.case_mix is not None and len(spec.case_mix) != sites:
        step = "List as many kinds as there are sites; a kind may come more than once."
        found = f"{len(spec.case_mix)} kinds"
        return [cannot("partition.case_mix", found, f"{sites}, one a site", step)]
    return []


def make_scheme(
    table: pd.DataFrame,
    patients: pd.DataFrame,
    spec: PartitionPlan,
    sites: int,
    seed: int,
    groups: Mapping[str, str] | None,
) -> Scheme:
    """Strata and shares of the plan's scheme (see the table above). Deterministic in `seed`."""
    if spec.scheme == "case-mix":
        kinds: tuple[str, ...] = spec.case_mix or KINDS[:sites]
        return _case_mix(patients, kinds, seed)
    if spec.scheme == "hospitals":
        own = groups or {}
        names = hospital_names(patients, own)
        strata = pd.Series([own[patient] for patient in patients.index], index=patients.index)
        return Scheme(strata, pd.DataFrame(np.eye(len(names)), index=names, columns=names))
    names = [f"site-{number}" for number in range(1, sites + 1)]
    sizes = log_normal_shares(sites, spec.quantity_ratio, stream(seed, "sizes"))
    if spec.scheme == "iid":
        strata = pd.Series("everybody", index=patients.index)
        return Scheme(strata, pd.DataFrame(sizes[None, :], index=["everybody"], columns=names))
    strata = rarest_finding(table, patients)
    images = patients["images"].where(patients["in_pool"], 0).groupby(strata).sum()
    draws = stream(seed, "shares").dirichlet(np.full(sites, spec.alpha), size=len(images))
    if spec.quantity_ratio is not None:
        draws = fit_sizes(draws, images.to_numpy(dtype=np.float64), sizes)
    return Scheme(strata, pd.DataFrame(draws, index=images.index, columns=names))


def log_normal_shares(sites: int, ratio: float | None, rng: np.random.Generator) -> Floats:
    """(sites,) float64, sum 1: log-normal sizes whose largest / smallest is exactly `ratio`.

    Without a ratio (None) all are equal. The spread of the logarithms is stretched to fit.
    """
    normal = rng.standard_normal(sites)
    spread = float(np.ptp(normal))
    if ratio is None or spread == 0.0:
        return np.full(sites, 1.0 / sites)
    sizes = np.exp((normal - normal.max()) / spread * np.log(ratio))
    return np.asarray(sizes / sizes.sum())


def fit_sizes(draws: Floats, images: Floats, sizes: Floats) -> Floats:
    """Dirichlet draws (strata, sites), bent until the hospitals' sizes are the shares `sizes`.

    Iterative proportional fitting (Deming and Stephan, 1940), which keeps the odds ratios of
    the draws: `images` (strata,) counts the images of each stratum. Returns rows that sum to 1.
    """
    weights = np.maximum(draws, 1e-6)  # the fit converges when no entry is zero
    weights /= weights.sum(axis=1, keepdims=True)
    for _ in range(1000):
        got = images @ weights / max(images.sum(), 1.0)
        if np.allclose(got, sizes, rtol=1e-3, atol=0.0):
            break
        weights *= sizes / np.maximum(got, 1e-12)
        weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _case_mix(patients: pd.DataFrame, kinds: tuple[str, ...], seed: int) -> Scheme:
    copies = Counter(kinds)
    strata = _kind_by_views(patients["ap_share"])
    child = patients["age"] < ADULT  # an unknown age counts as adult
    if "paediatric" in copies:
        strata = strata.mask(child, "paediatric")
    if "rural" in copies:
        strata = strata.mask(_rural(patients, ~child, copies["rural"], seed), "rural")
    shares = pd.DataFrame(0.0, index=sorted(copies), columns=_kind_names(kinds))
    for name, kind in zip(shares.columns, kinds, strict=True):
        shares.loc[kind, name] = 1.0 / copies[kind]
    return Scheme(strata, shares)


def _kind_by_views(ap_share: "pd.Series[float]") -> "pd.Series[str]":
    """Outpatients stand (PA only); the sicker the patient, the more bedside (AP) images.

    Patients without a known view count as outpatients, the commonest kind.
    """
    kind = np.select([ap_share > 0.5, ap_share > 0.0], ["icu", "ward"], "outpatient")
    return pd.Series(kind, index=ap_share.index, dtype="str")


def _rural(
    patients: pd.DataFrame, adult: "pd.Series[bool]", copies: int, seed: int
) -> "pd.Series[bool]":
    """A random share of all adults: the same share of the pool and of the test patients."""
    rng = stream(seed, "strata")
    chosen = pd.Series(False, index=patients.index)
    images = patients["images"]
    pool_images = int(images[adult & patients["in_pool"]].sum())
    share = copies * min(RURAL_SHARE, RURAL_IMAGES / max(pool_images, 1))
    for part in ("in_pool", "in_test"):
        members = patients.index[adult & patients[part]].to_numpy()
        shuffled = rng.permutation(members)
        reached = images.loc[shuffled].cumsum().to_numpy()
        total = int(reached[-1]) if len(reached) else 0
        chosen.loc[shuffled[reached <= share * total]] = True
    return chosen


def _kind_names(kinds: tuple[str, ...]) -> list[str]:
    """ward, or ward-1, ward-2 where a kind comes more than once."""
    copies, seen, names = Counter(kinds), Counter[str](), []
    for kind in kinds:
        seen[kind] += 1
        names.append(kind if copies[kind] == 1 else f"{kind}-{seen[kind]}")
    return names
