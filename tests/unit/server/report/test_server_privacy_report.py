"""The federation's privacy report: what sites told, what they refused, ledgers that went back."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import InputError
from server.report.privacy_facts import FederationPrivacy, collect
from server.report.privacy_report import as_json, render, write_privacy_report
from tests.html_page import Page

PRIVATE: dict[str, Any] = {
    "name": "winter",
    "training": {"local_steps": 60, "local_epochs": None, "max_gradient_norm": None},
    "federation": {"rounds": 6, "weighting": "equal"},
    "evaluation": {"encoder": "last"},
    "privacy": {"mode": "dp-sgd", "epsilon": 3.0},
}


def spent(entries: int, epsilon: float | None, **more: Any) -> dict[str, Any]:
    """What a site tells with an update."""
    return {
        "unit": "patient",
        "epsilon": epsilon,
        "delta": 1e-5,
        "cap": 2.0,
        "noise_multiplier": 1.1,
        "sampling_rate": 0.016,
        "steps": 60,
        "clipping_norm": 1.0,
        "entries": entries,
        "head": f"{entries:02x}" * 32,
    } | more


def write_run(
    folder: Path, lines: list[dict[str, Any]], plan: dict[str, Any] | None = None, **state: Any
) -> Path:
    """A run folder as far as the report reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(yaml.safe_dump(PRIVATE if plan is None else plan))
    value = {"status": "running", "round": len(lines), "finish": None} | state
    (folder / "state.json").write_text(json.dumps(value))
    text = "".join(json.dumps({"status": "done", "failed": []} | line) + "\n" for line in lines)
    (folder / "rounds.jsonl").write_text(text)
    return folder


def example() -> list[dict[str, Any]]:
    """Five rounds: north and east tell, east's cap binds in round 4, south tells nothing."""
    lines = []
    for number in range(1, 6):
        sites: dict[str, Any] = {
            "north": {"weight": 1.0, "spent": spent(2 * number, 0.3 * number, cap=8.0)},
            "south": {"weight": 1.0, "spent": None},
        }
        failed = []
        if number < 4:
            sites["east"] = {"weight": 1.0, "spent": spent(3 * number, 0.62 * number)}
        else:
            failed = [{"site": "east", "code": "budget-spent"}]
        lines.append({"round": number, "sites": sites, "failed": failed})
    return lines


@pytest.fixture
def facts(tmp_path: Path) -> FederationPrivacy:
    finish = {"sites": {}, "failed": [{"site": "east", "code": "budget-spent"}]}
    return collect(write_run(tmp_path / "run", example(), status="completed", finish=finish))


def test_what_each_site_told(facts: FederationPrivacy) -> None:
    assert [site.name for site in facts.sites] == ["east", "north", "south"]
    east, north, south = facts.sites
    assert east.rounds == (1, 2, 3)
    assert [(item.round, item.code) for item in east.refused] == [
        (4, "budget-spent"),
        (5, "budget-spent"),
        (None, "budget-spent"),
    ]
    assert north.last is not None
    assert (north.last.epsilon, north.last.entries) == (1.5, 10)
    assert south.told == ()
    assert south.last is None
    assert len(south.rounds) == 5
    assert not any(site.warnings for site in facts.sites)


def test_the_page_says_it(facts: FederationPrivacy) -> None:
    page = render(facts)
    text = Page(page).text
    for part in (
        "2 of 3 sites told what they have spent: epsilon 1.500 to 1.860.",
        "so much that a site's training, each round once, costs epsilon 3",
        "east nearly spent 3 1.860 2 1e-05 1.1 0.016 60",
        "south not disclosed 5 – – – – – –",
        "east budget-spent the plan would exceed the lifetime cap 4, 5, the finish",
        f"10:{'0a' * 32}",
        "A patient whose records lie at two sites bears the sum of both.",
        "fits heads without noise for its own use is its own wish. They stay there",
        "5 of 6 rounds are done",
    ):
        assert part in text
    parsed = Page(page)
    assert len(parsed.all("table")) == len(parsed.all("caption"))
    assert all(cell.get("scope") for cell in parsed.all("th"))
    assert [str(image["src"])[:26] for image in parsed.all("img")] == ["data:image/svg+xml;base64,"]
    assert not re.search(r"https?:|url\(|@import", re.sub(r"base64,[^\"]+", "", page))
    assert not parsed.all("script")


