"""What was spent, from the ledger's entries: per run (plan) and charge by charge."""

import math
from collections.abc import Iterable, Sequence

from client.ledger import Entry, charge_of, reserves
from client.privacy.accounting import epsilon
from client.report.facts import Mechanism, Point, Run

MOST_POINTS = 48  # epsilon takes up to half a second each, and a page shows no more


def finite(value: float) -> float | None:
    """Epsilon as the facts hold it: None where there is no bound."""
    return None if math.isinf(value) else value


def runs(entries: Sequence[Entry], delta: float) -> tuple[Run, ...]:
    """One run a plan, in the order in which they first charged something."""
    charged = reserves(entries)
    sent = {(e.body["plan"], e.body["round"]) for e in entries if _is_update(e)}
    return tuple(_run(plan, charged, sent, delta) for plan in plans(charged))


def _is_update(entry: Entry) -> bool:
    return entry.kind == "sent" and entry.body["action"] == "train"


def plans(charged: Iterable[Entry]) -> list[str]:
    """The plans' hashes, in the order of their first charge."""
    return list(dict.fromkeys(str(entry.body["plan"]) for entry in charged))


def _run(plan: str, charged: list[Entry], sent: set[tuple[str, int]], delta: float) -> Run:
    own = [entry for entry in charged if entry.body["plan"] == plan]
    until = charged[: charged.index(own[-1]) + 1]
    rounds = sorted({e.body["round"] for e in own if e.body["purpose"] == "training"})
    return Run(
        plan_name=own[0].body["plan_name"],
        plan_sha256=plan,
        first_at=own[0].at,
        last_at=own[-1].at,
        unit=own[-1].body["unit"],
        rounds=len(rounds),
        charges=len(own),
        unsent=tuple(number for number in rounds if (plan, number) not in sent),
        mechanisms=_mechanisms(own),
        epsilon=finite(epsilon(map(charge_of, own), delta)),
        epsilon_after=finite(epsilon(map(charge_of, until), delta)),
    )


def _mechanisms(own: Iterable[Entry]) -> tuple[Mechanism, ...]:
    steps: dict[tuple[str, float, float, float], int] = {}
    for entry in own:
        body = entry.body
        noise, rate = float(body["noise_multiplier"]), float(body["sampling_rate"])
        key = (str(body["purpose"]), noise, rate, float(body["clipping_norm"]))
        steps[key] = steps.get(key, 0) + int(body["steps"])
    return tuple(
        Mechanism(
            purpose=purpose, noise_multiplier=noise, sampling_rate=rate, clipping_norm=clip, steps=n
        )
        for (purpose, noise, rate, clip), n in steps.items()
    )


def course(entries: Sequence[Entry], delta: float) -> tuple[Point, ...]:
    """Epsilon after each charge; of many charges, after some, among them each run's last."""
    charged = reserves(entries)
    order = plans(charged)
    points = []
    for number in chosen([str(entry.body["plan"]) for entry in charged]):
        entry = charged[number - 1]
        value = epsilon(map(charge_of, charged[:number]), delta)
        points.append(
            Point(
                charges=number,
                run=order.index(entry.body["plan"]),
                round=entry.body["round"],
                epsilon=finite(value),
            )
        )
    return tuple(points)


def chosen(charged_plans: Sequence[str]) -> list[int]:
    """Which charges, counted from 1, the course shows: all of a few, else about MOST_POINTS."""
    total = len(charged_plans)
    step = max(1, math.ceil(total / MOST_POINTS))
    last = {plan: number for number, plan in enumerate(charged_plans, 1)}
    return sorted({*range(step, total + 1, step), *last.values()})
