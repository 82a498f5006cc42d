"""`consilium-server`, the coordinator's own command line: parse, wire, call."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.terminal import exit_on_error
from server.privacy_facts import collect
from server.privacy_report import as_json as facts_as_json
from server.privacy_report import verdict, write_privacy_report

app = typer.Typer(
    help="The coordinator’s tools.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _group(name: str, about: str) -> typer.Typer:
    """A group of commands, such as `consilium-server report ...`."""
    group = typer.Typer(help=about, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


report = _group("report", "Reports.")


def main() -> None:
    """Entry point: errors become one clear message and the right exit code."""
    exit_on_error(app)


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
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(verdict(facts))
    for site in facts.sites:
        for warning in site.warnings:
            console.print(f"warning: {site.name}: {warning}")
    console.print(f"{page}\n{data}")
