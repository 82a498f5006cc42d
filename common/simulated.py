"""The section of a plan that describes hospitals cut from one archive, for simulations only.

Imports neither torch nor Flower.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.findings import FINDINGS
from common.section import Section
from common.sections import Fraction

Scheme = Literal["iid", "case-mix", "dirichlet", "hospitals"]
CaseMix = Literal["outpatient", "ward", "icu", "paediatric", "rural"]
MOST_SITES = 1000
FindingCount = Annotated[int, Field(ge=0, le=100)]
LifetimeEpsilon = Annotated[float, Field(ge=0.0, le=1e6)]


class PartitionPlan(Section):
    """How one archive becomes several hospitals. Patients are dealt out, never rows."""

    scheme: Scheme = "case-mix"
    case_mix: tuple[CaseMix, ...] | None = Field(
        None, max_length=MOST_SITES, description="null: the first N kinds"
    )
    alpha: float = Field(0.5, ge=1e-3, le=1e4, description="dirichlet concentration")
    quantity_ratio: float | None = Field(
        None, ge=1.0, le=1e6, description="log-normal sizes, largest / smallest site"
    )
    findings_per_site: tuple[FindingCount, FindingCount] | None = Field(
        None, description="partial labels: each site annotates between so many findings"
    )
    label_fraction: tuple[Fraction, ...] | None = Field(
        None,
        max_length=MOST_SITES,
        description="share of labelled training patients, one number a site",
    )
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = Field(0.2, description="used only without an official test list")

    @model_validator(mode="after")
    def _fits(self) -> "PartitionPlan":
        low_high = self.findings_per_site
        if low_high and not 1 <= low_high[0] <= low_high[1] <= len(FINDINGS):
            raise ValueError(f"findings_per_site must be [low, high] within 1..{len(FINDINGS)}")
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ValueError("val_fraction + test_fraction must leave patients for training")
        return self


class SimulationPlan(Section):
    """Only `consilium-sim` reads this part; a deployed site ignores it."""

    sites: int = Field(4, ge=1, le=MOST_SITES, description="hospitals cut from the archive")
    phantom_images: int = Field(
        1000, ge=1, le=1_000_000, description="archive made when no data is given"
    )
    partition: PartitionPlan = PartitionPlan()
    lifetime_epsilon: tuple[LifetimeEpsilon, ...] | None = Field(
        None,
        max_length=MOST_SITES + 1,
        description="each hospital's cap, the mask hospital last; null: none binds",
    )
    mask_test: int = Field(
        40, ge=1, le=100_000, description="mask images held back to test the lungs"
    )
    cpus_per_site: float = Field(1.0, ge=1e-3, le=1024.0)
    gpus_per_site: float = Field(0.0, ge=0.0, le=1024.0)

    @model_validator(mode="after")
    def _a_cap_for_each_hospital(self) -> "SimulationPlan":
        caps = self.lifetime_epsilon
        if caps is not None and (len(caps) < self.sites or min(caps, default=1.0) <= 0):
            raise ValueError(
                f"lifetime_epsilon needs a number above 0 for each of {self.sites} sites, and one "
                "more for a hospital of masks"
            )
        return self
