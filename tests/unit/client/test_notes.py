"""The site's own notes: kept, and never more of them than a disk can hold."""

from pathlib import Path

import pytest

from client.notes import append, failing_quietly, log


def test_a_log_of_many_errors_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.notes.MOST_BYTES", 5_000)
    for number in range(1_000):
        log(tmp_path / "reports", f"train: bad-plan: number {number}")
    files = sorted((tmp_path / "reports").iterdir())
    assert [file.name for file in files] == ["site.log", "site.log.1"]
    assert sum(file.stat().st_size for file in files) < 11_000
    assert files[0].read_text().splitlines()[-1].endswith("train: bad-plan: number 999")


def test_a_long_or_odd_text_is_cut_and_spelled(tmp_path: Path) -> None:
    log(tmp_path, "x" * 10**6)
    log(tmp_path, "a name \ud800")
    lines = (tmp_path / "site.log").read_text().splitlines()
    assert len(lines[0]) < 21_000
    assert lines[1].endswith("a name \\ud800")


def test_what_fails_quietly_is_in_the_log(tmp_path: Path) -> None:
    with failing_quietly(tmp_path, "scores of round 3"):
        raise KeyError("x")
    text = (tmp_path / "site.log").read_text()
    assert "scores of round 3: not done" in text
    assert "KeyError: 'x'" in text
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        append(tmp_path / "file" / "notes", "x")
