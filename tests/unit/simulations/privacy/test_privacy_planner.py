"""The planner: true numbers, sensible hints, clear refusals, and a page that holds them."""

import base64
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client.privacy import accounting
from client.privacy.accounting import Charge, epsilon, quick_noise, solve_noise
from common.errors import InputError
from simulations.cli import app
from simulations.privacy.page import number, print_answer, render, steps_text
from simulations.privacy.planner import (
    GIVEN,
    MOST_PLANS,
    POOLED,
    TARGETS,
    Answer,
    Question,
    answer,
    epsilon_curve,
    hint,
    nearby_batches,
    noise_curve,
    spread,
    usual_delta,
)

ROOT = Path(__file__).resolve().parents[4]
QUESTION = Question(patients=400, rounds=4, steps=2, batch=200, cap=3.0, noise=0.7, clip=0.5)
ARGUMENTS = ["privacy-plan", "--patients", "400", "--rounds", "4", "--steps", "2"]
ARGUMENTS += ["--batch", "200", "--cap", "3", "--noise", "0.7", "--clip", "0.5"]


ACCOUNTANT, RDP = accounting._epsilon, accounting.rdp_epsilon


def toy(history, delta, orders=()):
    """Rises with rate, steps and 1 / noise as epsilon does, and takes no time."""
    assert 0 < delta < 1
    return sum(6 * rate * math.sqrt(steps) / noise for noise, rate, steps in history)


@pytest.fixture(autouse=True)
def accountant(monkeypatch):
    """What the planner makes of epsilon is tested with a toy: the real one takes a minute."""
    for remembers in (solve_noise, quick_noise):
        remembers.cache_clear()
    monkeypatch.setattr(accounting, "_epsilon", toy)
    monkeypatch.setattr(accounting, "rdp_epsilon", toy)
    yield
    for remembers in (solve_noise, quick_noise):
        remembers.cache_clear()


@pytest.fixture
def found() -> Answer:
    return answer(QUESTION)


def test_choices_keep_their_epsilon_and_come_in_its_order(found):
    assert [choice.name for choice in found.choices] == [
        "epsilon 1",
        "epsilon 3",
        "epsilon 8",
        GIVEN,
    ]
    for choice, target in zip(found.choices, TARGETS, strict=False):
        assert 0.97 * target < choice.epsilon <= target
    assert found.choices[-1].noise_multiplier == 0.7
    assert (found.total_steps, found.sampling_rate, found.delta) == (8, 0.5, 2e-4)


def test_noise_is_spread_over_the_batch_and_scaled_by_the_clipping_norm(found):
    for choice in found.choices:
        assert choice.deviation == pytest.approx(choice.noise_multiplier * 0.5 / 200)
        assert choice.relative == pytest.approx(1e4 * choice.noise_multiplier / 200)


def test_steps_within_the_cap_are_the_most_that_fit(found):
    for choice in found.choices:
        assert choice.within_cap is not None

        def spent(steps: int, noise: float = choice.noise_multiplier) -> float:
            return epsilon([Charge(noise, 0.5, steps)], found.delta)

        assert spent(choice.within_cap) <= 3.0
        assert choice.within_cap == MOST_PLANS * 8 or spent(choice.within_cap + 1) > 3.0
    assert found.choices[1].within_cap >= 8  # the noise for epsilon 3 carries the whole plan


def test_a_cap_that_is_no_usual_target_is_a_choice_of_its_own():
    names = [choice.name for choice in answer(Question(400, 1, 1, 200, cap=2.0)).choices]
    assert names == ["epsilon 1", "the cap, 2", "epsilon 3", "epsilon 8"]


@pytest.mark.parametrize(
    ("patients", "delta"), [(1000, 1e-4), (3000, 3e-5), (75_312, 1e-6), (9_414, 1e-5), (2, 5e-2)]
)
def test_delta_is_a_tenth_of_one_over_the_patients_rounded_down(patients, delta):
    assert usual_delta(patients) == delta


def test_what_the_hints_compare_with_is_what_the_accountant_says(monkeypatch):
    monkeypatch.setattr(accounting, "_epsilon", ACCOUNTANT)
    monkeypatch.setattr(accounting, "rdp_epsilon", RDP)
    for target, level in POOLED.items():
        noise = level * 4096 / 1e4
        spent = epsilon([Charge(noise, 4096 / 75_312, 551)], usual_delta(75_312))
        assert spent == pytest.approx(target, rel=0.03)


def test_hints_say_more_when_the_noise_is_louder():
    levels = [2.0, 5.0, 12.0, 40.0]
    assert len({hint(level) for level in levels}) == 4
    assert "between epsilon 3 and 1" in hint(7.2)  # 9,414 records at epsilon 8, 20 epochs
    assert "heads" in hint(7.2)
    assert "whole network" in hint(2.7)


def test_epsilon_rises_with_the_rounds_and_ends_where_the_choice_says(found):
    curve = epsilon_curve(QUESTION, found.choices[0].noise_multiplier)
    rounds, values = zip(*curve, strict=True)
    assert rounds == (1, 2, 3, 4)
    assert list(values) == sorted(values)
    assert values[-1] == found.choices[0].epsilon


