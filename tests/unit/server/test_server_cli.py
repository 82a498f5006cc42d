"""`consilium-server`: what it writes, prints, and how it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.__main__ import main
from server.cli import app
from tests.unit.server.report.test_server_privacy_report import example, spent, write_run


def test_the_report_is_written_beside_the_run_or_elsewhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", example())
    result = CliRunner().invoke(app, ["report", "privacy", str(run)])
    assert result.exit_code == 0
    assert "2 of 3 sites told what they have spent" in result.output
    assert "warning" not in result.output
    assert (run / "privacy.html").exists()
    assert (run / "privacy.json").exists()
    CliRunner().invoke(app, ["report", "privacy", str(run), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "privacy.html").exists()


def test_json_is_printed_and_nothing_written(tmp_path: Path) -> None:
    run = write_run(tmp_path, example())
    result = CliRunner().invoke(app, ["report", "privacy", str(run), "--json"])
    assert json.loads(result.output)["plan_name"] == "winter"
    assert not (run / "privacy.html").exists()


def test_a_ledger_that_went_back_is_printed(tmp_path: Path) -> None:
    told = [spent(4, 0.3), spent(3, 0.6)]
    lines = [{"round": n, "sites": {"a": {"spent": value}}} for n, value in enumerate(told, 1)]
    result = CliRunner().invoke(app, ["report", "privacy", str(write_run(tmp_path, lines))])
    assert "warning: a: round 2: the ledger went back from 4 to 3 entries" in result.output


def test_main_turns_errors_into_one_message_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["consilium-server", "report", "privacy", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
