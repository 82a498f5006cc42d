"""The site's privacy report, from real ledgers: what it says, and that it claims no more."""

import json
import math
import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from client.ledger import LedgerError
from client.privacy.accounting import Charge, epsilon
from client.report import PrivacyFacts, as_json, collect, render, write_report
from client.report import spend as spending
from client.report.facts import Audit
from client.report.page import message_kinds
from common.errors import InputError
from common.privacy_words import coin, delta_text, epsilon_text, hits, odds_factor, percent_up
from tests.html_page import Page
from tests.unit.client.ledger.ledger_world import (
    CHARGE_A,
    CHARGE_B,
    KEYS,
    NAMES,
    PLAN_A,
    PLAN_B,
    PLAN_C,
    UNPROTECTED,
    Book,
    make_site,
    two_runs,
)

NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
AUDIT = {
    "epsilon_lower": 0.31,
    "confidence": 0.95,
    "canaries": 1000,
    "accounted": 1.092,
    "at": "2026-11-20T10:00:00+00:00",
    "more": [1],
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> PrivacyFacts:
    site = make_site(tmp_path_factory.mktemp("north"))
    two_runs(site)
    site.reports.mkdir()
    (site.reports / "audit.json").write_text(json.dumps(AUDIT))
    return collect(site, NOW)


@pytest.fixture(scope="module")
def page(facts: PrivacyFacts) -> str:
    return render(facts)


def test_the_total_is_what_all_charges_cost_together(facts: PrivacyFacts) -> None:
    winter = [Charge(CHARGE_A.noise_multiplier, CHARGE_A.sampling_rate, 12)]
    spring = [Charge(CHARGE_B.noise_multiplier, CHARGE_B.sampling_rate, 4), Charge(10.0, 1.0, 1)]
    assert facts.epsilon == pytest.approx(epsilon([*winter, *spring], 1e-5))
    assert [run.plan_name for run in facts.runs] == ["winter", "spring"]
    assert [run.epsilon for run in facts.runs] == pytest.approx(
        [epsilon(winter, 1e-5), epsilon(spring, 1e-5)]
    )
    assert [run.epsilon_after for run in facts.runs] == pytest.approx(
        [epsilon(winter, 1e-5), facts.epsilon]
    )
    assert [(run.rounds, run.charges, run.unsent) for run in facts.runs] == [
        (4, 4, (3,)),
        (2, 3, ()),
    ]
    assert len(facts.course) == facts.charges == 7
    assert facts.course[-1].epsilon == pytest.approx(facts.epsilon)
    assert [point.run for point in facts.course] == [0] * 4 + [1] * 3


def test_what_left_what_was_refused_and_what_stays(facts: PrivacyFacts) -> None:
    assert [(m.action, m.round) for m in facts.messages][2:4] == [("train", 4), ("finish", 4)]
    assert len(facts.messages) == 6
    assert facts.messages[0].keys == tuple(KEYS)
    assert [(r.code, r.round) for r in facts.refusals] == [("budget-spent", 3)]
    assert [note.kind for note in facts.notes] == ["serving"]
    assert facts.policy_recorded
    assert [change.changed for change in facts.policy_changes] == [{}]
    assert facts.chain.entries == 2 + 7 + 6 + 2


def test_the_page_is_self_contained_and_well_formed(page: str) -> None:
    parsed = Page(page)
    for tag in ("script", "link", "iframe", "object"):
        assert not parsed.all(tag)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]+", "", page))
    assert len(parsed.all("h1")) == 1
    assert len(parsed.all("table")) == len(parsed.all("caption"))
    assert all(cell.get("scope") for cell in parsed.all("th"))
    assert "@media print" in page
    [image] = parsed.all("img")
    assert "7 charges of 2 runs" in str(image["alt"])
    [figure] = re.findall(r"svg\+xml;base64,([^\"]+)", page)
    drawing = b64decode(figure)
    assert ET.fromstring(drawing).tag.endswith("svg")
    assert not re.search(rb'href="(?!#)', drawing)


def test_the_page_says_it_in_words_and_in_figures(facts: PrivacyFacts, page: str) -> None:
    text = Page(page).text
    assert facts.epsilon is not None
    for part in (
        f"epsilon {epsilon_text(facts.epsilon)} at delta 0.00001 (1 in 100,000), of a lifetime cap",
        percent_up(coin(facts.epsilon, 1e-5)),
        percent_up(hits(facts.epsilon, 1e-5, 0.01)),
        odds_factor(facts.epsilon),
        "two data sets that differ by one patient added or removed (not: replaced)",
        "delta × number = 0.04, which is small",
        "training: σ 10, q 1, 12 steps, C 1",
        "scores, noised: σ 10, q 1, 1 step",
        "what both spend adds up for that patient",
        "They themselves are protected by one thing only: they stay here.",
        "budget-spent the plan would exceed the lifetime cap",
        "covers, delta, layout, plan, round, schema, seconds, site, weight",
        "shows with 95 % confidence that its epsilon is at least 0.310",
        "so no fault was found. A lower bound can show a fault; it proves no protection.",
        f"--expect {facts.chain.entries}:{facts.chain.head}",
        f"Opacus {facts.versions['opacus']}",
        facts.versions["torch"],
        "Function",
        "Place, date",
    ):
        assert part in text
    assert "simulated hospital" not in text
    assert all(message.sha256 in page for message in facts.messages)
    assert "None" not in text
    assert "nan" not in text.lower().split()


