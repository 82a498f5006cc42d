"""The audit of a site for people: lines in the terminal, a page, and the same as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from common.page import figure_source, render_page, write_page
from common.privacy_words import epsilon_text
from simulations.privacy.membership.audit import LEAST_CLOCK
from simulations.privacy.membership.plots import curve_figure, scores_figure
from simulations.privacy.membership.site import Ready

TEMPLATE = Path(__file__).parents[1] / "templates" / "audit.html.j2"
LIMITS = (
    "A lower bound can show a fault; that none was found proves no protection.",
    "The plays are on made-up patients and the smallest network. Noise, clipping, sampling, "
    "ledger, policy and the way of an answer are the ones that the site runs.",
    "One play is as many rounds and steps as said above, and is compared with what they cost. That "
    "all rounds of the ledger cost what it says is the accountant’s word, which the audit does not "
    "try.",
    "Times are compared above the resolution that is named; finer ones are the machine’s own.",
)
AUTO = (
    "Engine auto: which one that is follows from the size of the network, and here from that of "
    "the smallest one. With --plan the audit takes the one that the plan’s own network gets."
)


def verdict(result: Mapping[str, Any]) -> str:
    """The outcome in one sentence."""
    if result["holds"]:
        return "No leak was found: nothing that left told more than was charged."
    return "A leak was found: " + "; ".join(result["leaks"]) + "."


def print_ready(ready: Ready, console: Console) -> None:
    """What the ledger charged, and what is going to be attacked."""
    audited = ready.audited
    console.print(
        f"{'simulated ' if audited.simulated else ''}site {audited.name}: epsilon "
        f"{epsilon_text(audited.epsilon)} at delta {audited.policy.delta:g} charged in all",
        soft_wrap=True,
    )
    if audited.unprotected:
        console.print(
            f"{audited.unprotected} charges had no noise: there is nothing to audit in them"
        )
    for number, mechanism in enumerate(audited.mechanisms, 1):
        left = "" if mechanism in ready.mechanisms else " (not audited now)"
        console.print(f"{number}. {mechanism.text}{left}", soft_wrap=True)
    opening = ready.opening
    heads = "shared" if opening.like is None else opening.like.heads
    console.print(
        f"engine {opening.engine}, heads {heads}; {ready.plays} plays on made-up patients"
    )


def print_mechanism(found: Mapping[str, Any], console: Console) -> None:
    """What the plays against one mechanism showed."""
    words = found["words"]
    first = found["guesses"][0]
    same = "differ" if words["differ"] else "the same"
    console.print(
        f"  keys, codes, sizes: {same} in {words['plays']} plays\n"
        f"  times: {times_text(found['times'])}\n"
        f"  {_SHOWN[found['mechanism']['purpose']]}: {first['right']} of "
        f"{first['there'] + first['absent']} guesses right by {first['by']}\n"
        f"  epsilon of what was played is at least {found['epsilon_lower']:.2f} "
        f"({found['confidence']:.0%} confidence); charged {epsilon_text(found['accounted'])} at "
        f"delta {found['delta']:g}",
        soft_wrap=True,
    )


def times_text(times: Mapping[str, Any] | None) -> str:
    """What the times of answers told."""
    if times is None:
        return f"not tried: that takes {10 * LEAST_CLOCK} plays or more"
    return (
        f"{times['right']} of {times['plays']} guesses right, of which up to {times['allowed']} "
        f"are chance; answers came {1000 * times['earliest']:+.0f} to "
        f"{1000 * times['latest']:+.0f} ms from their deadline of {times['deadline']:.2f} s, and "
        f"differences below {1000 * times['resolution']:.0f} ms count as none"
    )


_SHOWN = {"training": "updates", "metrics": "noised scores"}


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """What every mechanism showed, and the verdict."""
    for number, found in enumerate(result["mechanisms"], 1):
        console.print(f"{number}. {found['mechanism']['text']}", soft_wrap=True)
        print_mechanism(found, console)
    console.print(verdict(result), soft_wrap=True)
    console.print(LIMITS[0])


def render(result: Mapping[str, Any]) -> str:
    """The page as text."""
    context = {
        "result": result,
        "verdict": verdict(result),
        "total": epsilon_text(result["epsilon_total"]),
        "sections": [_section(found) for found in result["mechanisms"]],
        "charged": epsilon_text(result["accounted"]),
        "limits": [*LIMITS, *([AUTO] if _by_auto(result) else [])],
        "plural": len(result["mechanisms"]) > 1,
    }
    return render_page(TEMPLATE, context)


def write_result(result: Mapping[str, Any], file: Path) -> Path:
    """Write the result to a JSON file, and a page of the same name beside it; return the page."""
    page, data = write_page(file.parent, file.stem, render(result), result)
    if data != file:
        data.replace(file)
    return page


def _section(found: Mapping[str, Any]) -> dict[str, Any]:
    mechanism, times = found["mechanism"], found["times"]
    return {
        "found": found,
        "mechanism": mechanism,
        "title": mechanism["text"],
        "charged": epsilon_text(found["accounted"]),
        "part": _part(mechanism),
        "ways": found["guesses"],
        "curve": [
            {
                "delta": f"{point['delta']:g}",
                "lower": f"{point['lower']:.3f}",
                "accounted": epsilon_text(point["accounted"]),
                "over": point["lower"] > point["accounted"],
            }
            for point in found["curve"]
        ],
        "scores": figure_source(scores_figure(found)),
        "bounds": figure_source(curve_figure(found)),
        "times": times_text(times),
        "times_tell": times is not None and times["right"] > times["allowed"],
        "shown": _SHOWN[mechanism["purpose"]],
    }


def _by_auto(result: Mapping[str, Any]) -> bool:
    return any(found["mechanism"]["engine"] == "auto" for found in result["mechanisms"])


def _part(mechanism: Mapping[str, Any]) -> str:
    """How much of what the ledger charged a play is."""
    rounds, charges = mechanism["rounds_played"], mechanism["charges"]
    text = f"{rounds} of {charges} charge{'s' if charges > 1 else ''}"
    if mechanism["steps_played"] < mechanism["steps"]:
        text += f", with {mechanism['steps_played']} of its {mechanism['steps']} steps"
    return text
