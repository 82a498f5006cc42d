"""What a unit adds does not depend on who is beside it, whatever weights somebody has chosen.

With weights made for it, a rounding error is as long as the clipping norm, and an infinity of one
unit can reach another by a shared shape or a product with 0. So the sum with a unit and without
it must differ by that unit alone.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.privacy.choose import open_engine
from client.privacy.engines import Engine
from client.privacy.material import Material, apart
from client.privacy.precision import full_precision
from client.settings import EngineName
from common.model import MultitaskModel
from tests.unit.client.privacy.units import (
    EVERYTHING,
    Rows,
    flat,
    make_material,
    noisy_model,
    zeros,
)

ENGINES: tuple[EngineName, ...] = ("loop", "opacus", "vmap")
CPU = torch.device("cpu")
NORM = 0.02
# Units of one image, with and without a mask, and patients with two, three and many.
ROWS = [(u, 14, False) for u in range(6)] + [(6, 14, True), (7, 14, True), (7, 3, False)]
ROWS += [(8, 14, True)] * 3 + [(9, 14, False)] * 7
LESSONS = [(1, 14, True), (2, 5, False), (6, 2, False), (9, 3, True), (9, 3, False)]
FEW = [(0, 14, False), (1, 14, False), (2, 14, True), (3, 14, False), (3, 3, True)]
PAIRS = [(0, 14, False), (1, 14, False), (2, 14, True), (3, 14, True)]  # that are side by side


def added(engine: Engine, model: MultitaskModel, units: list[Material]) -> Tensor:
    """The clipped sum of these units, (P,) float64."""
    total = zeros(model)
    engine.add_clipped(units, EVERYTHING, NORM, total)
    return flat(total)


def worst_change(engine: Engine, model: MultitaskModel, units: list[Material]) -> float:
    """The longest change by one unit that leaves, in clipping norms; all others are the same."""
    everyone = added(engine, model, units)
    alone = torch.stack([added(engine, model, [unit]) for unit in units])
    # Each unit adds what it adds alone: then one unit more is one summand more.
    assert float((everyone - alone.sum(dim=0)).norm()) <= 1e-9 * NORM
    changes = []
    for number in range(len(units)):
        rest = added(engine, model, units[:number] + units[number + 1 :])
        changes.append(float((everyone - rest).norm()) / NORM)
    return max(changes)


def ready(name: EngineName, bridge: str = "off") -> tuple[Engine, MultitaskModel]:
    """An engine for a float32 model, which has proved itself on the healthy weights."""
    model = noisy_model("tiny", bridge).float()
    engine = open_engine(name, model, CPU, 5)
    for lessons in (False, True):
        added(engine, model, units_of(model, FEW, lessons)[:1])
    return engine, model


def units_of(
    model: MultitaskModel, rows: Rows, lessons: bool = True, seed: int = 0
) -> list[Material]:
    last = max(unit for unit, _, _ in rows)
    asked = [each for each in LESSONS if each[0] <= last] if lessons else []
    material = make_material(model, rows, asked, seed)
    material.batch.targets[:] = 1.0  # the gradients of all have one direction
    return list(apart(material))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("bridge", "lessons", "rows"),
    [
        ("off", False, FEW),
        ("off", True, FEW),
        ("all-stages", False, FEW),
        ("all-stages", True, ROWS),
    ],
)
def test_a_unit_counts_the_same_whoever_is_beside_it(
    name: EngineName, bridge: str, lessons: bool, rows: Rows
) -> None:
    engine, model = ready(name, bridge)
    with full_precision():
        assert 0.5 < worst_change(engine, model, units_of(model, rows, lessons)) <= 1 + 1e-6


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("name", ["opacus", "vmap"])
@pytest.mark.parametrize("scales", [(3e38,), (1e30, 1e-38, 0.0)])
def test_no_layer_couples_units_whatever_its_weights(
    name: EngineName, scales: tuple[float, ...]
) -> None:
    """Each layer in turn is filled with a scale, or the first of its channels is."""
    engine, model = ready(name)
    units = units_of(model, FEW)
    for number, parameter in enumerate(model.parameters()):
        kept, scale = parameter.detach().clone(), scales[number % len(scales)]
        with torch.no_grad():
            parameter[0 if number % 2 else slice(None)] = scale
        everyone = added(engine, model, units)
        rest = added(engine, model, units[:2] + units[3:])
        alone = added(engine, model, units[2:3])
        assert float((everyone - rest).norm()) <= NORM * (1 + 1e-6)
        assert float((everyone - rest - alone).norm()) <= 1e-9 * NORM
        with torch.no_grad():
            parameter.copy_(kept)


@pytest.mark.parametrize("name", ENGINES)
def test_an_overflow_in_the_decoder_silences_nobody_else(name: EngineName) -> None:
    """One patient with a mask once made all others of the portion vanish."""
    engine, model = ready(name)
    assert model.lungs is not None
    with torch.no_grad():
        for parameter in model.lungs.logit.parameters():
            parameter.fill_(3e38)
    units = units_of(model, FEW, False)
    assert worst_change(engine, model, units) <= 1 + 1e-6
    everyone = added(engine, model, units)
    assert float(everyone.norm()) > 0.5 * NORM  # those without a mask are still heard


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000), exponents=st.lists(st.integers(-30, 30), min_size=5, max_size=5))
def test_random_scales_couple_nothing(name: EngineName, seed: int, exponents: list[int]) -> None:
    engine, model = ready(name)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.mul_(10.0 ** exponents[number % 5])
    assert worst_change(engine, model, units_of(model, FEW, True, seed)) <= 1 + 1e-6


@pytest.mark.parametrize("name", ["opacus", "vmap"])
def test_a_search_for_weights_that_couple_finds_none(name: EngineName) -> None:
    """Hill-climbing over the layers' scales, for the most change by one unit that leaves."""
    engine, model = ready(name)
    units = units_of(model, PAIRS, False)
    generator = torch.Generator().manual_seed(0)
    parameters, best = list(model.parameters()), 0.0
    for _ in range(4):
        chosen = parameters[int(torch.randint(len(parameters), (1,), generator=generator))]
        kept = chosen.detach().clone()
        factor = 10.0 ** float(torch.randint(-12, 13, (1,), generator=generator))
        with torch.no_grad():
            chosen.mul_(factor)
        found = worst_change(engine, model, units)
        assert found <= 1 + 1e-6
        if found < best:
            with torch.no_grad():
                chosen.copy_(kept)
        best = max(best, found)
