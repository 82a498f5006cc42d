"""A site under a private plan: what it charges, what it refuses, and what it lets out."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from client.answer import answer
from client.data.cache import Cache
from client.learning.resident import Resident, all_parameters
from client.learning.states import States
from client.learning.train import NothingToLearnError
from client.ledger import LedgerError
from client.privacy.accounting import Charge, epsilon
from client.privacy.budget import asked
from client.privacy.scores import noised_loss
from client.site import Site
from common.checkpoint import array_sha256, read_arrays
from common.errors import LayoutError, RefusedError
from common.model import MultitaskModel, build_model
from common.parameters import shared_layout
from common.update import Broadcast
from common.wire import pack_broadcast, pack_update, unpack_update
from tests.conftest import ArchiveFactory
from tests.unit.client.private_world import (
    UNITS,
    change_policy,
    kinds,
    private_plan,
    private_site,
    start,
)
from tests.unit.client.sites import small_cache, small_plan


@pytest.fixture
def cache(nih_archive: ArchiveFactory, tmp_path: Path) -> Cache:
    return small_cache(nih_archive(patients=10, images=2, masks=True), tmp_path / "cache")


def fresh(cache: Cache, folder: Path, name: str = "ward", **settings: object) -> Site:
    return Site.open(private_site(folder / name, cache, **settings))


def test_a_round_is_charged_once_and_tells_nothing_un_noised(cache: Cache, tmp_path: Path) -> None:
    """Under a policy that lets every score leave that is not private, of however few patients."""
    policy = {"metrics": "full", "min_cell": 1}
    site, plan = fresh(cache, tmp_path, policy=policy), private_plan()
    update = site.train(plan, 1, start(plan))
    assert kinds(site) == ["open", "policy", "reserve"]
    # Two steps, in each of which about 4 of 8 patients are drawn.
    assert site.gate.ledger.charges() == [Charge(1.0, 4 / 8, 2)]
    assert update.spent is not None
    assert update.spent.epsilon == pytest.approx(epsilon([Charge(1.0, 0.5, 2)], 1e-5))
    assert (update.metrics, update.seconds) == ({}, 0.0)
    assert update.weight == site.folder.settings.nominal_units
    assert update.covers == (*site.folder.settings.annotates, "lungs")
    assert np.isfinite(update.delta).all()
    assert float(np.abs(update.delta).max()) > 0
    # Its scores stay in the site, for the site.
    assert "val_macro_auroc" in (site.folder.reports / "scores.jsonl").read_text()


def test_what_is_sent_has_the_same_keys_whatever_the_data(cache: Cache, tmp_path: Path) -> None:
    """Nor does a head stay behind for which a site has no label, although it says that it has."""
    plan = private_plan(heads="shared")
    full = pack_update(fresh(cache, tmp_path, simulated=True).train(plan, 1, start(plan)), "bf16")
    poor = fresh(cache, tmp_path, "poor", simulated=True)
    # Nothing is labelled or outlined here, although the site says that it annotates.
    nothing = np.zeros_like(poor.data.known), np.full_like(poor.data.mask_row, -1)
    poor.data = dataclasses.replace(poor.data, known=nothing[0], mask_row=nothing[1])
    bare = pack_update(poor.train(plan, 1, start(plan)), "bf16")
    assert set(bare.config) == set(full.config)
    for key in ("covers", "weight", "seconds", "wire", "layout", "round"):
        assert bare.config[key] == full.config[key]
    assert (bare.metrics, full.metrics) == ({}, {})
    assert {k: v.shape for k, v in bare.arrays.items()} == {
        k: v.shape for k, v in full.arrays.items()
    }
    layout = shared_layout(build_model(plan), "shared")
    ends = np.cumsum([np.prod(shape) for shape in layout.shapes])[:-1]
    for sent in (bare, full):
        moved = np.split(sent.arrays["delta"] != 0, ends)
        assert all(part.any() for part in moved)


def test_a_site_with_no_patients_at_all_sends_noise(cache: Cache, tmp_path: Path) -> None:
    site, plan = fresh(cache, tmp_path), private_plan()
    site.data.table.loc[site.data.table["split"] == "train", "split"] = "test"
    update = site.train(plan, 1, start(plan))
    assert float(np.abs(update.delta).max()) > 0
    assert kinds(site)[-1] == "reserve"


def test_a_round_asked_for_twice_is_paid_for_once(cache: Cache, tmp_path: Path) -> None:
    site, plan = fresh(cache, tmp_path), private_plan()
    shared = start(plan)
    first = site.train(plan, 1, shared)
    entries = site.gate.ledger.head().entries
    again = Site.open(site.folder.path).train(plan, 1, shared)
    assert np.array_equal(first.delta, again.delta)
    assert site.gate.ledger.head().entries == entries
    other = site.train(plan, 1, shared + np.float32(0.01))  # another question: another answer
    assert not np.array_equal(first.delta, other.delta)
    assert site.gate.ledger.head().entries == entries + 1


@pytest.mark.parametrize("engine", ["loop", "vmap", "opacus"])
def test_a_scored_model_trains_on(cache: Cache, tmp_path: Path, engine: str) -> None:
    """The scores of a round leave the model in evaluation mode, in which hooks see nothing."""
    site, plan = fresh(cache, tmp_path, engine=engine), private_plan()
    for number in (1, 2):
        assert np.isfinite(site.train(plan, number, start(plan)).delta).all()
    assert kinds(site).count("reserve") == 2


def test_a_wrong_vector_costs_no_budget(cache: Cache, tmp_path: Path) -> None:
    site, plan = fresh(cache, tmp_path), private_plan()
    with pytest.raises(LayoutError):
        site.train(plan, 1, start(plan)[:-1])
    assert "reserve" not in kinds(site)


def test_a_plan_that_the_budget_cannot_finish_is_refused_before_its_first_step(
    cache: Cache, tmp_path: Path
) -> None:
    site, plan = fresh(cache, tmp_path), private_plan()
    needs = asked(plan, site.folder.settings)
    two = epsilon([needs.charge(2)], 1e-5)
    change_policy(site.folder.path, epsilon=two * 1.001)
    site = Site.open(site.folder.path)
    with pytest.raises(RefusedError, match="At most 4 steps fit") as caught:
        site.train(plan, 1, start(plan))
    assert (caught.value.code, caught.value.fits) == ("budget-spent", 4)
    assert kinds(site) == ["open", "policy", "refused"]


def test_until_spent_joins_for_as_long_as_the_budget_lasts(cache: Cache, tmp_path: Path) -> None:
    site, plan = fresh(cache, tmp_path, policy={"join": "until-spent"}), private_plan()
    needs = asked(plan, site.folder.settings)
    change_policy(site.folder.path, epsilon=epsilon([needs.charge(2)], 1e-5) * 1.001)
    site, shared = Site.open(site.folder.path), start(plan)
    for number in (1, 2):
        shared = shared + site.train(plan, number, shared).delta
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            site.train(plan, 3, shared)
        assert (caught.value.code, caught.value.fits) == ("budget-spent", 0)
    assert site.gate.ledger.epsilon(1e-5) <= site.folder.settings.policy.epsilon
    assert kinds(site)[-2:] == ["reserve", "refused"]  # the same refusal is noted once


def test_a_second_plan_starts_from_what_the_first_has_spent(cache: Cache, tmp_path: Path) -> None:
    site, plan, other = fresh(cache, tmp_path), private_plan(), private_plan("other")
    site.train(plan, 1, start(plan))
    needs = asked(plan, site.folder.settings)
    restarted = Site.open(site.folder.path)
    update = restarted.train(other, 1, start(other))
    assert update.spent is not None
    assert update.spent.epsilon == pytest.approx(epsilon([needs.charge(2)], 1e-5))


def test_another_site_folder_on_the_same_patients_is_refused(cache: Cache, tmp_path: Path) -> None:
    plan = private_plan()
    first = fresh(cache, tmp_path, "first")
    first.train(plan, 1, start(plan))
    second = Site.open(private_site(tmp_path / "second", cache))
    with pytest.raises(RefusedError, match="ledger") as caught:
        second.train(plan, 1, start(plan))
    assert caught.value.code == "patients-accounted-elsewhere"
    shares = Site.open(private_site(tmp_path / "third", cache, ledger="../first/ledger.sqlite"))
    assert shares.train(plan, 1, start(plan)).spent is not None
    assert [entry.kind for entry in first.gate.ledger.entries()].count("reserve") == 2


def test_after_training_without_privacy_there_is_no_bound(cache: Cache, tmp_path: Path) -> None:
    site = fresh(cache, tmp_path, policy={"non_private": "allow"})
    open_plan, plan = small_plan(), private_plan()
    site.train(open_plan, 1, start(open_plan))
    assert site.gate.ledger.epsilon(1e-5) == math.inf
    with pytest.raises(RefusedError) as caught:
        site.train(plan, 1, start(plan))
    assert (caught.value.code, caught.value.fits) == ("budget-spent", 0)


def test_a_damaged_ledger_stops_the_site(cache: Cache, tmp_path: Path) -> None:
    site, plan = fresh(cache, tmp_path), private_plan()
    site.train(plan, 1, start(plan))
    site.gate.ledger.path.unlink()
    with pytest.raises(LedgerError):
        Site.open(site.folder.path).train(plan, 2, start(plan))
    assert not site.gate.ledger.path.exists()  # nothing is started anew


def test_noised_scores_leave_and_are_charged(cache: Cache, tmp_path: Path) -> None:
    policy = {"metrics": "noised", "metrics_noise": 4.0}
    site, plan = fresh(cache, tmp_path, policy=policy), private_plan()
    update = site.train(plan, 1, start(plan))
    assert list(update.metrics) == ["val_noised_loss"]
    charges = site.gate.ledger.charges()
    assert [(c.noise_multiplier, c.sampling_rate, c.steps) for c in charges] == [
        (1.0, 0.5, 2),
        (4.0, 1.0, 1),
    ]
    assert unpack_update(pack_update(update, "bf16")).metrics == update.metrics


def test_noised_scores_stop_with_the_budget(cache: Cache, tmp_path: Path) -> None:
    policy = {"metrics": "noised", "metrics_noise": 0.5, "join": "until-spent"}
    site, plan = fresh(cache, tmp_path, policy=policy), private_plan()
    needs = asked(plan, site.folder.settings)
    change_policy(site.folder.path, epsilon=epsilon([needs.charge()], 1e-5) * 1.001)
    site = Site.open(site.folder.path)
    assert site.train(plan, 1, start(plan)).metrics == {}
    assert kinds(site)[-1] == "refused"


def test_serving_heads_stay_and_nothing_reads_them(cache: Cache, tmp_path: Path) -> None:
    site = fresh(cache, tmp_path, serving_head_epochs=2)
    plan = private_plan()
    shared = start(plan)
    shared = shared + site.train(plan, 1, shared).delta
    assert site.finish(plan, 3, shared).metrics == {}
    trained = read_arrays(site.final_model(plan))
    served = read_arrays(site.serving_model(plan))
    assert set(trained) == set(served)
    for name, values in trained.items():
        same = np.array_equal(values, served[name])
        assert same == (not name.startswith("findings.")), name
    assert kinds(site)[-1] == "serving"


def test_serving_heads_are_the_sites_wish_and_not_the_plans(cache: Cache, tmp_path: Path) -> None:
    site = fresh(cache, tmp_path)
    plan = private_plan()
    site.finish(plan, 3, start(plan))
    assert site.final_model(plan).exists()
    assert not site.serving_model(plan).exists()


def test_a_noised_score_is_of_the_heads_with_noise(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score of heads fitted without noise would have no bound, whatever noise it gets."""
    policy = {"metrics": "noised", "metrics_noise": 4.0}
    site = fresh(cache, tmp_path, policy=policy, serving_head_epochs=2)
    plan = private_plan()
    shared, scored = start(plan), []

    def spy(model: MultitaskModel, *rest: object) -> dict[str, float]:
        scored.append(all_parameters(model))
        return noised_loss(model, *rest)

    site.train(plan, 1, shared)
    monkeypatch.setattr("client.border.gate.noised_loss", spy)
    assert list(site.finish(plan, 3, shared).metrics) == ["val_noised_loss"]
    final = read_arrays(site.final_model(plan))
    assert all(np.array_equal(values, final[name]) for name, values in scored[0].items())


