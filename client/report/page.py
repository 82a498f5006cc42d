"""The privacy report as one self-contained HTML page to read, print and sign."""

from pathlib import Path
from string import ascii_uppercase
from typing import Any

from client.report import policy_words, words
from client.report.facts import Message, PrivacyFacts
from client.report.plots import alternative, spending
from common.page import figure_source, render_page
from common.privacy_words import delta_text, epsilon_text, refusal

TEMPLATE = Path(__file__).parent / "templates" / "privacy.html.j2"
ACTIONS = {"train": "update of a round", "finish": "scores after the last round"}


def render(facts: PrivacyFacts) -> str:
    """The page as text; the same facts give the same page."""
    kinds, changes = message_kinds(facts.messages), facts.policy_changes
    return render_page(
        TEMPLATE,
        {
            "facts": facts,
            "private": f"epsilon {epsilon_text(facts.epsilon_private)}",
            "title": words.title(facts),
            "verdict": words.verdict(facts),
            "alarmed": not facts.bounded,
            "over_cap": words.over_cap(facts),
            "cards": _cards(facts),
            "meaning": words.meaning(facts),
            "guesses": words.limits_of_guessing(facts),
            "made_at": _time(facts.made_at),
            "delta": delta_text(facts.delta),
            "unit": words.UNITS[facts.unit],
            "delta_reason": words.delta_reason(facts),
            "how": words.how(facts),
            "serving": words.serving(facts),
            "runs": _runs(facts),
            "figure": _figure(facts),
            "messages": _messages(facts, kinds),
            "total_bytes": f"{sum(message.bytes for message in facts.messages):,}",
            "kinds": [(letter, ", ".join(keys) or "nothing") for keys, letter in kinds.items()],
            "refusals": _refusals(facts),
            "policy": policy_words.rows(facts.policy),
            "changes": [(_time(c.at), policy_words.change(c.changed)) for c in changes],
            "events": [(_time(n.at), _EVENTS[n.kind], n.text) for n in facts.notes],
            "audit": words.audit_text(facts),
            "audit_fails": facts.audit is not None and facts.audit.contradicts,
            "chain": _chain(facts),
            "limits": words.limits(facts),
            "glossary": words.GLOSSARY,
        },
    )


_EVENTS = {"serving": "heads fitted without noise, to stay here", "data": "the patients changed"}


def message_kinds(messages: tuple[Message, ...]) -> dict[tuple[str, ...], str]:
    """A letter for every distinct list of keys: most messages hold the same."""
    distinct = dict.fromkeys(message.keys for message in messages)
    return {keys: _letters(number) for number, keys in enumerate(distinct)}


def _letters(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    first, second = divmod(number, len(ascii_uppercase))
    return ("" if first == 0 else _letters(first - 1)) + ascii_uppercase[second]


def _time(at: str) -> str:
    """A UTC time to the second, without the T."""
    return at[:19].replace("T", " ")


def _cards(facts: PrivacyFacts) -> list[dict[str, str]]:
    """The numbers at the top of the page."""
    spent = {"name": "Epsilon spent", "value": epsilon_text(facts.epsilon), "note": "all runs"}
    cap = {"name": "Cap of this site", "value": "none", "note": "no private plan may run"}
    cards = [spent, cap]
    if facts.cap is not None:
        cap |= {"value": f"{facts.cap:g}", "note": "for its whole life"}
        if facts.epsilon is not None:
            left = max(0.0, facts.cap - facts.epsilon)
            # Rounded down: what is left is never said to be more than it is.
            value = f"{int(round(left * 1000, 6)) / 1000:,.3f}"
            cards.append({"name": "Left", "value": value, "note": "cap minus spent"})
    cards.append({"name": "Unit", "value": facts.unit, "note": "one more or one less"})
    return cards


def _runs(facts: PrivacyFacts) -> list[dict[str, Any]]:
    return [
        {
            "name": run.plan_name,
            "plan": run.plan_sha256,
            "days": _days(run.first_at, run.last_at),
            "rounds": f"{run.rounds:,}",
            "mechanisms": [
                f"{words.PURPOSES.get(item.purpose, item.purpose)}: {words.mechanism(item)}"
                for item in run.mechanisms
            ],
            "unsent": words.unsent(run),
            "alone": epsilon_text(run.epsilon),
            "after": epsilon_text(run.epsilon_after),
        }
        for run in facts.runs
    ]


def _days(first: str, last: str) -> str:
    return first[:10] if first[:10] == last[:10] else f"{first[:10]} to {last[:10]}"


def _figure(facts: PrivacyFacts) -> dict[str, str] | None:
    if not facts.course:
        return None
    alt = alternative(facts, epsilon_text(facts.epsilon))
    return {"source": figure_source(spending(facts)), "alt": alt}


def _messages(facts: PrivacyFacts, kinds: dict[tuple[str, ...], str]) -> list[dict[str, str]]:
    return [
        {
            "at": _time(message.at),
            "plan": facts.plan_name(message.plan_sha256),
            "round": str(message.round),
            "action": ACTIONS.get(message.action, message.action),
            "kind": kinds[message.keys],
            "bytes": f"{message.bytes:,}",
            "sha256": message.sha256,
        }
        for message in facts.messages
    ]


def _refusals(facts: PrivacyFacts) -> list[dict[str, str]]:
    return [
        {
            "at": _time(item.at),
            "plan": facts.plan_name(item.plan_sha256),
            "round": str(item.round),
            "code": item.code,
            "reason": refusal(item.code),
        }
        for item in facts.refusals
    ]


def _chain(facts: PrivacyFacts) -> list[tuple[str, str]]:
    chain = facts.chain
    return [
        ("Ledger", chain.ledger),
        ("Begun (UTC)", _time(chain.opened_at)),
        ("Entries", f"{chain.entries:,}"),
        ("Head (hash of the last entry)", chain.head),
        ("Patients (hash of their identities)", chain.dataset or "not looked at yet"),
        ("Accountant of this report", facts.accountant),
        ("Accountants when charged", "; ".join(facts.accountants) or "none"),
        *((name, value) for name, value in facts.versions.items()),
    ]
