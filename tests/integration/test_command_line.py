"""`consilium-sim` as a user types it: results, messages, exit codes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.checkpoint import read_json
from common.findings import FINDINGS
from tests import programs
from tests.conftest import ArchiveFactory
from tests.programs import Ended

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = """
name: small
seed: 2
model: {backbone: tiny, image_size: 32, decoder_width: 8}
training: {local_epochs: 1.0, batch_size: 8, head_epochs: 2}
federation: {rounds: 2, min_sites: 2, round_timeout: 120}
evaluation: {bootstrap: 20}
simulation: {sites: 2, phantom_images: 120, partition: {scheme: hospitals}}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(PLAN)
    return file


def typed(*words: object) -> Ended:
    return programs.typed("consilium-sim", *words)


def called(*words: object) -> str:
    """Run the program to its good end; return what it printed."""
    ended = typed(*words)
    assert ended.code == 0, ended.err
    return ended.out


def test_a_run_from_nothing_to_a_report(plan: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    printed = called("run", plan, "--out", run)
    assert "federation (council)" in printed
    assert "report.html" in printed.replace("\n", "")  # a long path is wrapped
    summary = read_json(run / "summary.json")
    assert summary["status"] == "completed"
    assert summary["rounds"] == 2
    assert set(summary["sites"]) == set(summary["local_only"])
    assert len(summary["cross_site"]) == len(summary["sites"])
    council = summary["federated"]["council"]
    assert set(council["auroc"]) == set(FINDINGS)
    assert set(council["auroc"]["Mass"]) == {"value", "low", "high", "positives"}
    assert 0 <= council["macro_auroc"] <= 1
    assert summary["lungs"]["dice"] >= summary["lungs"]["iou"]
    assert summary["pooled"] is not None
    assert summary["encoder_sha256"] == read_json(run / "state.json")["encoder_sha256"]
    assert summary["bytes_per_round"] > 0
    page = (run / "report.html").read_text()
    assert "Hernia" in page
    assert "http://" not in page.replace("http://www.w3.org", "")

    # A finished run that is resumed trains nothing again and says the same.
    before = (run / "rounds.jsonl").read_text()
    again = json.loads(called("run", "--resume", run, "--json"))
    assert (run / "rounds.jsonl").read_text() == before
    assert again["federated"] == summary["federated"]
    assert json.loads(called("report", run, "--json"))["rounds"] == 2
    (run / "report.html").unlink()
    assert "report.html" in called("report", run).replace("\n", "")
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_phantom_and_partition(plan: Path, tmp_path: Path) -> None:
    archive, sheet = tmp_path / "archive", tmp_path / "sheet.png"
    words = ("--images", 80, "--size", 32, "--hospitals", 2, "--sheet", sheet)
    assert "80 images in" in called("phantom", archive, *words)
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert "2 hospitals, scheme hospitals" in called("partition", plan, "--data", archive)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (PLAN + "rounds: 3\n", ["key 'rounds': found an unknown key"]),
        (
            PLAN.replace("rounds: 2", "rounds: 0").replace("seed: 2", "seed: two") + "x: 1\n",
            ["key 'federation.rounds': found 0", "key 'seed': found \"two\"", "key 'x'"],
        ),
    ],
)
def test_mistakes_in_a_plan_end_with_2(tmp_path: Path, text: str, messages: list[str]) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    result = typed("run", tmp_path / "plan.yaml", "--out", tmp_path / "run")
    assert result.code == 2
    assert all(message in result.err for message in messages)
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_a_truncated_image_is_named_and_can_be_left_out(
    plan: Path, tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    plan.write_text(PLAN.replace("scheme: hospitals", "scheme: iid"))
    archive = nih_archive(patients=12)
    victim = next(archive.rglob("00000003_000.png"))
    victim.write_bytes(victim.read_bytes()[:200])
    result = typed("run", plan, "--data", archive, "--out", tmp_path / "run")
    assert result.code == 2
    assert "00000003_000.png" in result.err
    assert "--skip-bad" in result.err
    assert "Traceback" not in result.err
    # Only decoding can tell: what it has done so far stays, with a report that says how it ended.
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["status"] == "failed"
    assert "00000003_000.png" in summary["reason"]
    assert (tmp_path / "run" / "report.html").exists()


def test_an_unknown_finding_is_named_with_its_row(
    plan: Path, tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    archive = nih_archive(patients=12)
    table = archive / "Data_Entry_2017_v2020.csv"
    lines = table.read_text().splitlines()
    lines[3] = lines[3].replace(",Pneumonia,", ",Influenza,")
    table.write_text("\n".join(lines) + "\n")
    result = typed("run", plan, "--data", archive, "--out", tmp_path / "run")
    assert result.code == 2
    assert "row 4, column 'Finding Labels': found 'Influenza'" in result.err


def test_folders_that_are_taken_or_no_run(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    result = typed("run", plan, "--out", tmp_path / "full")
    assert (result.code, "a new or empty folder" in result.err) == (2, True)
    result = typed("run", "--resume", tmp_path / "full")
    assert (result.code, "found no run" in result.err) == (2, True)
    result = typed("run")
    assert (result.code, "PLAN: found nothing" in result.err) == (2, True)
    result = typed("run", plan, "--sites", 0)
    assert (result.code, "simulation.sites" in result.err) == (2, True)


def test_more_sites_than_the_archive_has_hospitals(plan: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    called("phantom", archive, "--images", 60, "--size", 32, "--hospitals", 2)
    result = typed("partition", plan, "--data", archive, "--sites", 3)
    assert result.code == 2
    assert "hospitals" in result.err


def test_fewer_sites_than_the_plan_needs_end_with_4(plan: Path, tmp_path: Path) -> None:
    plan.write_text(PLAN.replace("min_sites: 2", "min_sites: 5"))
    result = typed("run", plan, "--out", tmp_path / "new" / "run")
    assert result.code == 4
    assert "the plan needs 5 sites" in result.err
    assert not (tmp_path / "new").exists()


def test_mistakes_on_the_command_line(plan: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = typed("run", plan, "--data", tmp_path / "typo", "--out", run)
    assert (result.code, run.exists()) == (2, False)  # the name stays free
    result = typed("run", plan, "--resume", run, "--sites", 3)
    assert result.code == 2
    assert "--resume: found PLAN, --sites too" in result.err
    result = typed("bench", "--only", "a")
    assert result.code == 2
    assert "--only: found 'a'" in result.err
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("hearing")
def test_ctrl_c_tells_how_to_go_on(plan: Path, tmp_path: Path) -> None:
    plan.write_text(PLAN.replace("phantom_images: 120", "phantom_images: 20000"))
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "simulations", "run", str(plan), "--out", str(run)],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (run / ".experiment.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"interrupted; go on with `consilium-sim run --resume {run}`" in errors
    summary = read_json(run / "summary.json")
    assert (summary["status"], summary["reason"]) == ("failed", "interrupted")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"data": 3}', '{"data": null}', "[" * 100_000])
def test_a_damaged_request_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "experiment.yaml").write_text(PLAN)
    (tmp_path / "request.json").write_text(damage)
    result = typed("run", "--resume", tmp_path)
    assert result.code == 2
    assert result.err.startswith(f"error: {tmp_path / 'request.json'}: ")
    assert "Traceback" not in result.err


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"status": "completed"}'])
def test_a_damaged_summary_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "summary.json").write_text(damage)
    result = typed("report", tmp_path)
    assert result.code == 2
    assert result.err.startswith(f"error: {tmp_path / 'summary.json'}: ")


def test_a_table_on_a_full_disk(plan: Path, tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    plan.write_text(PLAN.replace("scheme: hospitals", "scheme: iid"))
    command = [sys.executable, "-m", "simulations", "partition", str(plan), "--data"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*command, str(nih_archive(patients=12))],
            cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == "error: the output cannot be written: No space left on device\n"