def test_training_reads_no_serving_head(cache: Cache, tmp_path: Path) -> None:
    site = fresh(cache, tmp_path, serving_head_epochs=2)
    plan = private_plan()
    site.train(plan, 1, start(plan))
    site.finish(plan, 1, start(plan))
    states, resident = States(site.folder.state, plan), Resident(plan, site.device)
    states.restore(resident, None, before=2)
    kept = {name: v for name, v in all_parameters(resident.model).items() if "findings" in name}
    served, trained = read_arrays(site.serving_model(plan)), read_arrays(site.final_model(plan))
    for name, values in kept.items():
        assert np.array_equal(values, trained[name])
        assert not np.array_equal(values, served[name])


def test_answers_carry_codes_and_what_would_fit(cache: Cache, tmp_path: Path) -> None:
    site, plan = fresh(cache, tmp_path, policy={"epsilon": 0.5}), private_plan()
    shared = start(plan)
    broadcast = Broadcast(
        plan.to_json(), 1, array_sha256(shared), np.zeros_like(shared), base=shared
    )
    parcel = answer("train", pack_broadcast(broadcast, "bf16"), site.folder.path)
    assert parcel.config == {"site": "ward", "error": "budget-spent", "fits": 0}
    log = (site.folder.reports / "site.log").read_text()
    assert "epsilon would be" in log


