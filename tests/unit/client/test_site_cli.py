"""`consilium-site` on real ledgers: what it prints, and how it refuses."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from client.__main__ import main
from client.cli import app, parse_head
from client.ledger import Head, LedgerError
from client.privacy.accounting import Charge, epsilon
from common.errors import InputError, RefusedError
from common.privacy_words import epsilon_text
from tests.unit.client.ledger.ledger_world import CHARGE_A, PLAN_A, Book, make_site, two_runs

RUN = CliRunner()


def invoke(*arguments: object, fails: type[Exception] | None = None) -> Result:
    """Run a command; an expected error must come out of it as it is."""
    result = RUN.invoke(app, [str(argument) for argument in arguments])
    if fails is None:
        assert result.exception is None, result.output
    else:
        assert isinstance(result.exception, fails)
    return result


def private_plan(file: Path, privacy: dict[str, Any] | None = None, **more: Any) -> Path:
    """A plan of 8 rounds of 3 steps, 64 units a step: all that the site declares, so q is 1."""
    value: dict[str, Any] = {
        "name": "summer",
        "training": {
            "local_steps": 3,
            "batch_size": 64,
            "local_epochs": None,
            "max_gradient_norm": None,
            "head_epochs": 0,
        },
        "federation": {"rounds": 8, "weighting": "equal"},
        "evaluation": {"encoder": "last"},
        "privacy": {"mode": "dp-sgd", "noise_multiplier": 10.0} | (privacy or {}),
    }
    file.write_text(yaml.safe_dump(value | more))
    return file


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("north")
    two_runs(make_site(folder))
    return folder


def test_show_lists_every_entry_and_the_total(site: Path) -> None:
    total = epsilon([Charge(10.0, 1.0, 13), Charge(8.0, 1.0, 4)], 1e-5)
    lines = invoke("ledger", "show", site).output.splitlines()
    assert len(lines) == 17 + 1
    assert "training, winter round 1: 3 steps, noise 10" in lines[2]
    assert lines[-1].startswith(f"epsilon {epsilon_text(total)} at")
    assert lines[-1].endswith("at delta 0.00001 (1 in 100,000); cap 8")
    value = json.loads(invoke("ledger", "show", site, "--json").output)
    assert len(value["entries"]) == 17
    assert value["entries"][0]["kind"] == "open"
    assert value["cap"] == 8.0
    assert value["epsilon"] == pytest.approx(total)


def test_verify_with_and_without_an_expected_head(site: Path) -> None:
    value = json.loads(invoke("ledger", "verify", site, "--json").output)
    assert value["intact"] is True
    assert value["entries"] == 17
    head = f"{value['entries']}:{value['sha256']}"
    assert f"head {head}" in invoke("ledger", "verify", site).output
    shown = json.loads(invoke("ledger", "show", site, "--json").output)["entries"]
    early = f"5:{shown[4]['sha256']}"
    assert "the expected head is in it" in (
        invoke("ledger", "verify", site, "--expect", early).output
    )
    invoke("ledger", "verify", site, "--expect", f"18:{'0' * 64}", fails=LedgerError)
    invoke("ledger", "verify", site, "--expect", "17", fails=InputError)


@pytest.mark.parametrize("text", ["", "5", f":{'0' * 64}", f"0:{'0' * 64}", "5:xyz"])
def test_a_head_is_two_parts(text: str) -> None:
    with pytest.raises(InputError, match="ENTRIES:SHA256"):
        parse_head(text)


def test_a_head_is_read() -> None:
    assert parse_head(f" 12:{'AB' * 32}\n") == Head(12, "ab" * 32)


def test_an_edited_ledger_is_an_error(tmp_path: Path) -> None:
    book = Book(make_site(tmp_path))
    book.reserve(PLAN_A, 1, CHARGE_A)
    with sqlite3.connect(book.ledger.path) as db:
        db.execute("UPDATE entries SET body = replace(body, '10.0', '99.0') WHERE kind = 'reserve'")
    db.close()
    for command in (["ledger", "show"], ["ledger", "verify"], ["report", "privacy"]):
        invoke(*command, tmp_path, fails=LedgerError)


def test_export_writes_one_json_line_an_entry(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "ledger.jsonl"
    assert "17 entries" in invoke("ledger", "export", site, out).output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(1, 18))


def test_project_before_the_first_charge(tmp_path: Path) -> None:
    make_site(tmp_path)
    plan = private_plan(tmp_path / "plan.yaml")
    value = json.loads(invoke("ledger", "project", tmp_path, plan, "--json").output)
    assert value["spent"] == 0.0
    assert value["accepted"] is True
    assert (value["sampling_rate"], value["steps_per_round"]) == (0.016, 3)
    assert [row["round"] for row in value["after"]] == list(range(1, 9))
    assert value["after"][-1]["epsilon"] == pytest.approx(epsilon([Charge(10.0, 0.016, 24)], 1e-5))
    assert value["fits_steps"] == 24
    assert not (tmp_path / "ledger.sqlite").exists()
    text = invoke("ledger", "project", tmp_path, plan).output
    assert "The cap of 8 covers the whole plan." in text


def test_project_from_what_is_spent_until_the_cap_binds(tmp_path: Path) -> None:
    policy = {"epsilon": 1.6, "delta": 1e-5}
    book = Book(make_site(tmp_path, policy, nominal_units=64))
    book.reserve(PLAN_A, 1, CHARGE_A)
    plan = private_plan(tmp_path / "plan.yaml")
    value = json.loads(invoke("ledger", "project", tmp_path, plan, "--json").output)
    binds = value["binds_in_round"]
    after = {row["round"]: row["epsilon"] for row in value["after"]}
    assert value["spent"] == pytest.approx(epsilon([CHARGE_A], 1e-5))
    assert after[binds - 1] <= 1.6 < after[binds]
    assert value["fits_rounds"] == binds - 1
    assert value["fits_steps"] // 3 == binds - 1
    fits = [CHARGE_A, Charge(10.0, 1.0, value["fits_steps"])]
    assert epsilon(fits, 1e-5) <= 1.6
    assert epsilon([*fits, Charge(10.0, 1.0, 1)], 1e-5) > 1.6
    assert value["accepted"] is False
    text = invoke("ledger", "project", tmp_path, plan).output
    assert f"The cap of 1.6 binds in round {binds}" in text
    assert "refuses the plan before its first step (budget-spent)" in text
    assert text.count("over the cap") == 8 - binds + 1
    make_site(tmp_path, policy | {"join": "until-spent"}, nominal_units=64)
    assert "takes part until then" in invoke("ledger", "project", tmp_path, plan).output


def test_project_counts_rounds_done_and_noised_scores(tmp_path: Path) -> None:
    site = make_site(tmp_path, {"epsilon": 8.0, "metrics": "noised"}, nominal_units=64)
    plan = private_plan(tmp_path / "plan.yaml", evaluation={"encoder": "last", "every": 2})
    sha256 = json.loads(invoke("ledger", "project", tmp_path, plan, "--json").output)["plan_sha256"]
    book = Book(site)
    for number in (1, 2, 3):
        book.reserve(sha256, number, CHARGE_A)
    book.reserve(sha256, 2, Charge(10.0, 1.0, 1), "metrics")
    value = json.loads(invoke("ledger", "project", tmp_path, plan, "--json").output)
    assert value["charged_rounds"] == 3
    assert [row["round"] for row in value["after"]] == [4, 5, 6, 7, 8]
    whole = [
        Charge(10.0, 1.0, 24),
        Charge(10.0, 1.0, 5),
    ]  # scores of rounds 2, 4, 6, 8, and of the finish
    assert value["after"][-1]["epsilon"] == pytest.approx(epsilon(whole, 1e-5))
    assert "rounds up to 3 are already" in invoke("ledger", "project", tmp_path, plan).output


def test_project_shows_some_rounds_of_a_long_plan(tmp_path: Path) -> None:
    make_site(tmp_path, {"epsilon": 3.0}, nominal_units=64)
    plan = private_plan(tmp_path / "plan.yaml", federation={"rounds": 200, "weighting": "equal"})
    value = json.loads(invoke("ledger", "project", tmp_path, plan, "--json").output)
    shown = [row["round"] for row in value["after"]]
    assert len(shown) <= 20
    assert {1, 200, value["binds_in_round"], value["binds_in_round"] - 1} <= set(shown)


@pytest.mark.parametrize(
    ("policy", "privacy", "code"),
    [
        ({"epsilon": 8.0, "min_noise_multiplier": 20.0}, {}, "noise-floor"),
        ({"epsilon": 8.0}, {"clipping_norm": 11.0}, "clip-ceiling"),
        ({"epsilon": 8.0, "unit": "image"}, {}, "unit"),
        ({}, {}, "no-budget"),
    ],
)
def test_project_says_when_the_policy_refuses(
    tmp_path: Path, policy: dict[str, Any], privacy: dict[str, Any], code: str
) -> None:
    make_site(tmp_path, policy, nominal_units=64)
    plan = private_plan(tmp_path / "plan.yaml", privacy)
    value = json.loads(invoke("ledger", "project", tmp_path, plan, "--json").output)
    assert value["refusal_code"] == code
    assert value["accepted"] is False
    assert f"This site refuses the plan ({code})" in (
        invoke("ledger", "project", tmp_path, plan).output
    )


def test_project_needs_a_private_plan_and_a_declared_number(tmp_path: Path) -> None:
    make_site(tmp_path, nominal_units=None)
    plan = private_plan(tmp_path / "plan.yaml")
    invoke("ledger", "project", tmp_path, plan, fails=RefusedError)
    plan.write_text(yaml.safe_dump({"name": "open"}))
    result = invoke("ledger", "project", tmp_path, plan, fails=InputError)
    assert "key 'privacy.mode': found off" in str(result.exception)


def test_the_report_is_written_or_printed(site: Path, tmp_path: Path) -> None:
    text = invoke("report", "privacy", site).output
    assert "Everything that was learned from the patients was noised before it left." in text
    assert {file.name for file in (site / "reports").iterdir()} == {"privacy.html", "privacy.json"}
    invoke("report", "privacy", site, "--out", tmp_path)
    assert (tmp_path / "privacy.html").exists()
    value = json.loads(invoke("report", "privacy", site, "--json").output)
    assert value["schema"] == 1
    assert value["site"] == "north"


def test_main_turns_errors_into_one_message_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["consilium-site", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), capsys.readouterr().err

    code, error = run("ledger", "show", tmp_path)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: ")
    make_site(tmp_path, nominal_units=None)
    code, error = run("ledger", "verify", tmp_path)
    assert code == 2
    assert "ledger.sqlite: found nothing" in error
    code, error = run("ledger", "project", tmp_path, private_plan(tmp_path / "plan.yaml"))
    assert code == 3
    assert "nominal_units is missing" in error
