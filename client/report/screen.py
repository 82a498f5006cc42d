"""What `consilium-site` prints: tables for a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.ledger import Entry
from client.report.facts import PrivacyFacts
from client.report.projection import Projection
from client.report.words import verdict
from common.privacy_words import delta_text, epsilon_text


def print_ledger(console: Console, entries: Sequence[Entry]) -> None:
    """Every entry in one line, however wide the terminal is."""
    for entry in entries:
        at = entry.at[:19].replace("T", " ")
        line = f"{entry.number:>5}  {at}  {entry.sha256[:12]}  {entry.kind:<8} {describe(entry)}"
        console.print(Text(line.rstrip()))


def describe(entry: Entry) -> str:
    """An entry's body in a few words."""
    body = entry.body
    if entry.kind == "reserve":
        steps = "1 step" if body["steps"] == 1 else f"{body['steps']} steps"
        noise = f"noise {body['noise_multiplier']:g}" if body["noise_multiplier"] else "no noise"
        return (
            f"{body['purpose']}, {body['plan_name']} round {body['round']}: {steps}, "
            f"{noise}, rate {body['sampling_rate']:.4g}"
        )
    if entry.kind == "sent":
        return f"{body['action']} round {body['round']}: {body['bytes']:,} bytes"
    if entry.kind == "refused":
        return f"{body['action']} round {body['round']}: {body['code']}"
    if entry.kind == "open":
        plays = ", simulated: it protects nobody" if body["simulated"] else ""
        return f"unit {body['unit']}{plays}"
    if entry.kind == "serving":
        return f"heads fitted without noise after round {body['round']}"
    if entry.kind == "policy":
        cap = body["policy"].get("epsilon")
        return "no cap" if cap is None else f"cap {cap:g}"
    return ""


def print_spend(console: Console, spent: float, delta: float, cap: float | None) -> None:
    """Epsilon in total, in one line."""
    limit = "no cap is set" if cap is None else f"cap {cap:g}"
    console.print(f"epsilon {epsilon_text(spent)} at delta {delta_text(delta)}; {limit}")


def print_facts(console: Console, facts: PrivacyFacts) -> None:
    """The report's answer in one sentence."""
    console.print(Text(verdict(facts)))


def print_projection(console: Console, found: Projection) -> None:
    """Epsilon after each round, and whether the site would take part."""
    console.print(
        Text(
            f"plan {found.plan_name} ({found.plan_sha256[:12]}) at {found.site}: noise "
            f"{found.noise_multiplier:g}, rate {found.sampling_rate:.4g}, {found.rounds} rounds of "
            f"{found.steps_per_round} steps, clipping norm {found.clipping_norm:g}, unit "
            f"{found.unit}"
        )
    )
    console.print(f"spent before: epsilon {epsilon_text(found.spent)} at {delta_text(found.delta)}")
    if found.charged_rounds:
        console.print(f"rounds up to {found.charged_rounds} are already in the ledger")
    table = Table("after round", "epsilon", "", box=None, pad_edge=False)
    for row in found.after:
        over = found.binds_in_round is not None and row.round >= found.binds_in_round
        table.add_row(str(row.round), epsilon_text(row.epsilon), "over the cap" if over else "")
    console.print(table)
    for line in decision(found):
        console.print(Text(line))


def decision(found: Projection) -> list[str]:
    """What the site would do, in words."""
    if found.refusal is not None:
        return [f"This site refuses the plan ({found.refusal_code}): {found.refusal}"]
    if found.cap is None:
        return ["This site has set no cap, so it refuses every private plan (no-budget)."]
    left = found.rounds - found.charged_rounds
    if found.binds_in_round is None:
        if left == 0:
            return ["Every round of this plan is already charged."]
        return [f"The cap of {found.cap:g} covers the whole plan."]
    lines = [
        f"The cap of {found.cap:g} binds in round {found.binds_in_round}: {found.fits_steps:,} of "
        f"{left * found.steps_per_round:,} steps fit, {found.fits_rounds} whole rounds."
    ]
    if found.accepted:
        return [*lines, "This site takes part until then (policy: join)."]
    return [*lines, "This site refuses the plan before its first step (budget-spent)."]
