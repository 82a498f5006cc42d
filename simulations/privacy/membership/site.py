"""The audit of a site: every mechanism that its ledger charged is attacked, one after the other."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.privacy.choose import open_engine
from client.settings import EngineName
from client.ward import pick_device
from common.errors import InputError, Problem
from common.model import build_model
from common.plan import Plan, load_plan
from simulations.privacy.membership.attack import Opening
from simulations.privacy.membership.audit import Effort, audit_mechanism, plays_of
from simulations.privacy.membership.mechanism import Audited, Mechanism, chosen, read_audited


@dataclass(frozen=True)
class SiteAudit:
    """What is asked: a site's folder or ledger, and how it is attacked.

    plan: a plan file that the ledger charged, for its features; number: of one mechanism, from 1;
    rounds: of a play; engine: instead of the site's.
    """

    site: Path
    plan: Path | None = None
    number: int | None = None
    rounds: int = 1
    engine: EngineName | None = None
    effort: Effort = field(default_factory=Effort)


@dataclass(frozen=True)
class Ready:
    """What is attacked, all input read and checked."""

    audited: Audited
    mechanisms: Sequence[Mechanism]
    opening: Opening
    effort: Effort

    @property
    def plays(self) -> int:
        """How often `advance` will be called."""
        return plays_of(self.effort) * len(self.mechanisms)


def get_ready(asked: SiteAudit) -> Ready:
    """Read site, ledger and plan. Raises InputError for whatever is wrong with them."""
    audited = read_audited(asked.site)
    mechanisms = chosen(audited, asked.number)
    for mechanism in mechanisms:
        asked.effort.checked(asked.rounds, mechanism.charges)
    like = None if asked.plan is None else _charged_plan(asked.plan, audited)
    engine = audited.engine if asked.engine is None else asked.engine
    if engine == "auto" and like is not None:
        engine = _chosen_engine(like, audited)
    opening = Opening(
        audited.policy, engine, audited.device, audited.physical_batch, asked.rounds, like
    )
    return Ready(audited, mechanisms, opening, asked.effort)


def audit_site(ready: Ready, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Attack each mechanism. Returns a dict that is ready for audit.json.

    epsilon_lower, accounted: of the mechanism whose bound comes nearest to what is charged, at
    the policy's delta; plays: that looked at updates, of all. advance: called after every play.
    Raises BlindError when the played sites do not answer.
    """
    started = time.monotonic()
    found = [
        audit_mechanism(mechanism, ready.opening, ready.effort, advance)
        for mechanism in ready.mechanisms
    ]
    worst = max(found, key=lambda each: float(each["epsilon_lower"] - each["accounted"]))
    audited, policy = ready.audited, ready.audited.policy
    return {
        "site": audited.name,
        "ledger": audited.ledger.name,
        "simulated": audited.simulated,
        "epsilon_total": None if math.isinf(audited.epsilon) else audited.epsilon,
        "cap": policy.epsilon,
        "delta": policy.delta,
        "unprotected": audited.unprotected,
        "epsilon_lower": worst["epsilon_lower"],
        "accounted": worst["accounted"],
        "confidence": ready.effort.confidence,
        "plays": sum(each["plays"] for each in found),
        "holds": all(each["holds"] for each in found),
        "leaks": list(dict.fromkeys(leak for each in found for leak in each["leaks"])),
        "mechanisms": found,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
    }


def _charged_plan(file: Path, audited: Audited) -> Plan:
    """A plan that this ledger charged; another one would speak of another mechanism."""
    plan = load_plan(file)
    if plan.sha256 not in audited.plans:
        known = ", ".join(f"{name} ({sha[:12]})" for sha, name in audited.plans.items())
        found, step = f"{plan.name} ({plan.sha256[:12]})", "Give the plan as it was run."
        raise InputError(Problem(str(file), "", found, f"a plan that was charged: {known}", step))
    return plan


def _chosen_engine(plan: Plan, audited: Audited) -> EngineName:
    """What "auto" means for the plan's own network: the audit's is small."""
    model = build_model(plan, pretrained=False)
    engine = open_engine("auto", model, pick_device(audited.device), audited.physical_batch)
    name = engine.name
    engine.close()
    return "vmap" if name == "vmap" else "loop"