def test_files_are_written_and_the_same_facts_give_the_same_page(
    facts: PrivacyFacts, page: str, tmp_path: Path
) -> None:
    html, data = write_report(facts, tmp_path)
    assert html.read_text(encoding="utf-8") == page
    value = json.loads(data.read_text(encoding="utf-8"))
    assert value == json.loads(json.dumps(as_json(facts)))
    assert value["schema"] == 1
    assert set(value) >= {"epsilon", "delta", "cap", "runs", "course", "messages", "refusals"}
    assert value["chain"]["verified"] is True
    assert value["policy"]["epsilon"] == 8.0
    assert value["audit"]["epsilon_lower"] == 0.31
    value["schema_version"] = value.pop("schema")
    assert PrivacyFacts.model_validate(value) == facts  # JSON holds everything


def test_a_run_without_noise_leaves_no_bound(tmp_path: Path) -> None:
    site = make_site(tmp_path, {"epsilon": 3.0, "non_private": "allow"}, simulated=True)
    book = Book(site)
    for number in (1, 2):
        book.reserve(PLAN_A, number, CHARGE_A)
        book.sent(PLAN_A, number)
    book.reserve(PLAN_C, 1, UNPROTECTED)
    facts = collect(site, NOW)
    assert not facts.bounded
    assert [run.epsilon_after is None for run in facts.runs] == [False, True]
    assert facts.epsilon_private == pytest.approx(facts.runs[0].epsilon)
    assert as_json(facts)["epsilon"] is None
    text = Page(render(facts)).text
    assert "There is no bound. A run without differential privacy used these patients (pilot)" in (
        text
    )
    assert "A simulated hospital." in text
    assert "All of this holds for the runs with noise only." in text
    assert "Right answers" not in text
    assert "cap minus spent" not in text
    assert "noised before it left" not in text


def test_only_runs_without_noise(tmp_path: Path) -> None:
    site = make_site(tmp_path, {"non_private": "allow"}, nominal_units=None)
    Book(site).reserve(PLAN_C, 1, UNPROTECTED)
    text = Page(render(collect(site, NOW))).text
    assert "No training with noise is in this ledger." in text
    assert "none set: no private plan may run" in text
    assert "cannot be judged here" in text


