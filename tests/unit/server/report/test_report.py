"""The report of a whole run, made from a real bootstrap of made-up scores."""

import json
import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.bootstrap import Replicates, bootstrap, difference, mean_interval, mean_of
from common.errors import InputError
from common.findings import FINDINGS
from common.metrics import auroc, calibration_table, choose_thresholds, macro, operating_table
from common.subgroups import subgroup_table
from server.report.page import write_report
from tests.html_page import Page

SITES = {"outpatient": 0.75, "ward": 0.9, "icu": 0.7, "rural": 0.55}
ANNOTATES = {"outpatient": FINDINGS, "ward": FINDINGS, "icu": FINDINGS[:9], "rural": FINDINGS[:7]}


class _Test:
    """A test set without any hernia, and models of a chosen skill on it."""

    def __init__(self, images: int = 900) -> None:
        self.rng = np.random.default_rng(7)
        self.patients = np.sort(self.rng.integers(0, images // 3, images))
        rates = np.geomspace(0.25, 0.02, len(FINDINGS))
        self.targets = (self.rng.random((images, len(FINDINGS))) < rates).astype(np.int8)
        self.targets[:, FINDINGS.index("Hernia")] = 0
        self.ease = self.rng.uniform(0.8, 1.8, len(FINDINGS))
        self.common = self.rng.normal(size=self.targets.shape)
        self.site = self.rng.choice(list(SITES), images)
        self.sex = self.rng.choice(["F", "M"], images)
        self.age = self.rng.uniform(5, 95, images)
        self.view = self.rng.choice(["PA", "AP"], images, p=[0.6, 0.4])

    def scores(self, skill: float, knows: tuple[str, ...] = FINDINGS) -> np.ndarray:
        noise = self.common + 0.5 * self.rng.normal(size=self.targets.shape)
        logits = skill * self.ease * self.targets + noise - 2
        scores = 1 / (1 + np.exp(-logits))
        scores[:, [name not in knows for name in FINDINGS]] = np.nan
        return scores

    def replicates(self, scores: np.ndarray) -> Replicates:
        return bootstrap(self.targets, scores, self.patients, resamples=200).auroc


def example() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A summary and the round lines of a run of four hospitals and a mask hospital."""
    test = _Test()
    council, pooled = test.scores(1.25), test.scores(1.3)
    alone = {name: test.scores(skill, ANNOTATES[name]) for name, skill in SITES.items()}
    local = {name: test.replicates(scores) for name, scores in alone.items()}
    together, whole = test.replicates(council), test.replicates(pooled)
    thresholds = choose_thresholds(test.targets, council)
    dice = mean_interval(test.rng.beta(60, 3, 40), np.arange(40))
    sites = {
        name: {
            "patients": 30 * (n + 2),
            "images": 115 * (n + 2),
            "labelled": 100 * (n + 2),
            "ap_share": share,
            "annotates": list(ANNOTATES[name]),
        }
        for n, (name, share) in enumerate(zip(SITES, (0.0, 0.32, 0.74, 0.2), strict=True))
    }
    sites["masks"] = {"patients": 58, "images": 58, "labelled": 0, "masks": 58, "annotates": []}
    summary = {
        "status": "completed",
        "rounds": 8,
        "seconds": 271.4,
        "sites": sites,
        "federated": {
            "council": together.scores(),
            "personal": {name: test.replicates(test.scores(1.1)).scores() for name in SITES},
        },
        "local_only": {name: model.scores() for name, model in local.items()},
        "pooled": whole.scores(),
        "comparisons": {
            "council_vs_local_mean": difference(together, mean_of([*local.values()])).macro(),
            "council_vs_pooled": difference(together, whole).macro(),
        },
        "lungs": {
            "dice": dice["value"],
            "dice_low": dice["low"],
            "dice_high": dice["high"],
            "iou": 0.91,
            "images": 40,
        },
        "cross_site": _cross_site(test, alone),
        "cross_site_order": [*SITES, "masks"],
        "bytes_per_round": 4_640_000,
        "encoder_sha256": "9f2c" * 16,
        "plan": {"name": "demo", "model": {"backbone": "tiny", "image_size": 64}, "seed": 0},
        "plan_sha256": "01ab" * 16,
        "data": {"name": "phantom", "synthetic": True, "test_images": 900, "test_patients": 290},
        "calibration": calibration_table(test.targets, council),
        "operating_points": operating_table(test.targets, council, thresholds),
        "subgroups": subgroup_table(
            test.targets, council, test.sex, test.age, test.view, thresholds
        ),
    }
    return summary, _rounds(test.rng)


def _cross_site(test: _Test, alone: dict[str, np.ndarray]) -> list[list[float | None]]:
    rows: list[list[float | None]] = []
    for scores in alone.values():
        row = []
        for name in SITES:
            chosen = test.site == name
            columns = zip(test.targets[chosen].T, scores[chosen].T, strict=True)
            row.append(macro(auroc(target, score) for target, score in columns))
        rows.append([*row, None])
    rows[3][2] = None  # a rural model without a finding that the icu's patients have
    return [*rows, [None] * 5]


def _rounds(rng: np.random.Generator) -> list[dict[str, Any]]:
    lines = []
    for number in range(1, 9):
        reached = 1 - 0.75 ** (number - 1)
        sites = {
            name: {
                "weight": 100.0,
                "seconds": 3.0 + n,
                "metrics": {
                    "train_loss": 0.5,
                    "val_macro_auroc": 0.52 + 0.22 * skill * reached + rng.normal(0, 0.01),
                },
            }
            for n, (name, skill) in enumerate(SITES.items())
        }
        dice = 0.5 + 0.45 * reached
        sites["masks"] = {"weight": 58.0, "seconds": 2.0, "metrics": {"val_dice": dice}}
        rejected, missing = [], []
        if number in (3, 4):
            del sites["rural"]
            rejected = [{"site": "rural", "code": "norm", "detail": "L2 norm 812.4, limit 9.1"}]
        if number == 6:
            del sites["icu"]
            missing = ["icu"]
        lines.append(
            {
                "round": number,
                "status": "done",
                "seconds": 31.0,
                "sites": sites,
                "rejected": rejected,
                "failed": [],
                "missing": missing,
                "bytes_up": 2_320_000,
                "bytes_down": 2_320_000,
            }
        )
    return lines


@pytest.fixture(scope="module")
def run() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return example()


@pytest.fixture(scope="module")
def page(run: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("run")
    path = write_report(*run, out)
    assert path == out / "report.html"
    assert [file.name for file in out.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def _row(page: str, finding: str) -> str:
    found = re.search(rf'<tr[^>]* data-finding="{finding}">(.*?)</tr>', page, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_page_is_self_contained_and_well_formed(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    for tag in ("script", "link", "iframe", "object"):
        assert not parsed.all(tag)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]+", "", page))
    for image in parsed.all("img"):
        assert str(image["src"]).startswith("data:image/svg+xml;base64,")
        assert len(str(image["alt"])) > 40


def test_the_figures_are_drawings_without_outside_resources(page: str) -> None:
    figures = [b64decode(part) for part in re.findall(r"svg\+xml;base64,([^\"]+)", page)]
    assert len(figures) == 2
    for figure in figures:
        assert ET.fromstring(figure).tag.endswith("svg")
        assert not re.search(rb'href="(?!#)', figure)


def test_tables_have_captions_and_headers(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.all("table")) == len(parsed.all("caption")) >= 8
    assert all(cell.get("scope") for cell in parsed.all("th"))
    assert ("html", {"lang": "en"}) in parsed.tags
    assert len(parsed.all("h1")) == 1


def test_every_finding_is_there_and_an_undefined_one_is_a_dash(page: str) -> None:
    for finding in FINDINGS:
        assert finding.replace("_", " ") in _row(page, finding)
    assert re.findall(r"<td[^>]*>(.*?)</td>", _row(page, "Hernia")) == ["0", *["–"] * 5]
    assert "–" not in _row(page, "Effusion")
    assert "A dash (–) is undefined" in page
    assert "Not measured here, as the test offers no cases: Hernia." in page
    assert "nan" not in Page(page).text.lower().split()
    assert "None" not in Page(page).text.replace("None: every update", "")


def test_the_numbers_are_those_of_the_summary(run: Any, page: str) -> None:
    summary = run[0]
    council = summary["federated"]["council"]["auroc"]["Effusion"]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", _row(page, "Effusion"))
    local = macro(site["auroc"]["Effusion"]["value"] for site in summary["local_only"].values())
    assert cells[0] == str(council["positives"])
    assert cells[1] == f"{local:.3f}"
    assert cells[4] == f"{council['value']:.3f} ({council['low']:.3f} to {council['high']:.3f})"
    means = re.findall(r"<td[^>]*>(.*?)</td>", _row(page, "mean"))
    assert means[4].startswith(f"{summary['federated']['council']['macro_auroc']:.3f} (")
    assert means[5] == f"{summary['pooled']['macro_auroc']:.3f}"


def test_the_first_words_answer_the_question(page: str) -> None:
    text = Page(page).text
    assert "Five hospitals trained one chest X-ray model together" in text
    assert "In 8 rounds (4 min 31 s), five hospitals, which hold" in text
    assert "Yes: together they score" in text
    assert "it excludes zero" in text
    assert "Synthetic images." in text
    assert "best: ward" in text


def test_rejected_and_silent_hospitals_are_named(page: str) -> None:
    text = Page(page).text
    assert "rural update rejected norm far larger than the other updates; L2 norm 812.4" in text
    assert "3, 4" in text
    assert "icu no answer in time – – 6" in text


def test_a_hospital_without_numbers_is_named_below_the_matrix(page: str) -> None:
    matrix = re.search(r'<table class="matrix">.*?</table>', page, re.DOTALL)
    assert matrix is not None
    assert "masks" not in matrix[0]
    assert matrix[0].count('class="own"') == len(SITES)
    assert "nothing could be measured for them: masks." in page


def test_identity_and_traffic(page: str) -> None:
    text = Page(page).text
    for part in ("9f2c" * 16, "01ab" * 16, "4.6 MB", "2.3 MB", "31.0 s", "tiny", "5.0 s"):
        assert part in text
    assert re.search(
        r"mean Dice of 0\.9\d\d \(0\.9\d\d to 0\.9\d\d\) and a mean IoU of 0\.910", text
    )


def test_the_same_run_gives_the_same_page(run: Any, page: str, tmp_path: Path) -> None:
    again = json.loads(json.dumps(run))
    assert write_report(*again, tmp_path).read_text(encoding="utf-8") == page


HOSTILE = '<script>alert("1")</script>'


def test_hostile_names_are_escaped(run: Any, tmp_path: Path) -> None:
    names = {
        "ward": HOSTILE,
        "icu": "a $x_1^{$ \\frac{ b & c",
        "rural": "病院\x07 \u202e",
        "_x": "_",
    }
    summary, rounds = (_renamed(part, names) for part in run)
    rounds[0]["rejected"] = [{"site": HOSTILE, "reason": HOSTILE, "detail": HOSTILE}]
    summary["plan"]["name"] = HOSTILE
    page = write_report(summary, rounds, tmp_path).read_text(encoding="utf-8")
    assert not Page(page).all("script")
    assert "&lt;script&gt;" in page
    assert "b &amp; c" in page
    assert "病院" in page
    assert not {"\x07", "\u202e"} & set(page)


def _renamed(part: Any, names: dict[str, str]) -> Any:
    if isinstance(part, dict):
        return {names.get(key, key): _renamed(value, names) for key, value in part.items()}
    if isinstance(part, list):
        return [_renamed(value, names) for value in part]
    return names.get(part, part) if isinstance(part, str) else part


def test_a_failed_run_says_so(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "fewer than 2 good updates.", "rounds": 1}
    line = {
        "round": 2,
        "status": "failed",
        "rejected": [{"site": "a", "code": "not-finite", "detail": ""}],
        "failed": [{"site": "b", "code": "bad-data"}],
        "missing": ["c"],
        "not_applied": {"code": "too-long", "detail": "step of L2 norm 9 above 3"},
    }
    text = Page(write_report(failed, [line], tmp_path).read_text(encoding="utf-8")).text
    assert "This run did not finish" in text
    assert "it stopped after 1 finished round. The reason given: fewer than 2 good updates." in text
    assert "trained one chest X-ray model together" not in text
    assert "a update rejected not-finite holds numbers that are not finite 2" in text
    assert "b failed at the hospital bad-data" in text
    words = "a step too long for the model; step of L2 norm 9 above 3"
    assert f"all round not applied too-long {words} 2" in text
    assert "No AUROC of the council was computed" in text
    assert all(finding.replace("_", " ") in text for finding in FINDINGS)


def test_a_run_that_failed_before_the_first_round(tmp_path: Path) -> None:
    text = Page(write_report({"status": "failed"}, [], tmp_path).read_text("utf-8")).text
    assert "This run did not finish" in text
    assert "The rounds" not in text


def test_many_hospitals_still_fit(run: Any, tmp_path: Path) -> None:
    lines = [
        {
            "round": number,
            "sites": {
                f"h{n}": {"seconds": 1.0, "metrics": {"val_macro_auroc": 0.5 + n / 100}}
                for n in range(12)
            },
            "rejected": [{"site": "h13", "code": "norm"}],
        }
        for number in range(1, 13)
    ]
    page = write_report(run[0], lines, tmp_path).read_text(encoding="utf-8")
    assert "1, 2, 3, 4, 5, 6, 7, 8 … (12 in all)" in page


def test_a_wrong_shape_is_named(run: Any, tmp_path: Path) -> None:
    summary = {**run[0], "cross_site": [[0.5]]}
    with pytest.raises(InputError, match="cross_site must be 5 rows of 5 numbers"):
        write_report(summary, [], tmp_path)
    with pytest.raises(InputError, match="status: found nothing"):
        write_report({}, [], tmp_path)
    nan = {"status": "completed", "federated": {"council": {"macro_auroc": float("nan")}}}
    with pytest.raises(InputError, match=r"federated\.council\.macro_auroc: found nan"):
        write_report(nan, [], tmp_path)
    with pytest.raises(InputError, match=r"rounds\.jsonl line 2: round: found nothing"):
        write_report(run[0], [{"round": 1}, {}], tmp_path)
    assert list(tmp_path.iterdir()) == []