def test_relative_noise_falls_with_the_batch():
    assert nearby_batches(QUESTION) == [50, 100, 200, 400]
    values = noise_curve(QUESTION, 8.0, [50, 400])
    assert values[0] > values[1]


def test_numbers_are_spread_with_both_ends():
    assert spread(3, 8) == [1, 2, 3]
    assert spread(1000, 3) == [1, 501, 1000]
    for last in range(1, 40):
        numbers = spread(last, 8)
        assert numbers == sorted(set(numbers))
        assert (numbers[0], numbers[-1]) == (1, last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 1}, "privacy-plan: --patients: found 1; allowed: 2 to 1e+08"),
        ({"rounds": 0}, "privacy-plan: --rounds: found 0"),
        ({"steps": -1}, "privacy-plan: --steps: found -1"),
        ({"batch": 401}, "privacy-plan: --batch: found 401; allowed: 1 to 400. A site's batch"),
        ({"batch": 0}, "privacy-plan: --batch: found 0"),
        ({"delta": 1 / 400}, "privacy-plan: --delta: found 0.0025; allowed: from 1e-12 to below"),
        ({"delta": 0.0}, "privacy-plan: --delta: found 0;"),
        ({"delta": math.nan}, "privacy-plan: --delta: found nan;"),
        ({"clip": 0.0}, "privacy-plan: --clip: found 0;"),
        ({"clip": math.inf}, "privacy-plan: --clip: found inf;"),
        ({"cap": -3.0}, "privacy-plan: --cap: found -3;"),
        ({"noise": 0.0}, "privacy-plan: --noise: found 0; allowed: 0.01 to 10000"),
        ({"noise": math.nan}, "privacy-plan: --noise: found nan;"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(InputError) as caught:
        answer(Question(**{**vars(QUESTION), **change}))
    assert message in str(caught.value)


def test_everything_wrong_is_said_at_once():
    with pytest.raises(InputError) as caught:
        answer(Question(patients=0, rounds=0, steps=0, batch=5, cap=math.inf))
    assert len(caught.value.problems) == 4


def test_a_plan_that_no_noise_can_carry_is_refused():
    with pytest.raises(InputError, match="fewer rounds or smaller batches"):
        answer(Question(patients=2, rounds=10_000, steps=100_000, batch=2))


class Page(HTMLParser):
    """Collects a page's images, table cells and tags that were not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            assert dict(attrs)["alt"]
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data.strip())


def test_the_page_holds_every_number_and_both_figures(found):
    text = render(found)
    page = Page(text)
    assert page.open == []
    for choice in found.choices:
        for value in (f"{choice.noise_multiplier:.3f}", number(choice.relative), choice.hint):
            assert value in page.cells
        assert steps_text(found, choice) in page.cells
    assert any("(over)" in cell for cell in page.cells)
    assert len(page.images) == 2
    pictures = [base64.b64decode(source.partition(",")[2]).decode() for source in page.images]
    assert all("<svg" in picture for picture in pictures)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_without_a_cap_nothing_is_said_about_one():
    text = render(answer(Question(400, 1, 1, 200)))
    assert "cap" not in text.partition("</style>")[2].replace("caption", "")


def test_numbers_for_people(found):
    assert [number(value) for value in (math.inf, 0.12345, 1234.5)] == [
        "no bound",
        "0.123",
        "1.23e+03",
    ]
    assert steps_text(found, found.choices[0]) == "72"
    generous = answer(Question(400, 4, 2, 200, cap=100.0))
    assert steps_text(generous, generous.choices[0]) == "≥ 80"


def test_the_command_prints_the_table_and_writes_page_and_json(found, tmp_path):
    done = CliRunner().invoke(app, [*ARGUMENTS, "--out", str(tmp_path)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "epsilon 8" in done.output
    assert "neighbours differ in one patient" in done.output
    assert (tmp_path / "privacy-plan.html").read_text() == render(found)
    assert json.loads((tmp_path / "privacy-plan.json").read_text()) == found.to_json()


def test_json_is_one_object_and_nothing_else(found):
    done = CliRunner().invoke(app, [*ARGUMENTS, "--json"])
    assert json.loads(done.output) == found.to_json()
    assert [set(choice) for choice in found.to_json()["choices"]] == [
        {
            "name",
            "noise_multiplier",
            "epsilon",
            "deviation",
            "relative",
            "within_cap",
            "hint",
        }
    ] * 4


def test_the_command_refuses_what_the_planner_refuses():
    done = CliRunner().invoke(app, [*ARGUMENTS, "--delta", "0.5"])
    assert isinstance(done.exception, InputError)
    assert done.exception.exit_code == 2


def test_the_table_for_the_terminal(found):
    text = io.StringIO()
    print_answer(found, Console(file=text, width=200))
    assert "400 patients, 4 rounds of 2 steps" in text.getvalue()
    assert "steps within 3 (of 8)" in text.getvalue()


def test_the_commands_load_neither_torch_nor_opacus():
    code = (
        "import sys, simulations.privacy.cli, simulations.privacy.planner\n"
        "print([n for n in ('torch', 'opacus', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
