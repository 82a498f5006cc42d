"""Units made of noise for tests of private training, and their clipped sum worked out by hand."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.privacy.material import Material, Weights
from common.encoder import Affine
from common.losses import Batch, Targets
from common.model import MultitaskModel, build_encoder
from common.model_plan import ModelPlan

SIZE = 32
EVERYTHING = Weights(1.0, 0.7, 0.5, 0.3, 0.2)
# (unit, number of findings that are annotated or open, has lungs) of each row: units of one to
# three rows, one without masks, one without labels, one with nothing at all, one without lessons.
ROWS = [(0, 14, True), (0, 3, False), (0, 0, True), (1, 14, False), (2, 0, True), (3, 0, False)]
LESSONS = [(1, 14, True), (0, 2, False), (0, 0, True), (3, 0, False)]
Rows = Sequence[tuple[int, int, bool]]


def noisy_model(
    backbone: str = "tiny",
    bridge: str = "all-stages",
    findings: bool = True,
    lungs: bool = True,
    seed: int = 0,
    norm: str = "auto",
) -> MultitaskModel:
    """A float64 model in training mode without a parameter that is 0 or 1 by initialisation."""
    value = {"backbone": backbone, "decoder_width": 8, "bridge": bridge, "norm": norm}
    plan = ModelPlan.model_validate(value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultitaskModel(build_encoder(plan), findings, lungs, plan).double().train()
        if backbone == "tiny" and norm == "affine":  # a small network with such layers
            for stage in list(model.encoder.modules()):
                for name, layer in list(stage.named_children()):
                    if isinstance(layer, nn.GroupNorm):
                        setattr(stage, name, Affine(layer.num_channels).double())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def make_material(
    model: MultitaskModel,
    rows: Rows = ROWS,
    lessons: Rows = LESSONS,
    seed: int = 0,
    views: int = 1,
    size: int = SIZE,
) -> Material:
    """Each row as `views` images that differ, with noise for labels, masks and answers."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype)

    rows = [row for row in rows for _ in range(views)]
    units = max(unit for unit, _, _ in rows) + 1
    lung_rows = torch.tensor([i for i, row in enumerate(rows) if row[2]], dtype=torch.int64)
    images = noise(len(rows), 1, size, size)
    batch = Batch(
        images=images,
        targets=noise(len(rows), 14).round().float(),
        known=torch.tensor([[i < row[1] for i in range(14)] for row in rows]),
        lung_rows=lung_rows,
        masks=noise(len(lung_rows), 1, size, size).round().float(),
        unit=torch.tensor([row[0] for row in rows]),
        units=units,
    )
    material = Material(batch, model.planes(images[lung_rows]))
    if lessons:
        lung_rows = torch.tensor([i for i, row in enumerate(lessons) if row[2]], dtype=torch.int64)
        material.strong = noise(len(lessons), 1, size, size)
        material.targets = Targets(
            findings=noise(len(lessons), 14).float(),
            weights=noise(len(lessons), 14).float(),
            open=torch.tensor([[i < row[1] for i in range(14)] for row in lessons]),
            lung_rows=lung_rows,
            lungs=noise(len(lung_rows), 1, size, size).float(),
            pixels=noise(len(lung_rows), 1, size, size) > 0.3,
            unit=torch.tensor([row[0] for row in lessons]),
            units=units,
        )
        material.strong_planes = model.planes(material.strong[lung_rows])
    return material


def without(material: Material, number: int) -> Material:
    """The same material with one unit fewer; those after it move up."""
    batch, targets = material.batch, material.targets

    def moved(unit: Tensor) -> Tensor:
        return unit - (unit > number).long()

    kept = batch.unit != number
    masked = kept[batch.lung_rows]
    fewer = Material(
        Batch(
            images=batch.images[kept],
            targets=batch.targets[kept],
            known=batch.known[kept],
            lung_rows=(kept.cumsum(0) - 1)[batch.lung_rows[masked]],
            masks=batch.masks[masked],
            unit=moved(batch.unit[kept]),
            units=batch.units - 1,
        ),
        None if material.planes is None else material.planes[masked],
    )
    if targets is None or material.strong is None:
        return fewer
    kept = targets.unit != number
    masked = kept[targets.lung_rows]
    fewer.strong = material.strong[kept]
    if material.strong_planes is not None:
        fewer.strong_planes = material.strong_planes[masked]
    fewer.targets = Targets(
        findings=targets.findings[kept],
        weights=targets.weights[kept],
        open=targets.open[kept],
        lung_rows=(kept.cumsum(0) - 1)[targets.lung_rows[masked]],
        lungs=targets.lungs[masked],
        pixels=targets.pixels[masked],
        unit=moved(targets.unit[kept]),
        units=targets.units - 1,
    )
    return fewer


