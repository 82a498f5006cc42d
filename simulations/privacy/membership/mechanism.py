"""What is attacked: the private steps that a site's ledger charged, and how the site makes them.

Read from the site's folder, or from its ledger alone, which records the policy, too. Nothing is
written, and no image is looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.ledger import Entry, Ledger, LedgerError, reserves
from client.ledger.chain import canonical
from client.policy import Policy
from client.privacy.accounting import LEAST_NOISE, Charge, epsilon
from client.report.collect import ledger_path
from client.settings import EngineName, open_site_folder
from common.errors import InputError, Problem
from common.sections import Unit

Purpose = Literal["training", "metrics"]


@dataclass(frozen=True)
class Mechanism:
    """Charges that are all alike.

    purpose: a round's training, or a noised score. noise_multiplier: standard deviation of the
    noise / clipping norm (of a score: / 1). sampling_rate: chance of a unit to be in a step.
    steps: of one charge. charges: how many there are, of the plans `plans` (names).
    """

    purpose: Purpose
    unit: Unit
    noise_multiplier: float
    sampling_rate: float
    steps: int
    clipping_norm: float
    charges: int = 1
    plans: tuple[str, ...] = ()

    @property
    def charge(self) -> Charge:
        """What one of them is charged with."""
        return Charge(self.noise_multiplier, self.sampling_rate, self.steps)

    @property
    def text(self) -> str:
        """The mechanism in one line."""
        noise = f"noise multiplier {self.noise_multiplier:g}"
        times = f"{self.charges} charge{'s' if self.charges > 1 else ''}"
        if self.purpose == "metrics":
            return f"noised score: {noise}; {times}"
        return (
            f"training: {noise}, sampling rate {self.sampling_rate:.4g}, {self.steps} step"
            f"{'s' if self.steps > 1 else ''} a round, clipping norm {self.clipping_norm:g}; "
            f"{times}"
        )


@dataclass(frozen=True)
class Audited:
    """A site under audit: its words and its mechanisms, in the order of their first charge.

    engine, device: as its site.yaml says, "auto" where only the ledger is there. policy: what is in
    force, or was recorded last. epsilon: of everything charged, at the policy's delta; math.inf
    where something ran without noise, which `unprotected` charges did.
    """

    name: str
    ledger: Path
    simulated: bool
    engine: EngineName
    device: str
    physical_batch: int
    policy: Policy
    epsilon: float
    unprotected: int
    plans: Mapping[str, str]
    mechanisms: tuple[Mechanism, ...]


class _Body(BaseModel):
    """What is read of a "reserve" entry."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    purpose: Purpose
    unit: Unit
    plan_name: str
    plan: str
    noise_multiplier: float = Field(ge=0.0)
    sampling_rate: float = Field(gt=0.0, le=1.0)
    steps: int = Field(ge=1)
    clipping_norm: float = Field(gt=0.0)


def read_audited(path: Path) -> Audited:
    """A site's folder or its ledger file, the whole chain verified.

    Raises DataError for a folder without a proper site.yaml, InputError when there is no ledger
    or nothing private in it, LedgerError when it is not in order.
    """
    settings = None
    if path.is_dir():
        folder = open_site_folder(path)
        settings, ledger = folder.settings, ledger_path(folder)
    elif path.is_file():
        ledger = path
    else:
        allowed = "a site's folder with site.yaml and a ledger, or a ledger file"
        step = "For a simulated hospital that is RUN/sites/NAME."
        raise InputError(Problem(str(path), "", "nothing", allowed, step))
    entries = Ledger(ledger).entries()
    bodies = [_body(ledger, entry) for entry in reserves(entries)]
    found = mechanisms(bodies)
    if not found:
        _nothing_private(ledger, len(bodies))
    policy = settings.policy if settings is not None else _recorded(ledger, entries)
    return Audited(
        name=path.name if settings is None else settings.name,
        ledger=ledger,
        simulated=bool(entries[0].body["simulated"]),
        engine="auto" if settings is None else settings.engine,
        device="auto" if settings is None else settings.device,
        physical_batch=32 if settings is None else settings.physical_batch,
        policy=policy,
        epsilon=epsilon(Ledger(ledger).charges(), policy.delta),
        unprotected=sum(not _private(body) for body in bodies),
        plans={body.plan: body.plan_name for body in bodies},
        mechanisms=found,
    )


def mechanisms(bodies: Sequence["_Body"]) -> tuple[Mechanism, ...]:
    """The distinct mechanisms of charges with noise, in the order of their first charge."""
    found: dict[tuple[Any, ...], Mechanism] = {}
    for body in filter(_private, bodies):
        # A score does not clip by the plan's norm; the ledger keeps it for the record.
        clip = body.clipping_norm if body.purpose == "training" else 1.0
        one = Mechanism(
            body.purpose, body.unit, body.noise_multiplier, body.sampling_rate, body.steps, clip
        )
        key = (one.purpose, one.unit, *vars(one.charge).values(), clip)
        before = found.get(key, replace(one, charges=0))
        plans = tuple(dict.fromkeys((*before.plans, body.plan_name)))
        found[key] = replace(before, charges=before.charges + 1, plans=plans)
    return tuple(found.values())


def chosen(audited: Audited, number: int | None) -> list[Mechanism]:
    """All mechanisms, or the one with this number, counted from 1. Raises InputError."""
    if number is None:
        return list(audited.mechanisms)
    if not 1 <= number <= len(audited.mechanisms):
        allowed = f"1 to {len(audited.mechanisms)}, the mechanisms of {audited.ledger}"
        step = "Leave it out to see and audit all of them."
        raise InputError(Problem("command line", "--mechanism", f"{number}", allowed, step))
    return [audited.mechanisms[number - 1]]


def _private(body: _Body) -> bool:
    """Whether the accountant takes the charge for one with noise."""
    return body.noise_multiplier >= LEAST_NOISE


def _body(ledger: Path, entry: Entry) -> _Body:
    try:
        return _Body.model_validate(entry.body)
    except ValidationError as error:
        raise LedgerError(
            Problem(
                str(ledger),
                f"entry {entry.number}, key {'.'.join(map(str, detail['loc']))!r}",
                repr(detail["input"])[:80] if detail["type"] != "missing" else "nothing",
                detail["msg"].removeprefix("Input should be "),
                "Read it with the version of Consilium that wrote it.",
            )
            for detail in error.errors(include_url=False)
        ) from None


def _recorded(ledger: Path, entries: Sequence[Entry]) -> Policy:
    """The policy that the ledger recorded last: whoever charges has written one before."""
    recorded = [entry.body["policy"] for entry in entries if entry.kind == "policy"]
    try:
        return Policy.model_validate_json(canonical(recorded[-1]))
    except (IndexError, ValidationError) as error:
        found = "none" if isinstance(error, IndexError) else "one of another version"
        step = "Name the site's folder instead, whose site.yaml holds the policy."
        raise InputError(
            Problem(str(ledger), "entry 'policy'", found, "a recorded policy", step)
        ) from None


def _nothing_private(ledger: Path, charges: int) -> None:
    found = "no charge at all"
    if charges:
        found = f"{charges} charges, all without noise, which have no bound"
    allowed = "at least one charge of private training or of a noised score"
    step = "Let a plan with privacy.mode dp-sgd run first."
    raise InputError(Problem(str(ledger), "entries 'reserve'", found, allowed, step))
