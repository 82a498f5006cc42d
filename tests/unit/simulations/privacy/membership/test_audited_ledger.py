"""What the audit reads from a site's ledger, and what it says of one that is not in order."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from client.ledger import Ledger, LedgerError
from client.privacy.accounting import Charge, epsilon
from common.errors import DataError, InputError
from simulations.privacy.membership.attack import Opening
from simulations.privacy.membership.mechanism import Mechanism, chosen, read_audited
from simulations.privacy.membership.site import SiteAudit, get_ready
from tests.unit.client.ledger.ledger_world import (
    CHARGE_A,
    CHARGE_B,
    PLAN_A,
    UNPROTECTED,
    Book,
    make_site,
    two_runs,
)
from tests.unit.client.ledger.ledgers import tamper
from tests.unit.client.private_world import private_plan


def test_every_distinct_mechanism_is_read_once(tmp_path: Path) -> None:
    """Four rounds of winter, two of spring with half the clipping norm, and one score."""
    site = make_site(tmp_path / "north", engine="loop")
    two_runs(site)
    found = read_audited(site.path)
    winter = Mechanism("training", "patient", 10.0, 1.0, 3, 1.0, 4, ("winter",))
    spring = Mechanism("training", "patient", 8.0, 1.0, 2, 0.5, 2, ("spring",))
    score = Mechanism("metrics", "patient", 10.0, 1.0, 1, 1.0, 1, ("spring",))
    assert found.mechanisms == (winter, spring, score)
    assert (found.name, found.engine, found.simulated, found.unprotected) == (
        "north", "loop", False, 0,
    )  # fmt: skip
    charges = [CHARGE_A] * 4 + [CHARGE_B] * 2 + [Charge(10.0, 1.0, 1)]
    assert found.epsilon == pytest.approx(epsilon(charges, 1e-5))
    assert winter.charge == CHARGE_A
    assert chosen(found, None) == [winter, spring, score]
    assert chosen(found, 2) == [spring]


def test_the_ledger_alone_says_as_much_but_for_name_and_engine(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north", engine="loop")
    book = two_runs(site)
    found, alone = read_audited(site.path), read_audited(book.ledger.path)
    assert alone.mechanisms == found.mechanisms
    assert alone.policy == found.policy == site.settings.policy
    assert (alone.name, alone.engine) == ("ledger.sqlite", "auto")


def test_nothing_is_written(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north")
    two_runs(site)
    before = Ledger(site.path / "ledger.sqlite").head()
    files = {path.name for path in site.path.iterdir()}
    read_audited(site.path)
    assert Ledger(site.path / "ledger.sqlite").head() == before
    assert {path.name for path in site.path.iterdir()} == files


def test_charges_without_noise_are_counted_and_not_attacked(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north", {"epsilon": 8.0, "non_private": "allow"})
    book = Book(site)
    book.reserve(PLAN_A, 1, CHARGE_A)
    book.reserve(PLAN_A, 1, UNPROTECTED)
    found = read_audited(site.path)
    assert found.unprotected == 1
    assert [each.noise_multiplier for each in found.mechanisms] == [10.0]


def message(path: Path, **asked: Any) -> str:
    with pytest.raises(InputError) as caught:
        get_ready(SiteAudit(path, **asked))
    return str(caught.value)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    said = message(tmp_path / "nowhere")
    assert said == (
        f"{tmp_path / 'nowhere'}: found nothing; allowed: a site's folder with site.yaml and a "
        "ledger, or a ledger file. For a simulated hospital that is RUN/sites/NAME."
    )


def test_a_folder_that_is_no_site(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"site\.yaml"):
        get_ready(SiteAudit(tmp_path))


def test_a_site_without_a_ledger(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north")
    said = message(site.path)
    assert said.startswith(f"{site.path / 'ledger.sqlite'}: found nothing; allowed: a ledger, ")
    assert "let a plan run first" in said


def test_a_broken_chain(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north")
    book = two_runs(site)
    tamper(book.ledger, "UPDATE entries SET at = '2020-01-01' WHERE number = 3")
    with pytest.raises(LedgerError, match="entry 3: found an entry that does not fit its hash"):
        get_ready(SiteAudit(site.path))


@pytest.mark.parametrize(
    ("charges", "found"),
    [
        (0, "entries 'reserve': found no charge at all; allowed: at least one charge of private"),
        (2, "entries 'reserve': found 2 charges, all without noise, which have no bound; allowed"),
    ],
)
def test_a_ledger_without_a_private_charge(tmp_path: Path, charges: int, found: str) -> None:
    site = make_site(tmp_path / "north", {"epsilon": 8.0, "non_private": "allow"})
    book = Book(site)
    for number in range(charges):
        book.reserve(PLAN_A, number + 1, UNPROTECTED)
    assert f"{site.path / 'ledger.sqlite'}: {found}" in message(site.path)


def test_a_charge_of_another_shape(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north")
    ledger = Book(site).ledger
    with ledger._store.writing() as draft:
        draft.add("reserve", {"purpose": "training", "unit": "patient", "sampling_rate": 2.0})
    said = message(site.path)
    assert "entry 3, key 'sampling_rate': found 2.0; allowed: less than or equal to 1" in said
    assert "entry 3, key 'steps': found nothing" in said


def test_a_ledger_alone_without_a_policy(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north")
    ledger = Ledger(site.path / "ledger.sqlite")
    ledger.open("patient")
    book = Book.__new__(Book)
    book.ledger, book.policy = ledger, site.settings.policy
    book.reserve(PLAN_A, 1, CHARGE_A)
    assert "entry 'policy': found none; allowed: a recorded policy" in message(ledger.path)


def test_a_mechanism_that_is_not_there(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north")
    two_runs(site)
    said = message(site.path, number=4)
    assert f"--mechanism: found 4; allowed: 1 to 3, the mechanisms of {site.path}" in said


def test_more_rounds_than_were_charged(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north")
    two_runs(site)
    assert "--rounds: found 5; allowed: 1 to 4" in message(site.path, number=1, rounds=5)


def test_a_plan_that_was_not_charged(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north")
    two_runs(site)
    plan, file = private_plan("another"), tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    said = message(site.path, plan=file)
    assert f"{file}: found another ({plan.sha256[:12]}); allowed: a plan that was charged" in said
    assert "winter (a1a1a1a1a1a1)" in said


@pytest.mark.parametrize(("backbone", "engine"), [("tiny", "vmap"), ("resnet18", "loop")])
def test_a_plan_says_heads_and_what_auto_means_for_its_network(
    tmp_path: Path, backbone: str, engine: str
) -> None:
    plan, file = private_plan("known", model={"backbone": backbone}), tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    site = make_site(tmp_path / "north", device="cpu")
    Book(site).reserve(plan.sha256, 1, CHARGE_A)
    opening = get_ready(SiteAudit(site.path, plan=file)).opening
    assert opening == Opening(site.settings.policy, engine, "cpu", 32, 1, plan)  # type: ignore[arg-type]
    assert get_ready(SiteAudit(site.path)).opening.engine == "auto"