def test_a_site_that_discloses_nothing_says_no_number(cache: Cache, tmp_path: Path) -> None:
    policy = {"epsilon": 0.5, "disclose_spend": False}
    site, plan = fresh(cache, tmp_path, policy=policy), private_plan()
    shared = start(plan)
    broadcast = Broadcast(
        plan.to_json(), 1, array_sha256(shared), np.zeros_like(shared), base=shared
    )
    parcel = answer("train", pack_broadcast(broadcast, "bf16"), site.folder.path)
    assert parcel.config == {"site": "ward", "error": "budget-spent"}


def test_every_message_is_in_the_ledger_before_it_leaves(cache: Cache, tmp_path: Path) -> None:
    site, plan = fresh(cache, tmp_path, simulated=True), private_plan()
    shared = start(plan)
    broadcast = Broadcast(
        plan.to_json(), 1, array_sha256(shared), np.zeros_like(shared), base=shared
    )
    parcel = answer("train", pack_broadcast(broadcast, "bf16"), site.folder.path)
    entry = site.gate.ledger.entries()[-1]
    assert (entry.kind, entry.body["action"], entry.body["round"]) == ("sent", "train", 1)
    assert entry.body["bytes"] == parcel.bytes
    assert entry.body["keys"] == sorted([*parcel.arrays, *parcel.config])
    assert dataclasses.asdict(site.gate.ledger.head())["entries"] == 4


