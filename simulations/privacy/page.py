"""The planner's answer for people: a table in the terminal, a page, and the same as JSON."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.page import figure_source, render_page, write_page
from simulations.privacy.planner import MOST_PLANS, Answer, Choice
from simulations.privacy.plots import noise_figure, spending_figure

TEMPLATE = Path(__file__).parent / "templates" / "plan.html.j2"


def steps_text(answer: Answer, choice: Choice) -> str:
    """The steps that the cap allows, in words where the planner stopped counting."""
    if choice.within_cap is None:
        return "-"
    most = choice.within_cap >= MOST_PLANS * answer.total_steps
    return f"{'≥ ' if most else ''}{choice.within_cap:,}"


def number(value: float) -> str:
    """Three significant digits; "no bound" for what is not finite."""
    return "no bound" if value == float("inf") else f"{value:.3g}"


def print_answer(answer: Answer, console: Console) -> None:
    """The table, and what to expect of each choice."""
    question = answer.question
    console.print(
        f"{question.patients:,} patients, {question.rounds} rounds of {question.steps} steps, "
        f"{question.batch} patients a step on average (rate {answer.sampling_rate:.4g}), "
        f"delta {answer.delta:g}, clipping norm {question.clip:g}"
    )
    table = Table()
    headings = ["chosen for", "noise multiplier", "epsilon of the plan", "sigma C / B"]
    headings += ["sigma / B x 1e4"]
    if question.cap is not None:
        headings += [f"steps within {question.cap:g} (of {answer.total_steps:,})"]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "chosen for" else "right")
    for choice in answer.choices:
        cells = [choice.name, f"{choice.noise_multiplier:.3f}", number(choice.epsilon)]
        cells += [number(choice.deviation), number(choice.relative)]
        table.add_row(*cells, *([] if question.cap is None else [steps_text(answer, choice)]))
    console.print(table)
    for choice in answer.choices:
        console.print(f"{choice.name}: {choice.hint}")
    console.print(f"accountant: {answer.accountant}; neighbours differ in one patient")


def render(answer: Answer) -> str:
    """The page as text."""
    context = {
        "answer": answer,
        "question": answer.question,
        "rows": [
            {
                "choice": choice,
                "epsilon": number(choice.epsilon),
                "deviation": number(choice.deviation),
                "relative": number(choice.relative),
                "steps": steps_text(answer, choice),
                "over": over_cap(answer, choice),
            }
            for choice in answer.choices
        ],
        "spending": figure_source(spending_figure(answer)),
        "noise": figure_source(noise_figure(answer)),
    }
    return render_page(TEMPLATE, context)


def over_cap(answer: Answer, choice: Choice) -> bool:
    """Whether the whole plan with this noise is over the cap."""
    cap = answer.question.cap
    return cap is not None and choice.epsilon > cap


def write_answer(answer: Answer, folder: Path) -> Path:
    """Write privacy-plan.html and privacy-plan.json. Returns the page's path."""
    page, _ = write_page(folder, "privacy-plan", render(answer), answer.to_json())
    return page
