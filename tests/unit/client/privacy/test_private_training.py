"""A private round: what is drawn, what is clipped, what noise is added, and what stays still."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.batches import SiteData
from client.data.cache import Cache, open_cache
from client.learning.optimizer import make_optimizer
from client.learning.train import NothingToLearnError
from client.privacy.budget import asked
from client.privacy.engines import LoopEngine, clip_and_add
from client.privacy.material import Material, Weights
from client.privacy.random import SecureRandom
from client.privacy.sampling import capped, poisson
from client.privacy.scores import coarse
from client.privacy.step import PrivateStep
from client.privacy.supply import Supply
from client.privacy.training import Average, check_trainable, train_private_round
from client.settings import SiteSettings
from client.site import Site
from common.losses import unit_losses
from common.model import MultitaskModel, build_model
from common.plan import Plan
from tests.conftest import ArchiveFactory
from tests.unit.client.private_world import private_plan, private_site
from tests.unit.client.sites import small_cache

STILL = dict.fromkeys(
    ("rotate_degrees", "translate", "scale", "brightness", "contrast", "gamma", "noise"), 0.0
)


@pytest.fixture
def site(nih_archive: ArchiveFactory, tmp_path: Path) -> Site:
    archive = nih_archive(patients=10, images=3, masks=True)
    cache: Cache = small_cache(archive, tmp_path / "cache")
    return Site.open(private_site(tmp_path / "ward", open_cache(cache.folder)))


def settings(site: Site, **more: object) -> SiteSettings:
    return site.folder.settings.model_copy(update=more)


def trained(plan: Plan, site: Site, words: SiteSettings) -> MultitaskModel:
    model = build_model(plan)
    optimizer = make_optimizer(model, plan.training)
    train_private_round(model, optimizer, site.data, plan, words, asked(plan, words), 1)
    return model


def test_a_step_is_the_clipped_sum_over_the_nominal_batch(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every unit drawn, no noise, plain SGD: the step can be worked out by hand.

    There are eight patients where the plan and the site say twelve: twelve is divided by.
    """
    monkeypatch.setattr(SecureRandom, "normal", lambda *_: torch.zeros((), dtype=torch.float64))
    plan = private_plan(
        training={
            "local_steps": 1,
            "batch_size": 12,
            "optimizer": "sgd",
            "schedule": "constant",
            "warmup_rounds": 0.0,
            "learning_rate": 0.5,
            "weight_decay": 0.0,
            "augment": STILL,
        },
        privacy={"noise_multiplier": 1.0, "clipping_norm": 0.2, "images_per_unit": 3},
    )
    words = settings(site, nominal_units=12)
    model = build_model(plan).train()
    expected = [torch.zeros_like(p) for p in model.parameters()]
    patients = site.data.table["patient"].to_numpy()
    for patient in np.unique(patients[site.data.rows("train")]):
        rows = np.flatnonzero(patients == patient)
        batch = site.data.batch(rows, np.zeros(len(rows), np.int64))
        loss = unit_losses(model(batch.images, batch.lung_rows), batch, 1.0, 1.0).sum()
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
        for sum_, part in zip(expected, gradient, strict=True):
            sum_ += part * min(1.0, 0.2 / norm)
    after = trained(plan, site, words)
    for start, sum_, end in zip(model.parameters(), expected, after.parameters(), strict=True):
        assert torch.allclose(start - 0.5 * sum_ / 12, end, atol=2e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_an_empty_step_is_pure_noise_of_the_right_width(strict: bool) -> None:
    model = build_model(private_plan())
    parameters = list(model.parameters())
    noise, clip, batch = 3.0, 0.7, 16
    step = PrivateStep(LoopEngine(model, 8), parameters, SecureRandom(strict), clip, noise, batch)
    step.step([], Weights(1.0, 1.0))
    drawn = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double()
    width = noise * clip / batch
    assert float(drawn.std()) == pytest.approx(width, rel=3 / math.sqrt(2 * drawn.numel()))
    assert abs(float(drawn.mean())) < 4 * width / math.sqrt(drawn.numel())
    first = drawn.clone()
    step.step([], Weights(1.0, 1.0))
    again = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double()
    correlation = float((first * again).mean()) / width**2
    assert abs(correlation) < 5 / math.sqrt(first.numel())


class Given:
    """An engine whose units are scalars: what a sum does to them can be followed by hand."""

    name = "given"

    def __init__(self, values: list[float]) -> None:
        self._values = values

    def add_clipped(
        self,
        materials: Iterable[Material],
        weights: Weights,
        clipping_norm: float,
        total: list[torch.Tensor],
    ) -> None:
        for value in self._values:
            clip_and_add([torch.tensor([value])], clipping_norm, total)

    def close(self) -> None:
        pass


def test_rounding_of_the_sum_lifts_no_units_share() -> None:
    """A short unit between two long ones that cancel: a sum in float32 would make it 19 % longer.

    Near 1 float32 has steps of 1.2e-7, so 1e-7 would be added as 1.2e-7.
    """
    parameter, short = torch.nn.Parameter(torch.zeros(1)), 1e-7
    engine = Given([1.0, short, -1.0])
    PrivateStep(engine, [parameter], SecureRandom(), 10.0, 0.0, 1).step([], Weights(1.0, 1.0))
    assert parameter.grad is not None
    assert float(parameter.grad) == pytest.approx(short, rel=1e-6)


def test_a_unit_is_the_same_lesson_in_parts(site: Site) -> None:
    """A patient with more images than fit at once gets all its lessons, in order."""
    plan = private_plan(privacy={"images_per_unit": 3}, semi_supervision={"mode": "mean-teacher"})
    model = build_model(plan)
    # No image has a label: each of the three lacks something.
    data = replace(site.data, known=np.zeros_like(site.data.known))

    def lessons(most: int) -> list[object]:
        words = settings(site, physical_batch=most)
        units = Supply(model, data, plan, words, SecureRandom()).step(1.0)
        found: list[object] = []
        for unit in units:
            if unit.targets is None:
                continue
            assert unit.strong is not None
            assert len(unit.strong) == 3
            assert len(unit.strong) == len(unit.targets.unit) == len(unit.targets.findings)
            assert unit.targets.lung_rows.numel() == len(unit.targets.lungs)
            found.append([unit.targets.open.tolist(), unit.targets.lung_rows.tolist()])
        return found

    assert lessons(1) == lessons(32)
    assert lessons(32)


@pytest.mark.parametrize(
    ("deviation", "expected"), [(0.5, 1.2346), (5.0, 1.235), (300.0, 1.2), (30000.0, 0.0)]
)
def test_a_noised_score_has_no_more_digits_than_its_noise_hides(
    deviation: float, expected: float
) -> None:
    assert coarse(1.23456789, deviation) == expected


def test_heads_that_the_site_does_not_declare_stay_as_they_are(site: Site) -> None:
    plan = private_plan()
    start = build_model(plan)
    after = trained(plan, site, settings(site, outlines_lungs=False))
    assert start.lungs is not None
    assert after.lungs is not None
    pairs = zip(start.lungs.parameters(), after.lungs.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert all(parameter.requires_grad for parameter in after.parameters())
    moved = zip(start.encoder.parameters(), after.encoder.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in moved)


def test_a_site_that_declares_nothing_takes_no_part(site: Site) -> None:
    plan = private_plan()
    silent = settings(site, outlines_lungs=False, annotates=())
    with pytest.raises(NothingToLearnError):
        check_trainable(build_model(plan), silent, torch.device("cpu"))
    check_trainable(build_model(plan), settings(site, annotates=()), torch.device("cpu"))


@pytest.mark.parametrize("what", ["noise", "sampling"])
def test_the_plans_seed_reaches_neither_noise_nor_sampling(
    site: Site, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on its own, for either hides that the other can be repeated.

    Noise: nobody is drawn, two rounds are noise alone. Sampling: no noise and no augmentation, and
    in each of eight steps each of eight patients with a chance of 1/2; that two rounds draw the
    same has a chance of 2^-64.
    """
    plan = private_plan(training={"augment": STILL, "local_steps": 8 if what == "sampling" else 1})
    words = settings(site, nominal_units=8 if what == "sampling" else 10**12)
    if what == "sampling":
        zeros = lambda _, shape, std: torch.zeros(tuple(shape), dtype=torch.float64)  # noqa: E731
        monkeypatch.setattr(SecureRandom, "normal", zeros)
    one, other = (trained(plan, site, words) for _ in range(2))
    pairs = list(zip(one.encoder.parameters(), other.encoder.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("mode", ["off", "mean-teacher"])
def test_a_unit_is_drawn_once_a_step_with_all_its_views(site: Site, mode: str) -> None:
    semi = {"mode": mode, "start": 0.0, "ramp": 0.1}
    plan = private_plan(privacy={"views": 2, "images_per_unit": 2}, semi_supervision=semi)
    words = settings(site, physical_batch=6)
    supply = Supply(build_model(plan), site.data, plan, words, SecureRandom())
    steps = 20  # in one alone, no image without labels may be drawn
    materials = [material for _ in range(steps) for material in supply.step(1.0)]
    patients = site.data.table["patient"].to_numpy()[site.data.rows("train")]
    assert len(materials) == steps * len(np.unique(patients))
    for material in materials:
        assert material.batch.units == 1
        assert material.batch.unit.tolist() == [0] * 4  # two images, two views each
        if material.targets is not None:
            assert material.targets.units == material.batch.units
            assert int(torch.bincount(material.targets.unit).max()) <= 2
    # One image in five has no label here; only those, and only with a teacher, are asked about.
    asked_about = sum(material.targets is not None for material in materials)
    assert (asked_about > 0) == (mode == "mean-teacher")
    assert list(supply.step(1e-12)) == []


def test_each_unit_is_drawn_with_the_same_chance() -> None:
    random, rate, steps, units = SecureRandom(), 0.3, 2000, 20
    drawn = np.zeros(units)
    for _ in range(steps):
        drawn[poisson(units, rate, random)] += 1
    error = math.sqrt(rate * (1 - rate) / steps)
    assert np.abs(drawn / steps - rate).max() < 5 * error
    assert len(poisson(units, 1.0, random)) == units
    assert poisson(0, 0.5, random).dtype == np.int64


def test_how_many_are_drawn_varies_as_by_coins() -> None:
    """Of 20 units with a chance of 0.3 each: variance 20 * 0.3 * 0.7 = 4.2 (a fixed number: 0).

    The variance of a variance over n steps is about 2 * 4.2^2 / n. Units that come together would
    have 20^2 * 0.21 = 84, and 0.21 between any two of them in the place of 0.
    """
    random, rate, steps, units = SecureRandom(), 0.3, 4000, 20
    drawn = np.zeros((steps, units))
    for step in range(steps):
        drawn[step, poisson(units, rate, random)] = 1
    assert drawn.sum(axis=1).var() == pytest.approx(4.2, rel=5 * math.sqrt(2 / steps))
    between = np.cov(drawn.T) - np.diag(drawn.var(axis=0, ddof=1))
    assert np.abs(between).max() < 6 * 0.21 / math.sqrt(steps)


def test_units_are_drawn_at_the_public_rate_however_many_there_are(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight patients where the site says 8,000: in 200 steps of 4 in 8,000 each, 0.8 are drawn.

    More than 10 have a chance below 1e-8 (Poisson); at a rate of 4 in 8 there would be 800.
    """
    drawn: list[Material] = []

    class Counting(Given):
        def add_clipped(self, materials: Iterable[Material], *rest: object) -> None:
            drawn.extend(materials)

    monkeypatch.setattr("client.privacy.training.open_engine", lambda *_: Counting([]))
    zeros = lambda _, shape, std: torch.zeros(tuple(shape), dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr(SecureRandom, "normal", zeros)
    plan = private_plan(training={"local_steps": 200, "batch_size": 4})
    trained(plan, site, settings(site, nominal_units=8000))
    assert len(drawn) <= 10


def test_the_cap_takes_another_part_of_a_unit_each_time() -> None:
    unit = np.arange(10, 30)
    parts = {tuple(capped(unit, 3, SecureRandom())) for _ in range(20)}
    assert len(parts) > 10
    assert all(len(set(part)) == 3 and set(part) <= set(unit) for part in parts)
    assert capped(unit, 20, SecureRandom()) is unit


def test_the_average_follows_with_a_warm_up_and_is_put_back() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        average = Average(model, 0.9)
        model.weight.fill_(1.0)
        average.add(0)
    average.put_back()
    assert float(model.weight.detach()) == pytest.approx(0.9)  # decay 1/10 in the first step


def test_augmentation_of_a_unit_does_not_follow_from_the_plan(site: Site) -> None:
    """Neither what the student sees of it, nor what the teacher does."""
    semi = {"mode": "mean-teacher", "start": 0.0, "ramp": 0.0}
    plan = private_plan(semi_supervision=semi, privacy={"images_per_unit": 3})
    data: SiteData = site.data
    first, second = (
        list(Supply(build_model(plan), data, plan, settings(site), SecureRandom()).step(1.0))
        for _ in range(2)
    )
    views = 0
    for one, other in zip(first, second, strict=True):
        assert not torch.equal(one.batch.images, other.batch.images)
        if one.strong is not None and other.strong is not None:
            assert not torch.equal(one.strong, other.strong)
            views += 1
    assert views > 0


def test_no_image_changes_what_becomes_of_another(site: Site) -> None:
    """Images are standardised one by one, and no layer looks at two of them."""
    model = build_model(private_plan()).train()
    images = site.data.pictures(site.data.rows("train"))
    together, alone = model(images), model(images[:1])
    brighter = model(torch.cat([images[:1], images[1:] * 0.1 + 0.5]))
    for other in (alone, brighter):
        assert torch.allclose(together.findings[:1], other.findings[:1], atol=1e-5)
        assert torch.allclose(together.lungs[:1], other.lungs[:1], atol=1e-4)


def test_the_proximal_term_comes_after_the_noise(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a gradient of 0.01 everywhere, two steps of FedProx can be worked out by hand."""
    monkeypatch.setattr(PrivateStep, "_noisy", lambda _, clipped: torch.full_like(clipped, 0.01))
    mu, rate = 2.0, 0.1
    plan = private_plan(
        training={
            "local_steps": 2,
            "optimizer": "sgd",
            "schedule": "constant",
            "warmup_rounds": 0.0,
            "learning_rate": rate,
            "weight_decay": 0.0,
        },
        federation={"strategy": {"name": "fedprox", "proximal_mu": mu}},
    )
    start, after = build_model(plan), trained(plan, site, settings(site))
    first = rate * 0.01
    momentum = 0.9 * 0.01 + (0.01 - mu * first)
    for one, other in zip(start.encoder.parameters(), after.encoder.parameters(), strict=True):
        assert torch.allclose(one - other, torch.full_like(one, first + rate * momentum), atol=1e-6)
