"""Each of Flower's strategies against its formula in plain numpy, in the papers' notation."""

import numpy as np
import pytest

from common.checkpoint import read_arrays, write_arrays
from common.errors import StepRejectedError
from common.findings import FINDINGS
from common.parameters import Layout
from common.sections import StrategyPlan
from common.update import SCHEMA, Update
from server.strategy import Aggregator, impute

LAYOUT = Layout(("encoder.a", "encoder.b"), ((4,), (2, 3)))
WEIGHTS = (3.0, 1.0, 2.0, 4.0, 5.0)
TAU = 1e-3  # Flower's default of the adaptivity constant


def make_updates(number: int, count: int = 5, layout: Layout = LAYOUT) -> list[Update]:
    rng = np.random.default_rng(number)
    return [
        Update(
            SCHEMA, "plan", number, f"site-{k}", layout.sha256,
            rng.normal(size=layout.size).astype(np.float32), WEIGHTS[k], (), {}, 1.0,
        )
        for k in range(count)
    ]  # fmt: skip


def stacked(updates: list[Update]) -> np.ndarray:
    return np.stack([update.delta for update in updates]).astype(np.float64)


def mean(updates: list[Update]) -> np.ndarray:
    """McMahan et al., arXiv 1602.05629, algorithm 1: the sites' mean, weighted by n_k / n."""
    return np.average(stacked(updates), axis=0, weights=[u.weight for u in updates])


def steps_of(plan: StrategyPlan, rounds: int = 4) -> list[np.ndarray]:
    aggregator = Aggregator(plan)
    return [aggregator.step(t, make_updates(t), LAYOUT) for t in range(1, rounds + 1)]


@pytest.mark.parametrize(
    "plan",
    [
        StrategyPlan(name="fedavg"),
        # Li et al., arXiv 1812.06127, algorithm 2: the server averages; mu acts at the sites.
        StrategyPlan(name="fedprox", proximal_mu=0.1),
        StrategyPlan(name="fedavgm"),  # Flower's default: no momentum, rate 1
    ],
)
def test_averaging(plan: StrategyPlan) -> None:
    for number, step in enumerate(steps_of(plan), start=1):
        assert step.dtype == np.float32
        np.testing.assert_allclose(step, mean(make_updates(number)), rtol=1e-5, atol=1e-6)


def test_fedavgm() -> None:
    """Hsu et al., arXiv 1909.06335, section 4.3: v = beta v + delta; w = w - eta v."""
    plan = StrategyPlan(name="fedavgm", server_learning_rate=0.5, server_momentum=0.9)
    velocity = np.zeros(LAYOUT.size)
    for number, step in enumerate(steps_of(plan), start=1):
        velocity = 0.9 * velocity + mean(make_updates(number))
        np.testing.assert_allclose(step, 0.5 * velocity, rtol=1e-5, atol=1e-6)


