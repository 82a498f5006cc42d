"""What the entries of a ledger say was charged, and what was promised and is not used yet."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from client.ledger.chain import Entry
from client.privacy.accounting import Charge


def reserves(entries: Iterable[Entry]) -> list[Entry]:
    """The entries that charge something, in order."""
    return [entry for entry in entries if entry.kind == "reserve"]


def charge_of(entry: Entry) -> Charge:
    """What a "reserve" entry charges. Raises KeyError, TypeError or ValueError for another."""
    body = entry.body
    return Charge(body["noise_multiplier"], body["sampling_rate"], body["steps"])


def rounds_charged(entries: Iterable[Entry], plan_sha256: str) -> set[int]:
    """The rounds of a plan for which training was charged."""
    return {
        entry.body["round"]
        for entry in reserves(entries)
        if entry.body["plan"] == plan_sha256 and entry.body["purpose"] == "training"
    }


def promised(
    entries: Sequence[Entry], plan_sha256: str, days: float, now: datetime | None = None
) -> list[Charge]:
    """What other plans that were admitted as a whole have not used yet of what they asked for.

    plan_sha256: the plan that asks. A promise lapses `days` after its plan's last charge: a plan
    that nobody goes on with must not keep its share of the budget for life.
    """
    now, found = now or datetime.now(UTC), []
    by_plan: dict[str, list[Entry]] = {}
    for entry in reserves(entries):
        by_plan.setdefault(entry.body["plan"], []).append(entry)
    by_plan.pop(plan_sha256, None)
    for own in by_plan.values():
        trained = [entry for entry in own if entry.body["purpose"] == "training"]
        age = now - datetime.fromisoformat(own[-1].at)
        if not trained or age.total_seconds() > days * 86_400:
            continue
        body = trained[-1].body
        rounds = body["rounds"] - len({entry.body["round"] for entry in trained})
        if rounds > 0:
            steps = body["steps"] * rounds
            found.append(Charge(body["noise_multiplier"], body["sampling_rate"], steps))
        scores = body["scores"] - (len(own) - len(trained))
        if scores > 0:
            found.append(Charge(body["score_noise"], 1.0, scores))
    return found