def test_files_are_written_and_json_holds_everything(
    facts: FederationPrivacy, tmp_path: Path
) -> None:
    page, data = write_privacy_report(facts, tmp_path)
    assert page.read_text(encoding="utf-8") == render(facts)
    value = json.loads(data.read_text(encoding="utf-8"))
    assert value == json.loads(json.dumps(as_json(facts)))
    assert value["schema"] == 1
    value["schema_version"] = value.pop("schema")
    assert FederationPrivacy.model_validate(value) == facts


@pytest.mark.parametrize(
    ("told", "warning"),
    [
        ([spent(4, 0.3), spent(3, 0.6)], "the ledger went back from 4 to 3 entries since round 1"),
        ([spent(4, 0.3), spent(4, 0.3, head="f" * 64)], "at 4 entries, the ledger has another"),
        ([spent(4, 0.6), spent(6, 0.3)], "the epsilon told fell from 0.600 to 0.300"),
        ([spent(4, None), spent(6, 0.3)], "the epsilon told fell from no bound to 0.300"),
        ([spent(4, 0.6), spent(6, 0.3, delta=1e-3)], None),
        ([spent(4, 0.6), spent(4, 0.6)], None),
        ([spent(4, 0.6), spent(6, None)], None),
    ],
)
def test_a_ledger_that_went_back_is_an_alarm(
    tmp_path: Path, told: list[dict[str, Any]], warning: str | None
) -> None:
    lines = [
        {"round": number, "sites": {"a": {"spent": value}}} for number, value in enumerate(told, 1)
    ]
    facts = collect(write_run(tmp_path, lines))
    assert len(facts.sites[0].warnings) == (warning is not None)
    if warning is not None:
        assert warning in facts.sites[0].warnings[0]
        assert 'class="alert"><strong>a:</strong> round 2' in render(facts)


def test_a_plan_without_privacy(tmp_path: Path) -> None:
    lines = [
        {"round": 1, "sites": {"a": {}}, "failed": [{"site": "b", "code": "non-private"}]},
    ]
    facts = collect(write_run(tmp_path, lines, {"name": "open"}))
    page = render(facts)
    text = Page(page).text
    assert "This run trained without differential privacy." in text
    assert 'class="alert">This run' in page
    assert "the plan has no differential privacy, and the policy refuses such plans 1" in text
    assert not Page(page).all("img")


def test_a_site_without_a_bound_and_a_fixed_noise(tmp_path: Path) -> None:
    plan = PRIVATE | {"privacy": {"mode": "dp-sgd", "noise_multiplier": 1.25}}
    text = Page(
        render(
            collect(
                write_run(tmp_path, [{"round": 1, "sites": {"a": {"spent": spent(2, None)}}}], plan)
            )
        )
    ).text
    assert "1 of 1 sites told what they have spent; 1 of them say that there is no bound." in text
    assert "noise multiplier 1.25, the same at every site" in text
    assert "a no bound 1 no bound 2" in text


def test_before_the_first_round(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [])
    (folder / "rounds.jsonl").unlink()
    text = Page(render(collect(folder))).text
    assert "No site has answered in this run yet." in text


def test_many_sites_and_hostile_names(tmp_path: Path) -> None:
    hostile = '<script>alert("1")</script> $x_1^{$'
    sites = {f"h{number:02}": {"spent": spent(2, 0.1 * number)} for number in range(9)}
    lines = [
        {
            "round": 1,
            "sites": sites | {hostile: {"spent": spent(2, 0.2)}},
            "failed": [{"site": "z", "code": hostile}],
        }
    ]
    page = render(collect(write_run(tmp_path, lines)))
    assert not Page(page).all("script")
    assert page.count("data-site=") == 11
    lines[0]["sites"]["h00"]["spent"]["head"] = hostile
    with pytest.raises(InputError, match=r"rounds\.jsonl: line 1: found sites\.h00\.spent\.head"):
        collect(write_run(tmp_path, lines))


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"state\.json"):
        collect(tmp_path)
    folder = write_run(tmp_path, [{"round": 1, "sites": {"a": {"spent": {"unit": "patient"}}}}])
    with pytest.raises(InputError, match=r"rounds\.jsonl: line 1: found sites\.a\.spent\.epsilon"):
        collect(folder)
    (folder / "rounds.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"rounds\.jsonl: line 1"):
        collect(folder)
    with pytest.raises(InputError, match="key 'finish'"):
        collect(write_run(tmp_path, [], finish={"failed": [{"code": "x"}]}))