def test_the_finish_of_a_plan_without_privacy_is_charged(cache: Cache, tmp_path: Path) -> None:
    """Even when the site took part in no round: heads are fitted, and scores may leave."""
    site = fresh(cache, tmp_path, policy={"non_private": "allow", "metrics": "full"})
    plan = small_plan()
    site.finish(plan, 3, start(plan))
    assert site.gate.ledger.epsilon(1e-5) == math.inf


@pytest.mark.parametrize("number", [0, 4, 50])
def test_a_plan_has_no_more_rounds_than_it_says(cache: Cache, tmp_path: Path, number: int) -> None:
    site, plan = fresh(cache, tmp_path), private_plan()
    with pytest.raises(RefusedError, match="rounds 1 to 3") as caught:
        site.train(plan, number, start(plan))
    assert caught.value.code == "no-such-round"
    assert kinds(site)[-1] == "refused"


def test_the_whole_plan_must_fit_whatever_round_is_asked_for(cache: Cache, tmp_path: Path) -> None:
    site, plan = fresh(cache, tmp_path), private_plan()
    needs = asked(plan, site.folder.settings)
    change_policy(site.folder.path, epsilon=epsilon([needs.charge(2)], 1e-5) * 1.001)
    site = Site.open(site.folder.path)
    for number in (3, 2, 1):
        with pytest.raises(RefusedError, match="At most 4 steps fit"):
            site.train(plan, number, start(plan))
    assert "reserve" not in kinds(site)


