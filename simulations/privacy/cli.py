"""The privacy commands of `consilium-sim`; simulations/cli.py registers them."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from simulations.options import AsJson, output

Delta = Annotated[float | None, typer.Option(help="default: 1 / (10 patients)")]
Cap = Annotated[float | None, typer.Option(help="lifetime epsilon: steps that it allows")]
Noise = Annotated[float | None, typer.Option(help="also try this noise multiplier")]


def planner_command(
    patients: Annotated[int, typer.Option(help="patients that the site trains on")],
    rounds: Annotated[int, typer.Option(help="rounds of the plan")],
    steps: Annotated[int, typer.Option(help="local steps in a round")],
    batch: Annotated[int, typer.Option(help="patients in a step, on average")],
    delta: Delta = None,
    clip: Annotated[float, typer.Option(help="clipping norm")] = 1.0,
    cap: Cap = None,
    noise: Noise = None,
    out: Annotated[Path | None, typer.Option(help="folder for a page with figures")] = None,
    as_json: AsJson = False,
) -> None:
    """What would privacy cost? Noise for epsilon 1, 3 and 8, and what to expect of it."""
    # Opacus and matplotlib are loaded only by the command that needs them.
    from simulations.privacy.page import print_answer, write_answer
    from simulations.privacy.planner import Question, answer

    found = answer(Question(patients, rounds, steps, batch, delta, clip, cap, noise))
    with output(as_json) as console:
        print_answer(found, console)
        if out is not None:
            console.print(f"page: {write_answer(found, out)}")
    if as_json:
        typer.echo(json.dumps(found.to_json(), allow_nan=False))


def audit_command(
    canaries: Annotated[int, typer.Option(help="made-up patients; more see more")] = 1000,
    noise: Annotated[float, typer.Option(help="noise multiplier")] = 8.0,
    sampling_rate: Annotated[float, typer.Option(help="chance of a canary in a step")] = 0.5,
    steps: Annotated[int, typer.Option(help="private steps")] = 20,
    delta: Annotated[float, typer.Option(help="delta")] = 1e-5,
    clip: Annotated[float, typer.Option(help="clipping norm")] = 1.0,
    engine: Annotated[
        Literal["auto", "loop", "opacus", "vmap"], typer.Option(help="as in site.yaml")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="write the result, e.g. audit.json")] = None,
    as_json: AsJson = False,
) -> None:
    """Does the private step leak more than accounted? Canaries through the real one."""
    from common.checkpoint import write_json
    from simulations.privacy.audit import Audit, AuditFailedError, run_audit

    audit = Audit(canaries, noise, sampling_rate, steps, delta, clip, engine)
    result = run_audit(audit)
    if out is not None:
        write_json(out, result)
    with output(as_json) as console:
        console.print(
            f"{result['canaries']:,} canaries, {steps} steps with noise multiplier {noise:g}, "
            f"sampling rate {sampling_rate:g}, engine {result['engine']}: {result['correct']} of "
            f"{result['guesses']} guesses right\n"
            f"epsilon is at least {result['epsilon_lower']:.2f} (95 % confidence); accounted "
            f"{result['accounted']:.2f} at delta {delta:g}\n"
            "A lower bound proves nothing good; one above the accounted epsilon proves a fault."
        )
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    if not result["holds"]:
        raise AuditFailedError(
            f"audit: the step shows epsilon of at least {result['epsilon_lower']:.2f}, and only "
            f"{result['accounted']:.2f} is accounted. Do not train with patients before it is "
            "found out why."
        )