def test_before_the_first_charge(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    Book(site).refused(PLAN_A, 1, "noise-floor")
    facts = collect(site, NOW)
    assert facts.epsilon == 0.0
    text = Page(render(facts)).text
    assert "Nothing was learned from this site’s patients under this ledger" in text
    assert "the plan has less noise than the policy's floor" in text.replace("’", "'")
    assert "No message is recorded." in text
    assert not Page(render(facts)).all("img")


def test_a_changed_policy_and_a_cap_below_the_spend(tmp_path: Path) -> None:
    book = Book(make_site(tmp_path))
    book.reserve(PLAN_A, 1, CHARGE_A)
    site = make_site(tmp_path, {"epsilon": 0.5, "delta": 1e-3})
    text = Page(render(collect(site, NOW))).text
    assert "is not the one that the ledger last recorded" in text
    assert "delta × number = 4. That is too large" in text
    site = make_site(tmp_path, {"epsilon": 0.1})
    book.ledger.policy(site.settings.policy.model_dump(mode="json"))
    facts = collect(site, NOW)
    assert facts.policy_recorded
    assert facts.policy_changes[1].changed == {"epsilon": (8.0, 0.1)}
    text = Page(render(facts)).text
    assert "epsilon: 8 → 0.1" in text
    assert "More is spent than the present cap of 0.1 allows" in text


def test_an_image_as_the_unit_is_said_to_protect_a_patient_less(tmp_path: Path) -> None:
    site = make_site(tmp_path, {"epsilon": 8.0, "unit": "image", "strict_noise": True})
    Book(site).reserve(PLAN_A, 1, CHARGE_A)
    text = Page(render(collect(site, NOW))).text
    assert "A patient with k images is protected less: up to k × epsilon" in text
    assert "two data sets that differ by one image" in text
    assert "(strict_noise)" in text


def test_an_audit_that_contradicts_the_accounting_is_an_alarm(
    facts: PrivacyFacts, tmp_path: Path
) -> None:
    assert facts.audit is not None
    worse = facts.audit.model_copy(update={"epsilon_lower": 3.4})
    page = render(facts.model_copy(update={"audit": worse}))
    assert "do not rely on this report" in page
    assert 'class="alert">A dry run' in page
    assert "no audit result lies" in render(facts.model_copy(update={"audit": None}))
    site = make_site(tmp_path)
    Book(site)
    site.reports.mkdir()
    (site.reports / "audit.json").write_text(json.dumps(AUDIT | {"canaries": 0}))
    with pytest.raises(InputError, match=r"audit\.json: canaries: found 0"):
        collect(site, NOW)
    (site.reports / "audit.json").write_text(json.dumps(AUDIT | {"plays": 140}))
    with pytest.raises(InputError, match="exactly one of canaries and plays"):
        collect(site, NOW)


def test_an_audit_of_the_ledgers_own_mechanism_says_so(facts: PrivacyFacts) -> None:
    played = {key: value for key, value in AUDIT.items() if key != "canaries"} | {"plays": 1400}
    found = facts.model_copy(update={"audit": Audit.model_validate(played)})
    text = Page(render(found)).text
    assert "as this ledger was charged, attacked 1,400 times with made-up patients" in text
    assert "do not rely on this report" not in text
    # A leak by codes or times shows in no epsilon.
    leak = {"holds": False, "leaks": ["the times of answers tell whether the patient is there"]}
    found = facts.model_copy(update={"audit": Audit.model_validate(played | leak)})
    page = render(found)
    assert 'class="alert">A dry run' in page
    assert "It found: the times of answers tell whether the patient is there." in Page(page).text


def test_a_missing_or_damaged_ledger_gives_no_report(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    with pytest.raises(InputError, match="found nothing; allowed: a ledger") as caught:
        collect(site, NOW)
    assert not isinstance(caught.value, LedgerError)
    book = Book(site)
    book.ledger.path.unlink()
    with pytest.raises(LedgerError):
        collect(site, NOW)


def test_an_entry_of_another_shape_is_named(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    Book(site).ledger.record("sent", {"action": "train"})
    with pytest.raises(LedgerError, match=r"an entry of another shape .KeyError: 'plan'"):
        collect(site, NOW)


HOSTILE = '<script>alert("1")</script>'


def test_hostile_names_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    book = Book(site)
    monkeypatch.setitem(NAMES, PLAN_A, f"{HOSTILE} $x_1^{{$ \u202e")
    book.reserve(PLAN_A, 1, CHARGE_A)
    book.refused(HOSTILE, 1, HOSTILE)
    body = {"action": HOSTILE, "plan": PLAN_A, "round": 1, "bytes": 1, "sha256": "ab"}
    book.ledger.record("sent", body | {"keys": [HOSTILE]})
    page = render(collect(site, NOW))
    assert not Page(page).all("script")
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page


def test_many_charges_are_thinned_and_never_drawn_too_low() -> None:
    plans = [PLAN_A] * 130 + [PLAN_B] * 7
    chosen = spending.chosen(plans)
    assert len(chosen) <= spending.MOST_POINTS + 2
    assert {130, 137} <= set(chosen)
    assert spending.chosen([PLAN_A, PLAN_A, PLAN_B]) == [1, 2, 3]
    assert spending.chosen([]) == []


def test_messages_of_one_kind_share_a_letter(facts: PrivacyFacts) -> None:
    many = [facts.messages[0].model_copy(update={"keys": (f"k{number}",)}) for number in range(29)]
    letters = list(message_kinds((*many, many[0])).values())
    assert letters[:2] == ["A", "B"]
    assert letters[25:] == ["Z", "AA", "AB", "AC"]


@pytest.mark.parametrize(("value", "text"), [(2.0001, "2.001"), (2.001, "2.001"), (0.0, "0.000")])
def test_epsilon_is_never_said_to_be_less(value: float, text: str) -> None:
    assert epsilon_text(value) == text


def test_limits_of_guessing() -> None:
    assert coin(0.0, 0.0) == 0.5
    assert coin(math.log(3.0), 0.0) == pytest.approx(0.75)
    assert coin(1e6, 1e-5) == 1.0
    assert hits(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert hits(1.0, 1e-5, 0.01) == pytest.approx(math.e * 0.01 + 1e-5)
    assert hits(1e6, 1e-5, 0.01) == 1.0
    assert epsilon_text(None) == epsilon_text(math.inf) == "no bound"
    assert odds_factor(20.0) == "more than a million"
    assert delta_text(1e-6) == "0.000001 (1 in 1,000,000)"


def test_a_gaussian_mechanism_stays_within_the_limits() -> None:
    """One noised sum, tested by the best test there is, for which all is known in closed form."""
    from scipy.stats import norm

    sigma, delta = 1.5, 1e-5
    bound: Any = epsilon([Charge(sigma, 1.0, 1)], delta)
    best_coin = norm.cdf(0.5 / sigma)
    best_hits = norm.cdf(norm.ppf(0.01) + 1.0 / sigma)
    assert best_coin <= coin(bound, delta)
    assert best_hits <= hits(bound, delta, 0.01)
