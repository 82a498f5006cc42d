"""Every engine adds up the same clipped gradients, and no unit counts for more than the norm."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.privacy.choose import open_engine
from client.privacy.engines import clip_and_add, clip_and_add_all, groups, run_all
from client.privacy.hooks import OpacusEngine
from client.privacy.material import (
    Material,
    Weights,
    apart,
    in_form,
    losses,
    parts,
    teaches,
)
from common.model import MultitaskModel
from tests.unit.client.privacy.units import (
    EVERYTHING,
    LESSONS,
    ROWS,
    clipped_sum,
    flat,
    make_material,
    noisy_model,
    unit_gradients,
    without,
    zeros,
)

ENGINES = ("loop", "opacus", "vmap")
CPU = torch.device("cpu")
MOST = 32
MODEL = noisy_model()
FINDINGS_ONLY = replace(EVERYTHING, consistency=0.0)


def run(
    engine: str,
    model: MultitaskModel,
    material: Material,
    norm: float,
    weights: Weights = EVERYTHING,
) -> Tensor:
    total = zeros(model)
    opened = open_engine(engine, model, CPU, MOST)
    assert opened.name == engine
    opened.add_clipped(apart(material), weights, norm, total)
    opened.close()
    return flat(total)


def middle(gradients: Tensor) -> float:
    """A norm that clips some units and leaves others as they are."""
    norms = gradients.norm(dim=1)
    return 0.9 * float(norms[norms > 0].median())


def agrees(found: Tensor, expected: Tensor) -> bool:
    # The losses are float32 whatever the network is: that much rounding is left.
    return float((found - expected).norm()) <= 1e-6 * float(expected.norm())


LARGE = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("resnet18", "densenet121", "resnet18 affine")
]


@pytest.fixture(scope="module", params=["tiny", "multimix", "tiny affine", *LARGE])
def worked_out(request: pytest.FixtureRequest) -> tuple[MultitaskModel, Material, Tensor]:
    backbone, _, norm = request.param.partition(" ")
    model = noisy_model(backbone, norm=norm or "auto")
    views = 2 if request.param == "tiny" else 1
    material = make_material(model, views=views)
    return model, material, unit_gradients(model, material, EVERYTHING)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree_with_the_definition(
    engine: str, worked_out: tuple[MultitaskModel, Material, Tensor]
) -> None:
    """Findings, lungs, consistency and the bridge; uneven units; heads that some do not use."""
    model, material, gradients = worked_out
    norm = middle(gradients)
    lengths = gradients.norm(dim=1)
    assert (lengths > 1.1 * norm).any()  # the clipping matters, ...
    assert ((lengths < norm) & (lengths > 0)).any()  # ... and not for all
    assert agrees(run(engine, model, material, norm), clipped_sum(gradients, norm))


@pytest.mark.parametrize("norm", ["auto", "affine"])
def test_opacus_needs_no_loop_for_our_layers(norm: str) -> None:
    """Where its rules are wrong the loop takes over without a word, and all sums still agree."""
    engine = OpacusEngine(noisy_model(norm=norm).float(), MOST)
    assert engine._proved((1, 64, 64), EVERYTHING)


@pytest.mark.slow
def test_depthwise_layers_and_padding_by_hand_agree() -> None:
    """The embedded start's network. Opacus needs minutes for its depthwise convolutions."""
    model = noisy_model("tf_efficientnet_lite0", norm="affine")
    loop, vmap = (run(engine, model, make_material(model), 1.0) for engine in ("loop", "vmap"))
    assert agrees(vmap, loop)


