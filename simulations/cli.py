"""`consilium-sim`: parse, wire, call. The work is in the modules that this one imports."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.nih import open_archive
from common.checkpoint import read_json, write_json
from common.errors import InputError, Problem
from common.plan import Plan, load_plan, plan_from_json
from common.terminal import exit_on_error
from simulations.options import (
    AsJson,
    DataOption,
    MasksOption,
    SkipBad,
    output,
    refuse_with_resume,
    required,
    resumable,
)
from simulations.partition import partition, print_summary, read_groups
from simulations.phantom import contact_sheet, make_phantom
from simulations.privacy import cli as privacy
from simulations.study import cli as study

app = typer.Typer(
    help="Hospitals that learn together, simulated on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

PLAN = ("PLAN", "See simulations/plans.")
Sites = Annotated[int | None, typer.Option(help="hospitals, instead of the plan's number")]


def main() -> None:
    """Entry point: errors become one clear message and the right exit code."""
    exit_on_error(app)


@app.command()
def run(
    plan_file: Annotated[
        Path | None, typer.Argument(metavar="PLAN", help="plan file (YAML)")
    ] = None,
    data: DataOption = None,
    masks: MasksOption = None,
    sites: Sites = None,
    out: Annotated[Path | None, typer.Option(help="new folder for this run")] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with an interrupted run")] = None,
    skip_bad: SkipBad = False,
    pretrained: Annotated[
        Path | None, typer.Option(help="weights to start from; for privacy, of other patients")
    ] = None,
    without_privacy: Annotated[
        bool, typer.Option("--without-privacy", help="the plan with privacy.mode off, to compare")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cut an archive into hospitals, let them learn together, and compare."""
    # torch and Flower are loaded only by the command that needs them.
    from simulations.experiment import (
        Request,
        discard_empty_run,
        load_request,
        open_run,
        print_result,
        resume_run,
        run_experiment,
    )

    with output(as_json) as console:
        if resume is not None:
            given = {"PLAN": plan_file, "--data": data, "--masks": masks, "--sites": sites}
            given |= {"--out": out, "--pretrained": pretrained}
            refuse_with_resume(given | {"--without-privacy": without_privacy or None})
            folder, plan = resume, resume_run(resume)
            request = load_request(folder)
            request = replace(request, skip_bad=request.skip_bad or skip_bad)
        else:
            plan = load_plan(required(plan_file, *PLAN))
            plan = _changed(plan, sites, pretrained, without_privacy)
            stamp = time.strftime("%Y%m%d-%H%M%S")
            folder = out or Path("runs") / f"{plan.name}-{stamp}"
            request = Request(data, masks, skip_bad)
            open_run(plan, folder, request)
        console.print(f"plan {plan.name} ({plan.sha256[:12]}), run folder {folder}")
        try:
            with resumable("run", folder):
                summary = run_experiment(plan, folder, request, console)
        except InputError:
            if resume is None:
                discard_empty_run(folder)
            raise
        print_result(summary, folder, console)
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))


def _changed(plan: Plan, sites: int | None, pretrained: Path | None, without_privacy: bool) -> Plan:
    """The plan with what the command line asks for instead, checked like any plan."""
    value = plan.model_dump(mode="json")
    if sites is not None:
        value["simulation"]["sites"] = sites
    if pretrained is not None:
        value["model"]["pretrained"] = str(pretrained.absolute())
    if without_privacy:
        value |= {"name": f"{plan.name}-open", "privacy": {"mode": "off"}}
        value["training"]["unit"] = plan.privacy.unit
    return plan_from_json(json.dumps(value))


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
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan file (YAML)")],
    data: Annotated[Path, typer.Option(help="archive in the NIH layout")],
    sites: Sites = None,
    skip_bad: SkipBad = False,
) -> None:
    """Show what each hospital would get, without decoding or training anything."""
    plan = _changed(load_plan(plan_file), sites, None, False)
    archive = open_archive(data, skip_bad=skip_bad)
    groups_file = data / "hospitals.csv"
    groups = read_groups(groups_file) if groups_file.exists() else None
    simulation = plan.simulation
    parts = partition(archive.table, simulation.partition, simulation.sites, plan.seed, groups)
    print_summary(Console(), parts)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a run")], as_json: AsJson = False
) -> None:
    """Write a run's report.html again from its summary, or print the summary."""
    from server.report import write_report
    from simulations.experiment import read_rounds_file

    summary = read_json(folder / "summary.json")
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
