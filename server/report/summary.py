"""What `summary.json` and `rounds.jsonl` hold, as the report reads them.

Only `status` is required, so that a run which failed early still gets its report. Undefined is
None, never 0 or NaN. Keys that are not named here are kept and ignored.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import InputError, Problem

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A part of the summary: immutable, finite numbers, more keys allowed."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Estimate(Part):
    """A value and its 95 % interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    positives: Count | None = None


class Scores(Part):
    """One model (or the council) on the global test."""

    auroc: dict[str, Estimate] = {}
    macro_auroc: Share | None = None
    macro_low: Share | None = None
    macro_high: Share | None = None
    average_precision: dict[str, Estimate] | None = None

    def value(self, finding: str) -> float | None:
        """AUROC of a finding; None when undefined or not in the table."""
        return self.auroc[finding].value if finding in self.auroc else None

    def macro(self) -> Estimate:
        """The mean over the defined findings, as an estimate."""
        return Estimate(value=self.macro_auroc, low=self.macro_low, high=self.macro_high)


class Federated(Part):
    """The council of all heads, and each site's own heads, on the shared encoder."""

    council: Scores = Scores()
    personal: dict[str, Scores] = {}


class SiteFacts(Part):
    """What one hospital holds. ap_share: share of the images that are AP views."""

    patients: Count | None = None
    images: Count | None = None
    labelled: Count | None = None
    masks: Count | None = None
    ap_share: Share | None = None
    annotates: tuple[str, ...] = ()


class Lungs(Part):
    """Mean overlap of the lung masks on images held back; intervals where given."""

    dice: Share | None = None
    iou: Share | None = None
    dice_low: Share | None = None
    dice_high: Share | None = None
    iou_low: Share | None = None
    iou_high: Share | None = None
    images: Count | None = None


class DataFacts(Part):
    """Which data the run used, and the global test set."""

    name: str = ""
    synthetic: bool = False
    test_images: Count | None = None
    test_patients: Count | None = None


class Comparisons(Part):
    """Paired differences of macro AUROC, first minus second, on the same resamples."""

    council_vs_local_mean: Estimate | None = None
    council_vs_pooled: Estimate | None = None


class Calibration(Part):
    """How far the council's probabilities are from the observed frequencies."""

    ece: Share | None = None
    brier: Share | None = None


class OperatingPoint(Part):
    """A threshold frozen on validation data, and what it does on the test."""

    threshold: float
    sensitivity: Share | None = None
    specificity: Share | None = None
    ppv: Share | None = None
    npv: Share | None = None


class Cell(Part):
    """One finding in one subgroup."""

    value: Share
    positives: Count | None = None
    sensitivity: Share | None = None
    specificity: Share | None = None


class Subgroup(Part):
    """The council in one subgroup, e.g. kind "view", label "AP"; blank cells are None."""

    kind: str
    label: str
    images: Count
    macro_auroc: Share | None = None
    auroc: dict[str, Cell | None] = {}


class Summary(Part):
    """The whole of `summary.json`.

    cross_site: macro AUROC of the model of site i (rows) on the test population that resembles
    site j (columns); both in `cross_site_order`, by default the order of `sites`.
    reason: why a run failed. plan: the plan as JSON; plan_sha256: its name. remarks: what a
    person should know of the data.
    """

    status: str
    reason: str | None = None
    rounds: Count = 0
    seconds: float | None = None
    sites: dict[str, SiteFacts] = {}
    federated: Federated = Federated()
    local_only: dict[str, Scores] = {}
    pooled: Scores | None = None
    comparisons: Comparisons = Comparisons()
    lungs: Lungs | None = None
    cross_site: list[list[Share | None]] = []
    cross_site_order: list[str] | None = None
    bytes_per_round: float | None = None
    encoder_sha256: str | None = None
    plan: dict[str, Any] | None = None
    plan_sha256: str | None = None
    data: DataFacts = DataFacts()
    calibration: dict[str, Calibration] = {}
    operating_points: dict[str, OperatingPoint | None] = {}
    subgroups: list[Subgroup] = []
    remarks: tuple[str, ...] = ()

    @property
    def completed(self) -> bool:
        """Whether every round was done and the numbers are final."""
        return self.status == "completed"

    def cross_names(self) -> list[str]:
        """The hospitals of the cross-site matrix, in its order."""
        return list(self.sites) if self.cross_site_order is None else self.cross_site_order

    @model_validator(mode="after")
    def _square(self) -> "Summary":
        size = len(self.cross_names())
        if self.cross_site and [len(row) for row in self.cross_site] != [size] * size:
            raise ValueError(f"cross_site must be {size} rows of {size} numbers, one per site")
        return self


class SiteRound(Part):
    """One site in one round."""

    weight: float | None = None
    seconds: float | None = None
    metrics: dict[str, float | None] = {}


class Trouble(Part):
    """An update that was rejected, or a site that failed. `code` names the reason."""

    site: str
    code: str = Field("", validation_alias=AliasChoices("code", "reason"))
    detail: str = ""


class NotApplied(Part):
    """Why a round has left the model as it was."""

    code: str
    detail: str = ""


class Round(Part):
    """One line of `rounds.jsonl`."""

    round: int
    status: str = "done"
    not_applied: NotApplied | None = None
    seconds: float | None = None
    sites: dict[str, SiteRound] = {}
    rejected: list[Trouble] = []
    failed: list[Trouble] = []
    missing: list[str] = []
    bytes_up: Count | None = None
    bytes_down: Count | None = None


def read_summary(value: Mapping[str, Any]) -> Summary:
    """Check a summary. Raises InputError with every problem in it."""
    try:
        return Summary.model_validate(value)
    except ValidationError as error:
        raise InputError(_problems(error, "summary.json")) from None


def read_rounds(lines: Sequence[Mapping[str, Any]]) -> list[Round]:
    """Check the lines of `rounds.jsonl`. Raises InputError with the first bad line's problems."""
    rounds = []
    for number, line in enumerate(lines, 1):
        try:
            rounds.append(Round.model_validate(line))
        except ValidationError as error:
            raise InputError(_problems(error, f"rounds.jsonl line {number}")) from None
    return rounds


def _problems(error: ValidationError, file: str) -> list[Problem]:
    problems = []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        found = "nothing" if detail["type"] == "missing" else repr(detail["input"])[:80]
        allowed = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        problems.append(Problem(file, key, found, allowed, "Write it again from the run."))
    return problems
