"""The report's sentences and number formats, case by case."""

import pytest

from server.report import words
from server.report.summary import Estimate, Summary, read_summary


def _summary(gain: dict[str, float] | None = None, **more: object) -> Summary:
    value = {"status": "completed", "rounds": 1, "comparisons": {"council_vs_local_mean": gain}}
    return read_summary(value | more)


def test_numbers() -> None:
    assert [words.score(None), words.score(0.81249)] == ["–", "0.812"]
    assert words.change(-0.01) == "−0.010"
    assert words.change(None) == "–"
    assert [words.count(None), words.count(25596)] == ["–", "25,596"]
    assert [words.percent(None), words.percent(0.432)] == ["–", "43 %"]
    assert [words.threshold(0.21), words.threshold(0.0000123)] == ["0.210", "1.2e-05"]
    assert words.interval(Estimate(value=0.5)) == "0.500"


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "–"), (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (4.64e6, "4.6 MB"),
     (2e12, "2000.0 GB")],
)  # fmt: skip
def test_sizes(number: float | None, text: str) -> None:
    assert words.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (8.44, "8.4 s"), (725, "12 min 5 s"), (12010, "3 h 20 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("gain", "parts"),
    [
        (None, ["is open: this run has no number"]),
        ({"value": 0.05}, ["Yes:", "0.050 higher", "stays open"]),
        ({"value": 0.05, "low": -0.01, "high": 0.1}, ["Yes:", "includes zero", "may be chance"]),
        ({"value": -0.05, "low": -0.1, "high": -0.01}, ["No:", "0.050 lower", "−0.100 to −0.010"]),
        ({"value": 0.0001, "low": -0.1, "high": 0.1}, ["No difference"]),
    ],
)
def test_did_it_help(gain: dict[str, float] | None, parts: list[str]) -> None:
    text = words.did_it_help(_summary(gain))
    assert all(part in text for part in parts)


def test_the_gain_is_over_the_findings_that_both_define() -> None:
    def model(**values: float | None) -> dict[str, object]:
        return {"auroc": {name: {"value": value} for name, value in values.items()}}

    summary = _summary(
        federated={"council": model(Mass=0.9, Nodule=0.5, Hernia=0.99, Edema=None)},
        local_only={"a": model(Mass=0.7, Nodule=0.5), "b": model(Mass=0.8, Edema=0.6)},
    )
    assert words.local_means(summary) == {"Mass": 0.75, "Nodule": 0.5, "Edema": 0.6}
    assert words.gain(summary).value == pytest.approx(0.075)
    assert words.gain(summary).low is None


def test_against_pooled() -> None:
    assert words.against_pooled(_summary()) == ""
    pooled = {"macro_auroc": 0.8}
    assert words.against_pooled(_summary(pooled=pooled)).endswith("reaches 0.800.")
    versus = {"council_vs_pooled": {"value": -0.01, "low": -0.02, "high": 0.001}}
    text = words.against_pooled(_summary(pooled=pooled, comparisons=versus))
    assert text.endswith("by −0.010 (95 % interval −0.020 to +0.001).")


def test_titles() -> None:
    assert words.title(_summary(sites={"a": {}})) == (
        "One hospital trained one chest X-ray model together"
    )
    many = {f"h{n}": {} for n in range(12)}
    assert words.title(_summary(sites=many)).startswith("12 hospitals trained")
    assert "which hold" not in words.what_happened(_summary(sites=many))


def test_limits_follow_the_run() -> None:
    council = {"auroc": {"Hernia": {"value": 0.9, "positives": 3}, "Mass": {"value": None}}}
    texts = words.limits(_summary(federated={"council": council}))
    assert "Not measured here, as the test offers no cases: Mass." in texts
    assert "Few positive test images, so read with caution: Hernia (3)." in texts
    assert not any("synthetic" in text for text in texts)
    assert any("synthetic" in text for text in words.limits(_summary(data={"synthetic": True})))
