"""`consilium-sim`: parse, wire, call. The work is in the modules that this one imports."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.checkpoint import read_object, write_json
from common.errors import InputError, Problem
from common.plan import load_plan
from common.terminal import program
from simulations.experiment.options import (
    AsJson,
    DataOption,
    MasksOption,
    PretrainedOption,
    SitesOption,
    SkipBad,
    WithoutPrivacy,
    changed,
    output,
    print_remarks,
    refuse_with_resume,
    required,
    resumable,
)
from simulations.phantom import contact_sheet, make_phantom
from simulations.privacy import cli as privacy
from simulations.study import cli as study

app = program("Hospitals that learn together, simulated on this machine.")

PLAN = ("PLAN", "See simulations/plans.")
PlanArgument = Annotated[Path | None, typer.Argument(metavar="PLAN", help="plan file (YAML)")]


@app.command()
def run(
    plan_file: PlanArgument = None,
    data: DataOption = None,
    masks: MasksOption = None,
    sites: SitesOption = None,
    out: Annotated[Path | None, typer.Option(help="new folder for this run")] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with an interrupted run")] = None,
    skip_bad: SkipBad = False,
    pretrained: PretrainedOption = None,
    without_privacy: WithoutPrivacy = False,
    as_json: AsJson = False,
) -> None:
    """Cut an archive into hospitals, let them learn together, and compare."""
    from simulations.experiment.folder import Request, discard_empty_run, open_run, resume_run

    with output(as_json) as console:
        if resume is not None:
            given = {"PLAN": plan_file, "--data": data, "--masks": masks, "--sites": sites}
            given |= {"--out": out, "--pretrained": pretrained}
            refuse_with_resume(given | {"--without-privacy": without_privacy or None})
            folder, (plan, request) = resume, resume_run(resume)
            request = replace(request, skip_bad=request.skip_bad or skip_bad)
        else:
            plan = load_plan(required(plan_file, *PLAN))
            plan = changed(plan, sites, pretrained, without_privacy)
            stamp = time.strftime("%Y%m%d-%H%M%S")
            folder = out or Path("runs") / f"{plan.name}-{stamp}"
            request = Request(data, masks, skip_bad)
        # torch and Flower take seconds to load: only once there is something to run.
        from simulations.experiment.experiment import print_result, run_experiment
        from simulations.experiment.preflight import preflight, preflight_again

        if resume is not None:
            found = preflight_again(plan, request, folder)
        else:
            found = preflight(plan, request, folder)
            made = open_run(plan, folder, request)
        console.print(f"plan {plan.name} ({plan.sha256[:12]}), run folder {folder}")
        try:
            with resumable("run", folder):
                summary = run_experiment(plan, folder, request, console, found)
        except InputError:
            if resume is None:
                discard_empty_run(folder, made)
            raise
        print_result(summary, folder, console)
        print_remarks(summary["remarks"], console)
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="new folder for the archive")],
    images: Annotated[int, typer.Option(help="number of radiographs")] = 1000,
    size: Annotated[int, typer.Option(help="pixels per side")] = 128,
    hospitals: Annotated[int, typer.Option(help="hospitals with their own equipment")] = 4,
    seed: Annotated[int, typer.Option(help="the same seed gives the same bytes")] = 0,
    unlabelled: Annotated[float, typer.Option(help="share of patients without labels")] = 0.1,
    sheet: Annotated[Path | None, typer.Option(help="also write a contact sheet (PNG)")] = None,
) -> None:
    """Make synthetic radiographs in the NIH layout, with lung masks."""
    console = Console()
    started = time.monotonic()
    make_phantom(out, images, size, hospitals, seed, unlabelled)
    console.print(f"{images} images in {time.monotonic() - started:.1f} s: {out}")
    if sheet is not None:
        console.print(f"contact sheet: {contact_sheet(out, sheet)}")


@app.command("partition")
def show_partition(
    plan_file: PlanArgument = None,
    data: DataOption = None,
    masks: MasksOption = None,
    sites: SitesOption = None,
    out: Annotated[
        Path | None, typer.Option(help="new folder for partition.json and partition.png")
    ] = None,
    skip_bad: SkipBad = False,
    pretrained: PretrainedOption = None,
    without_privacy: WithoutPrivacy = False,
    as_json: AsJson = False,
) -> None:
    """Show what each hospital would get, and refuse what `run` would, without decoding."""
    from simulations.experiment.folder import Request

    with output(as_json) as console:
        plan = load_plan(required(plan_file, *PLAN))
        plan = changed(plan, sites, pretrained, without_privacy)
        from simulations.experiment.preflight import preflight  # loads torch
        from simulations.experiment.prepare import print_cut, write_cut

        request = Request(data, masks, skip_bad)
        found = preflight(plan, request, out)
        print_cut(found.cut, console)
        if out is not None:
            write_cut(found, out)
            console.print(f"written: partition.json and partition.png in {out}", soft_wrap=True)
        print_remarks(found.remarks, console)
    if as_json:
        typer.echo(json.dumps(found.overview(), allow_nan=False))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a run")], as_json: AsJson = False
) -> None:
    """Write a run's report.html again from its summary, or print the summary."""
    from server.report.page import write_report
    from simulations.experiment.folder import read_rounds_file

    summary = read_object(folder / "summary.json", plan=dict, plan_sha256=str, status=str)
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
    else:
        Console().print(write_report(summary, read_rounds_file(folder), folder))


@app.command()
def bench(
    out: Annotated[Path | None, typer.Option(help="also write the rows as JSON")] = None,
    only: Annotated[str, typer.Option(help="rows to measure, e.g. 1,2,8")] = "1,2,3,4,5,6,8,9,11",
    repeats: Annotated[int, typer.Option(help="A/B repetitions; the median counts")] = 5,
) -> None:
    """Measure the ratios that this project holds itself to."""
    from simulations.bench import measure, print_rows

    numbers = only.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        allowed, step = "numbers with commas between them", "For example --only 1,2,8."
        raise InputError(Problem("command line", "--only", repr(only), allowed, step))
    rows = measure([int(number) for number in numbers], repeats)
    print_rows(rows, Console())
    if out is not None:
        write_json(out, rows)
    if any(row["met"] is False for row in rows["rows"]):
        raise typer.Exit(1)


# Commands whose modules are loaded by the command that needs them.
ablate = app.command()(study.ablate)
tasks = app.command()(study.tasks)
privacy_plan = app.command("privacy-plan")(privacy.planner_command)
audit = app.command("audit")(privacy.audit_command)
