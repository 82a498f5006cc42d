"""One experiment from start to report: prepare, federate, train the baselines, compare.

Every step leaves its result in the run folder and is skipped when it is already there, so
`--resume` goes on after a crash of any step.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.checkpoint import read_object, write_json
from common.entry import terminable
from common.errors import ConsiliumError, InputError
from common.plan import Plan
from server.report.page import write_report
from simulations.experiment.baselines import train_baselines, write_baselines
from simulations.experiment.folder import LOCK, Request, read_rounds_file, unwritable
from simulations.experiment.options import print_remarks
from simulations.experiment.prepare import Prepared, load_prepared, prepare
from simulations.experiment.results import summarise
from simulations.experiment.survey import Survey
from simulations.flower.runtime import hold, run_simulation


def run_experiment(
    plan: Plan, run: Path, request: Request, console: Console, found: Survey | None = None
) -> dict[str, Any]:
    """Do all that is left to do in the run folder; return the summary that it also writes.

    found: the survey of what was asked, if it was made already. However a step ends the run,
    Ctrl-C and SIGTERM included, a report that says so is written first.
    Raises ConsiliumError of the step that failed, InputError at once when another process is
    at work in the folder.
    """
    started = time.monotonic()
    summary: dict[str, Any] = {"plan": plan.model_dump(mode="json"), "plan_sha256": plan.sha256}
    summary |= {"status": "failed", "reason": "interrupted"}
    summary |= {"remarks": [] if found is None else list(found.remarks)}
    with _locked(run), terminable():
        try:
            prepared = _prepare(plan, run, request, console, found)
            summary |= {"remarks": list(prepared.remarks)}
            _federate(plan, prepared, console)
            failed = _train_baselines(plan, prepared, console)
            console.print("testing on what no hospital has seen")
            summary |= summarise(plan, prepared) | {"failed_baselines": failed}
            summary |= {"status": "completed"}
            del summary["reason"]
        except BaseException as error:
            summary |= {"status": "failed", "reason": _reason(error)}
            # What ended the run must be seen, not what then went wrong with its report.
            with suppress(Exception):
                print_remarks(summary["remarks"], console)
                _write(summary | _course(run, time.monotonic() - started), run)
            raise
        summary |= _course(run, time.monotonic() - started)
        _write(summary, run)
    return summary


def _reason(error: BaseException) -> str:
    """Why a run ended. Of an unexpected error only the type: its text may hold anything."""
    if isinstance(error, ConsiliumError):
        return str(error)
    return type(error).__name__ if isinstance(error, Exception) else "interrupted"


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold the run folder."""
    try:
        file = (run / LOCK).open("ab")
    except OSError as error:
        raise InputError(unwritable(run, error)) from None
    with file:
        hold(file, run, "one process per run folder")
        yield


def _prepare(
    plan: Plan, run: Path, request: Request, console: Console, found: Survey | None
) -> Prepared:
    """The prepared run folder."""
    prepared = load_prepared(run)
    if prepared is not None:
        return prepared
    try:
        return prepare(plan, run, request.data, request.masks, request.skip_bad, console, found)
    except OSError as error:
        raise InputError(unwritable(run, error)) from None


def _federate(plan: Plan, prepared: Prepared, console: Console) -> None:
    state = prepared.run / "state.json"
    if state.exists() and read_object(state, status=str)["status"] == "completed":
        return
    run_simulation(plan, prepared.run, prepared.sites_folder, len(prepared.sites), console)


def _train_baselines(plan: Plan, prepared: Prepared, console: Console) -> dict[str, str]:
    """Train what is left to train; the baselines that failed, and why."""
    folders = write_baselines(prepared, plan)
    if not folders:
        return {}
    started = time.monotonic()
    console.print(f"baselines: {len(folders)} models, the same rounds and passes, nobody averaged")
    failed = train_baselines(plan, folders, lambda name: console.print(f"  {name} done"))
    for name, reason in failed.items():
        console.print(f"  {name} failed, and is left out: {reason}", markup=False)
    console.print(f"  baselines took {time.monotonic() - started:.0f} s")
    return failed


def _course(run: Path, seconds: float) -> dict[str, Any]:
    """What the federation's own records say: rounds, bytes, the encoder's hash."""
    rounds = read_rounds_file(run)
    state = read_object(run / "state.json") if (run / "state.json").exists() else {}
    traffic = [line["bytes_up"] + line["bytes_down"] for line in rounds]
    return {
        "rounds": state.get("round", 0),
        "seconds": round(seconds, 1),
        "bytes_per_round": round(sum(traffic) / len(traffic)) if traffic else None,
        "encoder_sha256": state.get("encoder_sha256"),
    }


def _write(summary: dict[str, Any], run: Path) -> None:
    write_json(run / "summary.json", summary)
    write_report(summary, read_rounds_file(run), run)


def print_result(summary: dict[str, Any], run: Path, console: Console) -> None:
    """Print who is how good on the same tests, and where the report lies."""
    table = Table(title="on the test patients, whom no hospital has")
    for heading in ("model", "macro AUROC", "95 % interval", "lung Dice"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    lungs = summary["lungs_alone"]
    for name in summary["failed_baselines"]:
        table.add_row(f"{name}, alone: failed", "-", "-", "-")
    for name, scores in summary["local_only"].items():
        table.add_row(f"{name}, alone", *_cells(scores), _number(lungs[name]["dice"]))
    if summary["local_mean"] is not None:
        table.add_row("mean of the hospitals alone", *_cells(summary["local_mean"]), "-")
    council = summary["federated"]["council"]
    dice = _number(summary["lungs"]["dice"])
    table.add_row(Text("federation (council)", "bold"), *_cells(council), dice)
    if summary["pooled"] is not None:
        dice = _number(lungs["pooled"]["dice"])
        table.add_row("all data pooled", *_cells(summary["pooled"]), dice)
    console.print(table)
    gain = summary["comparisons"]["council_vs_local_mean"]
    if gain is not None and gain["value"] is not None:
        console.print(
            f"federation minus the hospitals alone: {gain['value']:+.3f} macro AUROC "
            f"(95 % interval {_number(gain['low'])} to {_number(gain['high'])})"
        )
    console.print(f"report: {run / 'report.html'}", markup=False, soft_wrap=True)


def _cells(scores: dict[str, Any]) -> tuple[str, str]:
    interval = f"{_number(scores['macro_low'])} to {_number(scores['macro_high'])}"
    return _number(scores["macro_auroc"]), interval if scores["macro_low"] is not None else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
