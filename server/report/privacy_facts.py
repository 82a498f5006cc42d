"""What the sites chose to disclose of their privacy, read from a run folder.

Everything is the sites' own word, mirrored from round to round. What the server can check is
whether a site's ledger ever went backwards: its number of entries can only grow, and the same
number of entries must have the same hash.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.checkpoint import read_object
from common.errors import InputError, Problem
from common.plan import Plan, load_plan
from common.update import Spent
from server.run_folder import ROUNDS, STATE

SCHEMA = 1


class Fact(BaseModel):
    """A part of the facts: immutable, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Told(Fact):
    """What a site told in one round."""

    round: int
    spent: Spent


class Refused(Fact):
    """A code that a site answered instead of an update. round None: at the finish."""

    round: int | None
    code: str


class SitePrivacy(Fact):
    """One site: what it told, round by round, and what it refused.

    rounds: those of which the server took an update, whether or not the site told its spend.
    warnings: what does not fit together in what it told.
    """

    name: str
    rounds: tuple[int, ...]
    told: tuple[Told, ...]
    refused: tuple[Refused, ...]
    warnings: tuple[str, ...]

    @property
    def last(self) -> Spent | None:
        """The latest word on the site's budget; None when it told nothing."""
        return self.told[-1].spent if self.told else None


class FederationPrivacy(Fact):
    """Everything that the federation's privacy report says."""

    schema_version: int = Field(SCHEMA, serialization_alias="schema")
    plan_name: str
    plan_sha256: str
    status: str
    rounds_done: int
    rounds_planned: int
    privacy: dict[str, Any]
    sites: tuple[SitePrivacy, ...]

    @property
    def private(self) -> bool:
        """Whether the plan asks for differential privacy."""
        return bool(self.privacy["mode"] != "off")


class _SiteLine(Fact):
    spent: Spent | None = None


class _Failure(Fact):
    site: str
    code: str = ""


class _Line(Fact):
    round: int
    sites: dict[str, _SiteLine] = {}
    failed: tuple[_Failure, ...] = ()


def collect(run: Path) -> FederationPrivacy:
    """Read a run folder. Raises InputError when it is none, or holds what no run writes."""
    state = read_object(run / STATE)
    plan: Plan = load_plan(run / "plan.yaml")
    lines = _lines(run / ROUNDS)
    finish = state.get("finish") or {}
    try:
        late = [_Failure.model_validate(item) for item in finish.get("failed", [])]
    except (ValidationError, AttributeError) as error:
        raise InputError(_problem(run / STATE, "key 'finish'", error)) from None
    names = {site for line in lines for site in line.sites}
    names |= {item.site for line in lines for item in line.failed} | {item.site for item in late}
    return FederationPrivacy(
        plan_name=plan.name,
        plan_sha256=plan.sha256,
        status=str(state.get("status")),
        rounds_done=int(state.get("round", 0)),
        rounds_planned=plan.federation.rounds,
        privacy=plan.privacy.model_dump(mode="json"),
        sites=tuple(_site(name, lines, late) for name in sorted(names)),
    )


def _lines(file: Path) -> list[_Line]:
    if not file.exists():
        return []  # a run that has not begun its first round
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(_problem(file, "", error)) from None
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(_Line.model_validate(json.loads(text)))
        except ValueError as error:  # ValidationError is one, too
            raise InputError(_problem(file, f"line {number}", error)) from None
    return lines


def _problem(file: Path, at: str, error: Exception) -> Problem:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        found, allowed = f"{key} = {first['input']!r}"[:120], first["msg"]
    else:
        found, allowed = " ".join(str(error).split())[:120], "what a run writes"
    return Problem(str(file), at, found, allowed, "Restore the run folder.")


def _site(name: str, lines: Sequence[_Line], late: Iterable[_Failure]) -> SitePrivacy:
    told = []
    for line in lines:
        spent = line.sites[name].spent if name in line.sites else None
        if spent is not None:
            told.append(Told(round=line.round, spent=spent))
    refused = [
        Refused(round=line.round, code=item.code)
        for line in lines
        for item in line.failed
        if item.site == name
    ]
    refused += [Refused(round=None, code=item.code) for item in late if item.site == name]
    return SitePrivacy(
        name=name,
        rounds=tuple(line.round for line in lines if name in line.sites),
        told=tuple(told),
        refused=tuple(refused),
        warnings=tuple(mirror_warnings(told)),
    )


def mirror_warnings(told: Sequence[Told]) -> list[str]:
    """What a ledger that only grows can't have done between two rounds."""
    warnings = []
    heads: dict[int, str] = {}
    before: Told | None = None
    for now in told:
        spent, entries = now.spent, now.spent.entries
        if before is not None and entries < before.spent.entries:
            warnings.append(
                f"round {now.round}: the ledger went back from {before.spent.entries} to "
                f"{entries} entries since round {before.round}"
            )
        if heads.get(entries, spent.head) != spent.head:
            warnings.append(
                f"round {now.round}: at {entries} entries, the ledger has another hash than the "
                "site told before"
            )
        heads[entries] = spent.head
        if before is not None and _fell(before.spent, spent):
            warnings.append(
                f"round {now.round}: the epsilon told fell from {_text(before.spent.epsilon)} to "
                f"{_text(spent.epsilon)} at the same delta"
            )
        before = now
    return warnings


def _fell(before: Spent, now: Spent) -> bool:
    if before.delta != now.delta or now.epsilon is None:
        return False
    # Half a per cent: the accountant's own error may move by as much.
    return before.epsilon is None or now.epsilon < 0.995 * before.epsilon


def _text(epsilon: float | None) -> str:
    return "no bound" if epsilon is None else f"{epsilon:.3f}"
