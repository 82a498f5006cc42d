"""The privacy commands of `consilium-sim`; simulations/cli.py registers them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from client.settings import EngineName
from common.errors import ConsiliumError, InputError, Problem
from simulations.experiment.options import AsJson, bar, output

Delta = Annotated[float | None, typer.Option(help="default: 1 / (10 patients)")]
Cap = Annotated[float | None, typer.Option(help="lifetime epsilon: steps that it allows")]
Noise = Annotated[float | None, typer.Option(help="also try this noise multiplier")]

STEP, SITE = "Without --site", "With --site"  # panels of the audit's help


def _step(words: str) -> Any:
    return typer.Option(help=words, rich_help_panel=STEP)


def _site(words: str) -> Any:
    return typer.Option(help=words, rich_help_panel=SITE)


class AuditFailedError(ConsiliumError):
    """The audit proved more leakage than is accounted for."""

    code = "audit-failed"


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
    site: Annotated[
        Path | None,
        typer.Option(help="a site's folder, or its ledger: attack what it charged"),
    ] = None,
    plan: Annotated[
        Path | None, _site("the plan that was charged: its heads, bridge, teacher, views")
    ] = None,
    mechanism: Annotated[int | None, _site("one of the ledger's, from 1; default: each")] = None,
    plays: Annotated[int | None, _site("more see more; default: 140")] = None,
    rounds: Annotated[int | None, _site("rounds of a play; default: 1")] = None,
    steps: Annotated[
        int | None, typer.Option(help="private steps; with --site the most of a round; default: 20")
    ] = None,
    engine: Annotated[
        EngineName | None, typer.Option(help="as in site.yaml; default: the site's, or auto")
    ] = None,
    canaries: Annotated[int | None, _step("made-up patients; default: 1000")] = None,
    noise: Annotated[float | None, _step("noise multiplier; default: 8")] = None,
    sampling_rate: Annotated[
        float | None, _step("chance of a canary in a step; default: 0.5")
    ] = None,
    delta: Annotated[float | None, _step("default: 1e-05")] = None,
    clip: Annotated[float | None, _step("clipping norm; default: 1")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="write the result, e.g. audit.json; with --site also audit.html"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Does more leak than is accounted for? Canaries through the private step, or, with --site, a
    malicious coordinator against the whole way of an answer."""
    of_step = {"canaries": canaries, "noise_multiplier": noise, "sampling_rate": sampling_rate}
    of_step |= {"delta": delta, "clipping_norm": clip}
    of_site = {"plan": plan, "number": mechanism, "rounds": rounds}
    with output(as_json) as console:
        if site is None:
            _refuse({**of_site, "plays": plays}, "with --site only", "Add --site, or leave it out.")
            given = _given(of_step | {"steps": steps, "engine": engine})
            result, failed = _audit_step(given, out, console)
        else:
            step = "Leave it out: the ledger says what is attacked."
            _refuse(of_step, "without --site only", step)
            effort = _given({"plays": plays, "steps": steps})
            given = _given(of_site | {"engine": engine})
            result, failed = _audit_site(site, given, effort, out, console)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    if not result["holds"]:
        raise AuditFailedError(failed)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _refuse(options: Mapping[str, Any], allowed: str, step: str) -> None:
    """Raise InputError for options of the other kind of audit."""
    words = {"noise_multiplier": "noise", "clipping_norm": "clip", "number": "mechanism"}
    names = [words.get(name, name).replace("_", "-") for name in _given(options)]
    if names:
        found = " ".join(f"--{name}" for name in names)
        raise InputError(Problem("command line", "audit", found, f"these {allowed}", step))


def _audit_step(
    given: dict[str, Any], out: Path | None, console: Console
) -> tuple[dict[str, Any], str]:
    """The audit of the private step alone: the result, and what to say if it fails."""
    from common.checkpoint import write_json
    from simulations.privacy.audit import Audit, run_audit

    result = run_audit(Audit(**given))
    if out is not None:
        write_json(out, result)
    console.print(
        f"{result['canaries']:,} canaries, {result['steps']} steps with noise multiplier "
        f"{result['noise_multiplier']:g}, sampling rate {result['sampling_rate']:g}, engine "
        f"{result['engine']}: {result['correct']} of {result['guesses']} guesses right\n"
        f"epsilon is at least {result['epsilon_lower']:.2f} (95 % confidence); accounted "
        f"{result['accounted']:.2f} at delta {result['delta']:g}\n"
        "A lower bound proves nothing good; one above the accounted epsilon proves a fault."
    )
    return result, (
        f"audit: the step shows epsilon of at least {result['epsilon_lower']:.2f}, and only "
        f"{result['accounted']:.2f} is accounted. Do not train with patients before it is "
        "found out why."
    )


def _audit_site(
    site: Path,
    given: dict[str, Any],
    effort: dict[str, Any],
    out: Path | None,
    console: Console,
) -> tuple[dict[str, Any], str]:
    """The audit of a site's mechanisms: the result, and what to say if it fails."""
    from simulations.privacy.membership.audit import Effort
    from simulations.privacy.membership.page import print_ready, print_result, write_result
    from simulations.privacy.membership.site import SiteAudit, audit_site, get_ready

    ready = get_ready(SiteAudit(site, effort=Effort(**effort), **given))
    print_ready(ready, console)
    with bar(console) as progress:
        task = progress.add_task("plays", total=ready.plays)
        result = audit_site(ready, lambda: progress.advance(task))
    print_result(result, console)
    if out is not None:
        console.print(f"page: {write_result(result, out)}", soft_wrap=True)
    return result, (
        f"audit of {result['site']}: {'; '.join(result['leaks'])}. Let no plan with patients run "
        "before it is found out why."
    )
