"""The facts of a site's privacy report: what the HTML page shows and `privacy.json` holds.

Everything is read from the settings and the verified ledger; epsilon is computed anew from the
ledger's charges, never taken from what somebody wrote down. None is "no bound" or "unknown".
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from client.policy import Policy

SCHEMA = 1


class Fact(BaseModel):
    """A part of the facts: immutable, finite numbers, nothing unnamed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Mechanism(Fact):
    """Steps that were charged alike. noise_multiplier 0: no noise.

    sampling_rate: chance of a unit to be in a step. clipping_norm: L2, of a unit's gradient (for
    metrics: the plan's, which a score does not use).
    """

    purpose: str
    noise_multiplier: float
    sampling_rate: float
    clipping_norm: float
    steps: int


class Run(Fact):
    """Everything charged for one plan.

    epsilon: of this run alone. epsilon_after: of everything up to the run's last charge.
    unsent: rounds that were charged although nothing left.
    """

    plan_name: str
    plan_sha256: str
    first_at: str
    last_at: str
    unit: str
    rounds: int
    charges: int
    unsent: tuple[int, ...]
    mechanisms: tuple[Mechanism, ...]
    epsilon: float | None
    epsilon_after: float | None


class Point(Fact):
    """Epsilon after so many charges; `run` counts `runs` from 0."""

    charges: int
    run: int
    round: int
    epsilon: float | None


class Message(Fact):
    """One message as it was recorded before it left."""

    at: str
    action: str
    plan_sha256: str
    round: int
    bytes: int
    keys: tuple[str, ...]
    sha256: str


class Refusal(Fact):
    """A request that the site turned down."""

    at: str
    action: str
    plan_sha256: str
    round: int
    code: str


class PolicyChange(Fact):
    """A policy that came into force; changed: key -> (before, after), empty for the first one."""

    at: str
    changed: dict[str, tuple[Any, Any]]


class Note(Fact):
    """A dated event: heads fitted without noise, or other patients."""

    at: str
    kind: Literal["serving", "data"]
    text: str


class Audit(Fact):
    """An empirical lower bound, from a dry run of the same code on made-up patients.

    canaries: of an audit of the private step alone. plays: of one against the whole way of an
    answer, with the mechanism of this ledger. holds: whether it found nothing at all.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    epsilon_lower: float = Field(ge=0.0)
    confidence: float = Field(gt=0.0, lt=1.0)
    canaries: int | None = Field(None, ge=1)
    plays: int | None = Field(None, ge=1)
    accounted: float = Field(ge=0.0)
    holds: bool = True
    leaks: tuple[str, ...] = ()
    at: str

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Audit":
        if (self.canaries is None) == (self.plays is None):
            raise ValueError("exactly one of canaries and plays")
        return self

    @property
    def contradicts(self) -> bool:
        """Whether the code leaked more than the accounting allows."""
        return not self.holds or self.epsilon_lower > self.accounted


class Chain(Fact):
    """The ledger's identity and the result of checking its chain of hashes."""

    ledger: str
    dataset: str
    opened_at: str
    entries: int
    head: str
    verified: bool


class PrivacyFacts(Fact):
    """Everything that the privacy report says.

    epsilon: of everything charged, at `delta` (the policy's); None when something ran without
    noise. epsilon_private: of the charges with noise alone, which bounds the total only when
    there are no others. policy_recorded: whether the ledger's last policy is the present one.
    """

    schema_version: int = Field(SCHEMA, serialization_alias="schema")
    site: str
    made_at: str
    simulated: bool
    unit: str
    neighbours: str = "one unit added or removed"
    nominal_units: int | None
    delta: float
    cap: float | None
    epsilon: float | None
    epsilon_private: float | None
    charges: int
    runs: tuple[Run, ...]
    course: tuple[Point, ...]
    messages: tuple[Message, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[Note, ...]
    policy: Policy
    policy_recorded: bool
    policy_changes: tuple[PolicyChange, ...]
    chain: Chain
    accountant: str
    accountants: tuple[str, ...]
    versions: dict[str, str]
    audit: Audit | None

    @property
    def bounded(self) -> bool:
        """Whether any number limits what left."""
        return self.epsilon is not None

    def plan_name(self, sha256: str) -> str:
        """A plan by the name that it was charged under, or the start of its hash."""
        names = {run.plan_sha256: run.plan_name for run in self.runs}
        return names.get(sha256, f"plan {sha256[:8]}")