row = st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 14]), st.booleans())
uneven = st.lists(row, min_size=1, max_size=6).map(
    lambda rows: [(sorted({r[0] for r in rows}).index(unit), n, m) for unit, n, m in rows]
)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None)
@given(rows=uneven, taught=st.lists(row, max_size=4), seed=st.integers(0, 1000))
def test_engines_agree_on_any_units(
    engine: str, rows: list[tuple[int, int, bool]], taught: list[tuple[int, int, bool]], seed: int
) -> None:
    units = max(unit for unit, _, _ in rows) + 1
    lessons = [each for each in taught if each[0] < units]
    material = make_material(MODEL, rows, lessons, seed)
    gradients = unit_gradients(MODEL, material, EVERYTHING)
    norm = middle(gradients) if gradients.any() else 1.0
    assert agrees(run(engine, MODEL, material, norm), clipped_sum(gradients, norm))


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=4, deadline=None)
@given(rows=uneven, seed=st.integers(0, 1000), norm=st.floats(1e-3, 10.0))
def test_no_unit_counts_for_more_than_the_norm(
    engine: str, rows: list[tuple[int, int, bool]], seed: int, norm: float
) -> None:
    rows = [*rows, (0, 14, True)]
    lessons = [each for each in LESSONS if each[0] <= max(unit for unit, _, _ in rows)]
    material = make_material(MODEL, rows, lessons, seed)
    everyone, longest = run(engine, MODEL, material, norm), 0.0
    for number in range(material.batch.units):
        fewer = without(material, number)
        rest = run(engine, MODEL, fewer, norm) if fewer.batch.units else torch.zeros_like(everyone)
        change = float((everyone - rest).norm())
        assert change <= norm * (1 + 1e-6)
        longest = max(longest, change)
    full = unit_gradients(MODEL, material, EVERYTHING).norm(dim=1).max()
    assert longest >= 0.99 * min(norm, float(full))  # clipped to the norm, and not to less


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("findings", "lungs", "bridge"),
    [
        (True, False, "off"),
        (False, True, "off"),
        (True, True, "off"),
        (True, True, "decoder-input"),
    ],
)
def test_engines_agree_whatever_the_model_has(
    engine: str, findings: bool, lungs: bool, bridge: str
) -> None:
    model = noisy_model("tiny", bridge, findings, lungs)
    material = make_material(model)
    gradients = unit_gradients(model, material, EVERYTHING)
    norm = middle(gradients)
    assert agrees(run(engine, model, material, norm), clipped_sum(gradients, norm))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_at_rest_is_in_no_norm(engine: str) -> None:
    model = noisy_model()
    assert model.lungs is not None
    model.lungs.requires_grad_(False)
    material = make_material(model)
    gradients = unit_gradients(model, material, EVERYTHING)
    norm = middle(gradients)
    found = run(engine, model, material, norm)
    assert found.numel() < sum(p.numel() for p in model.parameters())
    assert agrees(found, clipped_sum(gradients, norm))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_teacher_without_weight_is_not_heard(engine: str) -> None:
    heard = make_material(MODEL)
    alone = make_material(MODEL, lessons=[])
    silent = run(engine, MODEL, heard, 1.0, FINDINGS_ONLY)
    assert torch.allclose(silent, run(engine, MODEL, alone, 1.0), rtol=1e-6, atol=1e-9)
    assert not torch.allclose(silent, run(engine, MODEL, heard, 1.0), rtol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_unit_that_is_not_finite_adds_nothing(engine: str, bad: float) -> None:
    material = make_material(MODEL)
    material.batch.images[0, 0, 3, 3] = bad
    expected = run(engine, MODEL, without(material, 0), 1.0)
    assert expected.isfinite().all()
    assert agrees(run(engine, MODEL, material, 1.0), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_units_without_anything_to_learn_add_nothing(engine: str) -> None:
    """Not even from a model that has no findings head, whose loss has no gradient at all then."""
    for model in (MODEL, noisy_model(bridge="off", findings=False)):
        material = make_material(model, rows=[(0, 0, False), (1, 0, False)], lessons=[])
        assert not run(engine, model, material, 1.0).any()


@pytest.mark.parametrize("engine", ENGINES)
def test_portions_add_up(engine: str) -> None:
    material = make_material(MODEL)
    total = zeros(MODEL)
    opened = open_engine(engine, MODEL, CPU, MOST)
    for each in apart(material):
        opened.add_clipped([each], EVERYTHING, 1.0, total)
    assert agrees(flat(total), run(engine, MODEL, material, 1.0))


@pytest.mark.parametrize("engine", ENGINES)
def test_float32_and_nhwc_images_are_no_different(engine: str) -> None:
    model = noisy_model()
    material = make_material(model)
    gradients = unit_gradients(model, material, EVERYTHING)
    norm = middle(gradients)
    model.float()
    material.batch.images = material.batch.images.float()
    assert material.strong is not None
    material.strong = material.strong.float().contiguous(memory_format=torch.channels_last)
    assert material.planes is not None
    assert material.strong_planes is not None
    material.planes, material.strong_planes = (
        material.planes.float(),
        material.strong_planes.float(),
    )
    total = zeros(model)
    open_engine(engine, model, CPU, MOST).add_clipped(apart(material), EVERYTHING, norm, total)
    expected = clipped_sum(gradients, norm)
    assert float((flat(total) - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_model_is_left_as_it_was(engine: str) -> None:
    model = noisy_model()
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    attributes = [set(vars(module)) for module in model.modules()]
    material = make_material(model)
    opened = open_engine(engine, model, CPU, MOST)
    opened.add_clipped(apart(material), EVERYTHING, 1.0, zeros(model))
    copy.deepcopy(model)  # what a teacher does while an engine is open
    opened.add_clipped(apart(material), EVERYTHING, 1.0, zeros(model))
    opened.close()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [set(vars(module)) for module in model.modules()] == attributes
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 7.0).all()
        assert not vars(parameter)


@pytest.mark.parametrize("material", [make_material(MODEL), make_material(MODEL, views=2)])
def test_other_forms_of_a_material_have_the_same_losses(material: Material) -> None:
    expected = losses(MODEL, material, EVERYTHING)
    assert (expected[:3] > 0).all()
    for number, alone in enumerate(apart(material)):
        first = in_form(alone, EVERYTHING)
        assert first.batch.lung_rows.tolist() == list(range(len(alone.batch.masks)))
        for each in (alone, first):
            assert torch.allclose(losses(MODEL, each, EVERYTHING), expected[number], rtol=1e-6)


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_parts_of_a_unit_add_up_to_it(most: int) -> None:
    material = make_material(MODEL, views=3)
    expected = losses(MODEL, material, EVERYTHING)
    for number, alone in enumerate(apart(material)):
        own = list(parts(alone, EVERYTHING, most))
        sizes = [
            len(part.batch.images) + (0 if part.strong is None else len(part.strong))
            for part, _ in own
        ]
        assert max(sizes) <= max(most, 2)
        total = torch.stack([losses(MODEL, *part)[0] for part in own]).sum()
        assert torch.allclose(total, expected[number], rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_large_unit_has_the_same_gradient_in_parts(engine: str) -> None:
    material = make_material(MODEL, views=3)
    gradients = unit_gradients(MODEL, material, EVERYTHING)
    norm = middle(gradients)
    total = zeros(MODEL)
    open_engine(engine, MODEL, CPU, 3).add_clipped(apart(material), EVERYTHING, norm, total)
    assert agrees(flat(total), clipped_sum(gradients, norm))


def test_what_teaches() -> None:
    rows = [(0, 0, False), (1, 1, False), (2, 0, True)]
    taught = make_material(MODEL, rows, [(0, 1, False)])
    without_lessons = make_material(MODEL, rows=ROWS[-1:], lessons=[])
    units = list(apart(taught))
    assert all(teaches(unit, EVERYTHING) for unit in units)
    assert [teaches(unit, FINDINGS_ONLY) for unit in units] == [False, True, True]
    assert not teaches(without_lessons, EVERYTHING)


def test_groups_are_of_one_form_and_of_one_size() -> None:
    rows = [(0, 1, False)] + [(1, 1, False)] * 5 + [(unit, 1, False) for unit in range(2, 7)]
    material = make_material(MODEL, rows, [(0, 1, False), (3, 1, False)])
    found = [
        (None if form is None else (form.rows, form.lessons), len(units), count)
        for form, units, count in groups(apart(material), EVERYTHING, 4)
    ]
    # Units 2, 4, 5 and 6 fill a group of four images; 0 and 3 have two images each, and fill one
    # as well; unit 1 has more than four and comes alone.
    assert sorted(found, key=str) == [((1, 0), 4, 4), ((1, 1), 2, 2), (None, 1, 1)]
    three = make_material(MODEL, rows[:1], [])
    [(_, units, count)] = groups(apart(three), EVERYTHING, 4)
    assert (len(units), count) == (4, 1)


def test_clipping_scales_to_the_norm_and_no_further() -> None:
    gradients = [torch.tensor([3.0, 0.0]), None, torch.tensor([[4.0]])]
    total = [torch.ones(2), torch.ones(1), torch.ones(1, 1)]
    clip_and_add(gradients, 10.0, total)
    assert flat(total).tolist() == [4.0, 1.0, 1.0, 5.0]
    total = [torch.zeros(2, dtype=torch.float64), torch.zeros(1), torch.zeros(1, 1)]
    clip_and_add(gradients, 1.0, total)
    assert torch.allclose(flat(total), torch.tensor([0.6, 0, 0, 0.8], dtype=torch.float64))
    assert flat(total).norm() < 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_clipping_leaves_out_what_is_not_finite(bad: float) -> None:
    total = [torch.zeros(2), torch.zeros(1)]
    clip_and_add([torch.tensor([1.0, bad]), torch.ones(1)], 1.0, total)
    assert not flat(total).any()
    rows = [torch.tensor([[1.0, bad], [0.0, 2.0]]), torch.ones(2, 1)]
    assert clip_and_add_all(rows, 2, 100.0, total) == [0]
    assert flat(total).tolist() == [0.0, 2.0, 1.0]


def test_clipping_does_not_overflow() -> None:
    """The square of 1e30 is infinite in float32, and the gradient is finite all the same."""
    total = [torch.zeros(4)]
    clip_and_add([torch.full((4,), 1e30)], 2.0, total)
    assert torch.allclose(total[0], torch.ones(4))


@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e3])
def test_clipping_many_is_clipping_each(norm: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([0.0, 1e-3, 1.0, 1e4])
    rows = [torch.randn(4, *shape, generator=generator) for shape in [(3,), (2, 2), ()]]
    rows = [each * scale.view(4, *[1] * (each.ndim - 1)) for each in rows]
    together, apart = ([torch.zeros_like(each[0]) for each in rows] for _ in range(2))
    assert clip_and_add_all(rows, 4, norm, together) == []
    for number in range(4):
        before = [each.clone() for each in apart]
        clip_and_add([each[number] for each in rows], norm, apart)
        assert (flat(apart) - flat(before)).norm() <= norm * (1 + 1e-6)
    assert torch.allclose(flat(together), flat(apart), rtol=1e-5)


def test_the_loop_works_side_by_side_and_gives_the_threads_back() -> None:
    material, before = make_material(MODEL), torch.get_num_threads()
    sums = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sums.append(run("loop", MODEL, material, 0.1))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert agrees(*sums)


def test_an_error_in_one_of_many_units_comes_through() -> None:
    units = list(apart(make_material(MODEL)))

    def work(material: Material) -> None:
        if material is units[3]:
            raise ValueError("unit 3")

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="unit 3"):
        run_all(work, units, 2)
    torch.set_num_threads(before)