def test_fedadam() -> None:
    """Reddi et al., arXiv 2003.00295, algorithm 2 (FedAdam), with v_0 = 0.

    Flower adds the bias correction of Kingma and Ba, arXiv 1412.6980, end of section 2, with
    the exponent t + 1.
    """
    m = v = np.zeros(LAYOUT.size)
    for t, step in enumerate(steps_of(StrategyPlan(name="fedadam", server_learning_rate=0.2)), 1):
        delta = mean(make_updates(t))
        m = 0.9 * m + 0.1 * delta
        v = 0.99 * v + 0.01 * delta**2
        rate = 0.2 * np.sqrt(1 - 0.99 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        np.testing.assert_allclose(step, rate * m / (np.sqrt(v) + TAU), rtol=1e-4, atol=1e-6)


def test_fedyogi() -> None:
    """Reddi et al., arXiv 2003.00295, algorithm 2 (FedYogi), with v_0 = 0."""
    m = v = np.zeros(LAYOUT.size)
    for t, step in enumerate(steps_of(StrategyPlan(name="fedyogi")), 1):
        delta = mean(make_updates(t))
        m = 0.9 * m + 0.1 * delta
        v = v - 0.01 * delta**2 * np.sign(v - delta**2)
        np.testing.assert_allclose(step, 0.01 * m / (np.sqrt(v) + TAU), rtol=1e-4, atol=1e-6)


def test_fedmedian() -> None:
    """Yin et al., arXiv 1803.01498, definition 1: the coordinate-wise median, unweighted."""
    for number, step in enumerate(steps_of(StrategyPlan(name="fedmedian")), start=1):
        np.testing.assert_allclose(step, np.median(stacked(make_updates(number)), axis=0))


def test_fedtrimmedavg() -> None:
    """Yin et al., arXiv 1803.01498, definition 2: drop the share beta at each end, then mean."""
    for number, step in enumerate(steps_of(StrategyPlan(name="fedtrimmedavg", trim=0.25)), start=1):
        kept = np.sort(stacked(make_updates(number)), axis=0)[1:-1]  # int(0.25 x 5) = 1
        np.testing.assert_allclose(step, kept.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_krum() -> None:
    """Blanchard et al., arXiv 1703.02757, section 4: the one nearest to its n - f - 2 nearest."""
    for number, step in enumerate(steps_of(StrategyPlan(name="krum", malicious_sites=1)), start=1):
        deltas = stacked(make_updates(number))
        distances = ((deltas[:, None] - deltas[None]) ** 2).sum(axis=2)
        score = np.sort(distances, axis=1)[:, 1 : 1 + (5 - 1 - 2)].sum(axis=1)
        np.testing.assert_allclose(step, deltas[score.argmin()], rtol=1e-6)


def test_krum_ignores_a_liar() -> None:
    updates = make_updates(1)
    updates[0].delta[:] = 100.0
    step = Aggregator(StrategyPlan(name="krum", malicious_sites=1)).step(1, updates, LAYOUT)
    assert np.abs(step).max() < 10


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedyogi", "fedavgm", "krum", "fedmedian"])
def test_order_of_arrival_does_not_matter(name: str) -> None:
    plan = StrategyPlan(name=name)
    first = Aggregator(plan).step(1, make_updates(1), LAYOUT)
    second = Aggregator(plan).step(1, make_updates(1)[::-1], LAYOUT)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "plan",
    [
        StrategyPlan(name="fedavg"),
        StrategyPlan(name="fedadam"),
        StrategyPlan(name="fedyogi"),
        StrategyPlan(name="fedavgm", server_momentum=0.9),
    ],
)
def test_resumed_strategy_gives_the_same_bits(plan: StrategyPlan, tmp_path) -> None:
    whole = steps_of(plan, rounds=4)
    aggregator = Aggregator(plan)
    for number in range(1, 5):
        step = aggregator.step(number, make_updates(number), LAYOUT)
        np.testing.assert_array_equal(step, whole[number - 1])
        file = tmp_path / f"{number}.safetensors"
        write_arrays(file, aggregator.state())
        aggregator = Aggregator(plan)
        aggregator.restore(read_arrays(file))


def test_no_updates_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Aggregator(StrategyPlan()).step(1, [], LAYOUT)


HEADS = Layout(
    ("encoder.a", "findings.weight", "findings.bias", "lungs.w"),
    ((2,), (14, 2), (14,), (3,)),
)


def covering(update: Update, *covers: str) -> Update:
    return Update(**{**vars(update), "covers": covers, "layout_sha256": HEADS.sha256})


def test_a_finding_is_averaged_over_the_sites_that_annotate_it() -> None:
    """Surgical Aggregation, arXiv 2301.06683, section 3; lungs likewise. Without a cap."""
    first, second, third = make_updates(1, 3, HEADS)
    updates = [
        covering(first, "Effusion"),
        covering(second, "Effusion", "Mass"),
        covering(third, "lungs"),
    ]
    step = Aggregator(StrategyPlan(), max_share=1.0).step(1, updates, HEADS)
    deltas = [update.delta.astype(np.float64) for update in updates]
    effusion, mass, edema = (FINDINGS.index(name) for name in ("Effusion", "Mass", "Edema"))
    weight = slice(2, 30)

    def row(vector: np.ndarray, finding: int) -> np.ndarray:
        return vector[weight].reshape(14, 2)[finding]

    both = (3 * row(deltas[0], effusion) + 1 * row(deltas[1], effusion)) / 4
    np.testing.assert_allclose(row(step, effusion), both, rtol=1e-5)
    np.testing.assert_allclose(row(step, mass), row(deltas[1], mass), rtol=1e-5)
    np.testing.assert_array_equal(row(step, edema), 0)  # nobody annotates it
    np.testing.assert_allclose(step[30 + mass], deltas[1][30 + mass], rtol=1e-5)
    np.testing.assert_allclose(step[44:], deltas[2][44:], rtol=1e-5)
    np.testing.assert_allclose(step[:2], mean(updates)[:2], rtol=1e-5)


def test_imputing_leaves_the_updates_alone() -> None:
    updates = [covering(update, "Mass") for update in make_updates(1, 2, HEADS)]
    before = [update.delta.copy() for update in updates]
    impute(updates, HEADS)
    for update, delta in zip(updates, before, strict=True):
        np.testing.assert_array_equal(update.delta, delta)


def test_full_coverage_copies_nothing() -> None:
    updates = make_updates(1)
    assert all(a is b.delta for a, b in zip(impute(updates, LAYOUT), updates, strict=True))


def heads_of(weights: tuple[float, ...], covers: tuple[tuple[str, ...], ...]) -> list[Update]:
    """One update a weight; every number of the k-th delta is k + 1."""
    return [
        Update(
            SCHEMA, "plan", 1, f"site-{k}", HEADS.sha256,
            np.full(HEADS.size, k + 1, np.float32), weight, covers[k], {}, 1.0,
        )
        for k, weight in enumerate(weights)
    ]  # fmt: skip


def test_no_site_takes_the_average() -> None:
    updates = heads_of((1.0, 1.0, 1.0, 1e8), ((), (), (), ()))
    step = Aggregator(StrategyPlan()).step(1, updates, HEADS)
    np.testing.assert_allclose(step[:2], (1 + 2 + 3) / 6 + 4 / 2, rtol=1e-6)
    step = Aggregator(StrategyPlan(), max_share=0.25).step(1, updates, HEADS)
    np.testing.assert_allclose(step[:2], 2.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_no_site_takes_a_row_of_the_shared_head(name: str) -> None:
    """Few cover a row: among them the cap holds, too, whatever share they have of the encoder."""
    both = ("Effusion", "Mass")
    covers = (both, ("Effusion",), ("Effusion",), both, ())
    updates = heads_of((1.0, 1.0, 1.0, 1e6, 1e6), covers)
    plan = StrategyPlan(name=name, proximal_mu=0.1 if name == "fedprox" else 0.0)
    step = Aggregator(plan).step(1, updates, HEADS)
    bias = step[30:44]
    # Effusion: sites 1, 2, 3 and the heavy 4; half is the heavy one's.
    np.testing.assert_allclose(bias[FINDINGS.index("Effusion")], 2 / 2 + 4 / 2, rtol=1e-6)
    np.testing.assert_allclose(bias[FINDINGS.index("Mass")], (1 + 4) / 2, rtol=1e-6)
    assert bias[FINDINGS.index("Edema")] == 0.0


def test_a_median_hears_what_the_covering_sites_sent() -> None:
    updates = heads_of((1.0,) * 3, (("Mass",), ("Mass",), ("Mass",)))
    updates[2].delta[:] = 1000.0
    updates.append(heads_of((1.0,) * 4, ((), (), (), ()))[3])
    sent = [delta[30 + FINDINGS.index("Mass")] for delta in impute(updates, HEADS, 0.5, True)]
    np.testing.assert_allclose(sent, [1, 2, 1000, 1003 / 3], rtol=1e-6)


MOMENTS = [
    StrategyPlan(name="fedadam"),
    StrategyPlan(name="fedyogi"),
    StrategyPlan(name="fedavgm", server_momentum=0.9),
]


@pytest.mark.parametrize("plan", [StrategyPlan(), *MOMENTS])
@pytest.mark.parametrize("huge", [1e12, 1e25, 1.5e38, 3e38])
@pytest.mark.parametrize("spoilt", [1, 3])
def test_a_huge_update_spoils_no_later_round(plan: StrategyPlan, huge: float, spoilt: int) -> None:
    """The rounds after it are those of a run in which it never came."""
    hurt, calm = Aggregator(plan), Aggregator(plan)
    shared = calm_shared = np.ones(LAYOUT.size, np.float32)
    for number in range(1, 6):
        updates = make_updates(number, 2)
        if number == spoilt:
            before = {name: value.copy() for name, value in hurt.state().items()}
            for update in updates:
                update.delta[:] = huge
            with pytest.raises(StepRejectedError) as caught:
                # FedAdam and FedYogi scale a step to their rate: their moments tell.
                hurt.advance(number, updates, LAYOUT, shared, 1e-3 if huge < 1e20 else 100.0)
            assert caught.value.code in ("not-finite", "too-long")
            after = hurt.state()
            assert after.keys() == before.keys()
            for name in after:
                np.testing.assert_array_equal(after[name], before[name])
            continue
        shared = hurt.advance(number, updates, LAYOUT, shared, 100.0)
        calm_shared = calm.advance(number, updates, LAYOUT, calm_shared, 100.0)
        np.testing.assert_array_equal(shared, calm_shared)


def test_a_step_longer_than_allowed_is_named_with_its_length() -> None:
    updates = heads_of((1.0,), ((),))  # 47 numbers: 2 of the encoder are 1, the heads 0
    with pytest.raises(StepRejectedError, match=r"too-long: step of L2 norm 1\.414 above 1\.4$"):
        Aggregator(StrategyPlan()).advance(1, updates, HEADS, np.zeros(47, np.float32), 1.4)
    Aggregator(StrategyPlan()).advance(1, updates, HEADS, np.zeros(47, np.float32), 1.5)


def test_parameters_that_would_overflow_are_named() -> None:
    updates = heads_of((1.0,), ((),))
    shared = np.full(HEADS.size, 3.4e38, np.float32)
    updates[0].delta[:] = 1e37
    with pytest.raises(StepRejectedError, match="the new parameters would not be finite"):
        Aggregator(StrategyPlan()).advance(1, updates, HEADS, shared, float("inf"))
