"""`consilium-server`, the coordinator's own command line: parse, wire, call."""

import json
from pathlib import Path
from typing import Annotated

import typer

from common.terminal import group, plain, program
from server.report.privacy_facts import collect
from server.report.privacy_report import as_json as facts_as_json
from server.report.privacy_report import verdict, write_privacy_report

app = program("The coordinator’s tools.")
report = group(app, "report", "Reports.")


@report.command()
def privacy(
    run: Annotated[Path, typer.Argument(metavar="RUN-FOLDER", help="folder of a run")],
    out: Annotated[
        Path | None, typer.Option(help="folder for it, instead of the run folder")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object and nothing else")
    ] = False,
) -> None:
    """Write what the sites disclosed of their privacy (HTML and JSON), or print it."""
    facts = collect(run)
    if as_json:
        typer.echo(json.dumps(facts_as_json(facts), allow_nan=False))
        return
    page, data = write_privacy_report(facts, run if out is None else out)
    console = plain()
    console.print(verdict(facts))
    for site in facts.sites:
        for warning in site.warnings:
            console.print(f"warning: {site.name}: {warning}")
    console.print(f"{page}\n{data}")