def zeros(model: MultitaskModel) -> list[Tensor]:
    """A total to add to, in float64, so that rounding hides nothing."""
    return [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters() if p.requires_grad]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them in one row, float64."""
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def unit_gradients(model: MultitaskModel, material: Material, weights: Weights) -> Tensor:
    """Each unit's gradient, (U, P) float64: row by row, with no code of the engines or losses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for number in range(material.batch.units):
        terms = _supervised_terms(model, material, number) + _taught_terms(model, material, number)
        factors = (
            weights.findings,
            weights.lungs,
            weights.consistency * weights.consistency_findings,
            weights.consistency * weights.consistency_lungs,
        )
        pairs = zip(terms, factors, strict=True)
        parts = [factor * torch.stack(each).mean() for each, factor in pairs if each]
        loss = sum(parts, torch.zeros((), dtype=torch.float64, requires_grad=True))
        own = torch.autograd.grad(loss, trained, allow_unused=True)
        values = [
            torch.zeros_like(p) if g is None else g for g, p in zip(own, trained, strict=True)
        ]
        gradients.append(flat(values))
    return torch.stack(gradients)


def clipped_sum(gradients: Tensor, clipping_norm: float) -> Tensor:
    """The definition: (U, P) to (P,)."""
    total = torch.zeros_like(gradients[0])
    for gradient in gradients:
        total += gradient * min(1.0, clipping_norm / (float(gradient.norm()) + 1e-6))
    return total


Terms = tuple[list[Tensor], list[Tensor]]  # of findings and of lungs, one for each row


def _supervised_terms(model: MultitaskModel, material: Material, number: int) -> Terms:
    batch, terms = material.batch, ([], [])
    for row in (batch.unit == number).nonzero()[:, 0].tolist():
        image, known = batch.images[row : row + 1], batch.known[row]
        logits, outline, at = _look(model, image, row, batch.lung_rows, material.planes)
        if logits is not None and known.any():
            truth = batch.targets[row, known].double()
            terms[0].append(functional.binary_cross_entropy_with_logits(logits[known], truth))
        if outline is not None:
            truth, seen = batch.masks[at, 0].double(), outline.sigmoid()
            dice = (2 * (seen * truth).sum() + 1) / (seen.sum() + truth.sum() + 1)
            entropy = functional.binary_cross_entropy_with_logits(outline, truth)
            terms[1].append(1 - dice + entropy)
    return terms


def _taught_terms(model: MultitaskModel, material: Material, number: int) -> Terms:
    targets, strong, terms = material.targets, material.strong, ([], [])
    if targets is None or strong is None:
        return terms
    for row in (targets.unit == number).nonzero()[:, 0].tolist():
        image, chosen = strong[row : row + 1], targets.open[row]
        logits, outline, at = _look(model, image, row, targets.lung_rows, material.strong_planes)
        if logits is not None and chosen.any():
            truth = targets.findings[row, chosen].double()
            weight = targets.weights[row, chosen].double()
            terms[0].append(
                functional.binary_cross_entropy_with_logits(logits[chosen], truth, weight)
            )
        if outline is not None:
            seen = targets.pixels[at, 0]
            truth = targets.lungs[at, 0][seen].double()
            terms[1].append(functional.binary_cross_entropy_with_logits(outline[seen], truth))
    return terms


def _look(
    model: MultitaskModel, image: Tensor, row: int, lung_rows: Tensor, planes: Tensor | None
) -> tuple[Tensor | None, Tensor | None, int]:
    """One row's finding logits, its lung logits (S, S) if it has a mask, and the mask's number."""
    [places] = (lung_rows == row).nonzero(as_tuple=True)
    at = int(places[0]) if len(places) else -1
    asked = torch.zeros(0 if at < 0 else 1, dtype=torch.int64)
    outputs = model(image, asked, None if planes is None or at < 0 else planes[at : at + 1])
    logits = None if outputs.findings is None else outputs.findings[0]
    return logits, None if outputs.lungs is None else outputs.lungs[0, 0], at