def test_a_stricter_policy_holds_for_the_next_message(cache: Cache, tmp_path: Path) -> None:
    site, plan = fresh(cache, tmp_path, simulated=True), private_plan()
    shared = start(plan)

    def ask(number: int) -> dict[str, object]:
        received = array_sha256(shared)
        broadcast = Broadcast(plan.to_json(), number, received, np.zeros_like(shared), shared)
        return dict(answer("train", pack_broadcast(broadcast, "bf16"), site.folder.path).config)

    assert "error" not in ask(1)
    change_policy(site.folder.path, epsilon=0.01)
    assert ask(2)["error"] == "budget-spent"
    change_policy(site.folder.path, epsilon=100.0, unit="image")
    assert ask(2)["error"] == "unit"


@pytest.mark.parametrize(
    "words", [{"annotates": (), "outlines_lungs": False}, {"nominal_units": None}]
)
def test_what_cannot_be_trained_costs_nothing(
    cache: Cache, tmp_path: Path, words: dict[str, object]
) -> None:
    site, plan = fresh(cache, tmp_path, **words), private_plan()
    with pytest.raises((NothingToLearnError, RefusedError)):
        site.train(plan, 1, start(plan))
    assert "reserve" not in kinds(site)


def test_a_refused_site_claims_nobody(cache: Cache, tmp_path: Path) -> None:
    plan = private_plan()
    trial = fresh(cache, tmp_path, "trial", policy={"epsilon": None})
    with pytest.raises(RefusedError):
        trial.train(plan, 1, start(plan))
    real = Site.open(private_site(tmp_path / "real", cache))
    assert real.train(plan, 1, start(plan)).spent is not None


def test_a_simulated_ledger_never_becomes_a_real_one(cache: Cache, tmp_path: Path) -> None:
    site = fresh(cache, tmp_path, simulated=True, policy={"deadline": 60.0})
    plan = private_plan()
    site.train(plan, 1, start(plan))
    file = site.folder.path / "site.yaml"
    file.write_text(file.read_text().replace("simulated: true", "simulated: false"))
    with pytest.raises(RefusedError, match="simulated") as caught:
        Site.open(site.folder.path).train(plan, 2, start(plan))
    assert caught.value.code == "simulated"


def test_the_hash_of_the_patients_cannot_be_guessed(cache: Cache, tmp_path: Path) -> None:
    one, other = (fresh(cache, tmp_path, name, simulated=True) for name in ("a", "b"))
    plan = private_plan()
    hashes = set()
    for site in (one, other):
        site.train(plan, 1, start(plan))
        hashes.add(site.gate.ledger.entries()[-1].body["dataset"])
    assert len(hashes) == 2


def test_a_noised_score_has_its_noise_and_its_sensitivity(cache: Cache, tmp_path: Path) -> None:
    """One patient more or less moves the sum by 1 at most, whatever the plan counts."""
    site = fresh(cache, tmp_path, policy={"metrics": "noised", "metrics_noise": 3.0})
    plan = private_plan(privacy={"unit": "image"}, tasks={"findings_weight": 50.0})
    model, settings = build_model(plan), site.folder.settings
    values = [noised_loss(model, site.data, plan, settings)["val_noised_loss"] for _ in range(300)]
    spread = float(np.std(values)) * UNITS
    assert spread == pytest.approx(3.0, rel=3 / math.sqrt(600))

    quiet = settings.model_copy(
        update={"policy": settings.policy.model_copy(update={"metrics_noise": 1e-9})}
    )
    table = site.data.table
    whole = noised_loss(model, site.data, plan, quiet)["val_noised_loss"] * UNITS
    for patient in table.loc[table["split"] == "val", "patient"].unique():
        fewer = table.assign(split=table["split"].mask(table["patient"] == patient, "test"))
        less = dataclasses.replace(site.data, table=fewer)
        without = noised_loss(model, less, plan, quiet)["val_noised_loss"] * UNITS
        assert 0 < whole - without < 1 + 1e-6
