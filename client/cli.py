"""`consilium-site`, the hospital's own command line: parse, wire, call."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from client.ledger import Head, Ledger, verify
from client.report import as_json as facts_as_json
from client.report import collect, write_report
from client.report.collect import ledger_path
from client.report.projection import project as project_plan
from client.report.screen import print_facts, print_ledger, print_projection, print_spend
from client.report.spend import finite
from client.settings import open_site_folder
from common.errors import InputError, Problem
from common.plan import load_plan
from common.terminal import group, plain, program

app = program("A hospital’s own tools: what was spent, what left, what a plan would cost.")
ledger = group(app, "ledger", "The privacy ledger.")
report = group(app, "report", "Reports.")

SiteArgument = Annotated[
    Path, typer.Argument(metavar="SITE-FOLDER", help="folder that holds site.yaml")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


@ledger.command()
def show(site: SiteArgument, as_json: AsJson = False) -> None:
    """Show every entry, and what is spent in total."""
    folder = open_site_folder(site)
    book, policy = Ledger(ledger_path(folder)), folder.settings.policy
    entries = book.entries()
    spent = book.epsilon(policy.delta)
    if as_json:
        _print_json(
            {
                "simulated": bool(entries[0].body["simulated"]),
                "epsilon": finite(spent),
                "delta": policy.delta,
                "cap": policy.epsilon,
                "entries": [dataclasses.asdict(entry) for entry in entries],
            }
        )
        return
    console = plain()
    print_ledger(console, entries)
    print_spend(console, spent, policy.delta, policy.epsilon)
    if entries[0].body["simulated"]:
        console.print("simulated: this ledger protects nobody")


@ledger.command("verify")
def verify_ledger(
    site: SiteArgument,
    expect: Annotated[
        str | None,
        typer.Option(metavar="ENTRIES:SHA256", help="a head noted earlier, which must be in it"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the whole chain: an edited, reordered or cut ledger is an error."""
    path = ledger_path(open_site_folder(site))
    head = verify(path, None if expect is None else parse_head(expect))
    if as_json:
        _print_json({"intact": True} | dataclasses.asdict(head))
        return
    seen = "" if expect is None else ", and the expected head is in it"
    plain().print(f"intact: {head.entries} entries{seen}; head {head.entries}:{head.sha256}")


@ledger.command()
def export(
    site: SiteArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="file to write")],
) -> None:
    """Write all entries as JSON lines, for an auditor."""
    head = Ledger(ledger_path(open_site_folder(site))).export(out)
    plain().print(f"{head.entries} entries: {out}")


@ledger.command()
def project(
    site: SiteArgument,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="plan file (YAML)")],
    as_json: AsJson = False,
) -> None:
    """Work out what a plan would cost from today’s spend. Nothing is spent."""
    found = project_plan(open_site_folder(site), load_plan(plan_file), plan_file)
    if as_json:
        _print_json(found.model_dump(mode="json") | {"accepted": found.accepted})
    else:
        print_projection(plain(), found)


@report.command()
def privacy(
    site: SiteArgument,
    out: Annotated[
        Path | None, typer.Option(help="folder for it, instead of the site's reports")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the privacy report (HTML and JSON), or print its facts."""
    folder = open_site_folder(site)
    facts = collect(folder)
    if as_json:
        _print_json(facts_as_json(facts))
        return
    page, data = write_report(facts, folder.reports if out is None else out)
    console = plain()
    print_facts(console, facts)
    console.print(f"{page}\n{data}")


def parse_head(text: str) -> Head:
    """ENTRIES:SHA256, as `verify` prints it. Raises InputError for anything else."""
    entries, _, sha256 = text.strip().partition(":")
    hexadecimal = len(sha256) == 64 and all(c in "0123456789abcdef" for c in sha256.lower())
    if not (entries.isascii() and entries.isdecimal() and int(entries) > 0 and hexadecimal):
        allowed = "ENTRIES:SHA256, a number and 64 hexadecimal digits"
        step = "Copy the head from `ledger verify`, a report or the coordinator."
        raise InputError(Problem("command line", "--expect", repr(text), allowed, step))
    return Head(int(entries), sha256.lower())


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, allow_nan=False))
