"""Signs in the air spaces and the interstitium of the lung: what makes it whiter from inside."""

import numpy as np

from simulations.phantom.anatomy import HILUM, LEFT, RIGHT, Lung
from simulations.phantom.fields import (
    Canvas,
    Field,
    ball,
    blur,
    cloud,
    curve,
    edge,
    noise,
    single,
    smooth,
)
from simulations.phantom.scene import Lesion, Scene


def atelectasis(scene: Scene, lesion: Lesion) -> None:
    """Plate-like bands over a raised diaphragm, with a hazy collapsed base."""
    lung, rng, body = scene.lung(lesion.side), lesion.rng, scene.thorax.body
    canvas = Canvas(scene.pose, scene.size)
    for k in range(1 + round(1.4 * lesion.severity)):
        x, y = lung.at(rng.uniform(0.35, 0.55), rng.uniform(0.80, 0.90) - 0.15 * k, body)
        half = rng.uniform(0.15, 0.22) + 0.07 * lesion.severity
        tilt = rng.uniform(-0.30, 0.15) * lesion.side
        ends = curve((x - half, y + tilt * half), (x, y - 0.01), (x + half, y - tilt * half))
        wide, dense = 0.040 + 0.035 * lesion.severity, 0.80 + 0.20 * lesion.severity
        canvas.line(ends, 0.6 * wide, dense)
        canvas.line(0.75 * ends + 0.25 * ends.mean(axis=0), wide, dense)
    bands = blur(canvas.field(), 0.007 * scene.size)
    x, y = lung.at(0.35, 1.0, body)
    haze = cloud(scene.x, scene.y, (x, y), (0.24, 0.10)) * (0.30 + 0.40 * lesion.severity)
    scene.opacify("Atelectasis", np.maximum(bands, haze) * lung.inside)


def infiltration(scene: Scene, lesion: Lesion) -> None:
    """Patchy, ill-defined haze in one or both lungs."""
    rng = lesion.rng
    mottle = 0.55 + 0.45 * smooth(0.5 + 0.8 * noise(rng, 14, scene.size))
    sides = [lesion.side] if rng.random() < 0.45 else [RIGHT, LEFT]
    for side in sides:
        lung = scene.lung(side)
        field = np.zeros_like(scene.x)
        for _ in range(2):
            at = lung.at(rng.uniform(0.25, 0.7), rng.uniform(0.35, 0.85), scene.thorax.body)
            radius = rng.uniform(0.12, 0.18)
            field = np.maximum(field, cloud(scene.x, scene.y, at, (radius, 1.2 * radius)))
        strength = 0.42 + 0.38 * lesion.severity
        scene.opacify("Infiltration", strength * field * mottle * lung.inside)


def pneumonia(scene: Scene, lesion: Lesion) -> None:
    """Consolidation of one lobe: a straight border at the fissure, hazy edges elsewhere."""
    lung, rng = scene.lung(lesion.side), lesion.rng
    upper = rng.random() < 0.35
    fissure = 0.47 + 0.10 * (lung.out - 0.3) + rng.uniform(-0.05, 0.05)
    beyond = (fissure - lung.height) if upper else (lung.height - fissure)
    sharp = smooth(beyond / 0.03 + 0.5)
    fade = np.exp(-np.maximum(beyond, 0.0) / (0.30 + 0.15 * lesion.severity))
    centre = lung.at(rng.uniform(0.55, 0.8), 0.40 if upper else 0.65, scene.thorax.body)
    wide = cloud(scene.x, scene.y, centre, (0.34, 0.5))
    mottle = 0.8 + 0.2 * smooth(0.5 + noise(rng, 16, scene.size))
    field = (0.75 + 0.25 * lesion.severity) * sharp * fade * wide * mottle
    scene.opacify("Pneumonia", field * lung.inside)


def consolidation(scene: Scene, lesion: Lesion) -> None:
    """Dense, nearly white lung in which the air-filled bronchi stay dark."""
    lung, rng, body = scene.lung(lesion.side), lesion.rng, scene.thorax.body
    x, y = lung.at(rng.uniform(0.40, 0.55), rng.uniform(0.45, 0.80), body)
    radius = 0.17 + 0.09 * lesion.severity
    far = ((scene.x - x) / radius) ** 2 + ((scene.y - y) / (1.05 * radius)) ** 2
    uneven = 0.22 * noise(rng, 7, scene.size) + 0.10 * noise(rng, 15, scene.size)
    shape = smooth((1.20 - np.sqrt(far) + uneven) / 0.5)
    canvas = Canvas(scene.pose, scene.size)
    start = (lesion.side * 0.17, HILUM + 0.02)
    for turn in (-0.55, -0.15, 0.25, 0.6):
        ends = (x + lesion.side * radius * np.cos(turn), y + radius * np.sin(turn))
        middle = (0.45 * start[0] + 0.55 * x, 0.45 * start[1] + 0.55 * y + 0.2 * radius * turn)
        canvas.line(curve(start, middle, ends), 0.026, 0.55)
    field = shape * (0.88 + 0.12 * lesion.severity - canvas.field())
    scene.opacify("Consolidation", field * lung.inside)


def edema(scene: Scene, lesion: Lesion) -> None:
    """Bat-wing haze around both hila, fluid in the septa (Kerley B lines), wide upper vessels."""
    rng = lesion.rng
    mottle = 0.8 + 0.2 * smooth(0.5 + noise(rng, 18, scene.size))
    canvas = Canvas(scene.pose, scene.size)
    wings = np.zeros_like(scene.x)
    for side in (RIGHT, LEFT):
        lung = scene.lung(side)
        radius = (0.15 + 0.07 * lesion.severity, 0.24 + 0.08 * lesion.severity)
        wing = cloud(scene.x, scene.y, (side * 0.29, HILUM + 0.09), radius)
        wings = np.maximum(wings, wing * lung.inside)
        for down in np.arange(0.74, 1.02, 0.045):
            x, y = lung.at(1.0, float(down), scene.thorax.body)
            canvas.line(curve((x, y), (x - side * 0.10, y + 0.005)), 0.013, 0.6)
    inside = scene.lung(RIGHT).inside + scene.lung(LEFT).inside
    haze = (0.55 + 0.35 * lesion.severity) * wings * mottle
    lines = canvas.field() * (0.5 + 0.5 * lesion.severity)
    scene.opacify("Edema", np.maximum(haze, lines * inside))
    scene.markings = single(scene.markings * (1.0 + 0.5 * inside))


def fibrosis(scene: Scene, lesion: Lesion) -> None:
    """A net of coarse lines, strongest at the bases and along the chest wall."""
    rng = lesion.rng
    net = np.maximum(_ridges(rng, 24, scene.size), 0.7 * _ridges(rng, 40, scene.size))
    net *= 0.75 + 0.25 * noise(rng, 10, scene.size)
    for side in (RIGHT, LEFT):
        lung = scene.lung(side)
        basal = smooth((lung.height - 0.42) / 0.35)
        rim = np.exp(-np.maximum(lung.rim, 0.0) / 0.16)
        where = np.clip(0.80 * basal + 0.55 * rim * smooth(lung.height / 0.5), 0.0, 1.0)
        strength = 0.60 + 0.40 * lesion.severity
        scene.opacify("Fibrosis", strength * where * (0.20 + 0.70 * net) * lung.inside)


def _ridges(rng: np.random.Generator, cells: int, size: int) -> Field:
    """Thin connected lines: where smooth noise crosses zero."""
    return single(np.exp(-((noise(rng, cells, size) / 0.35) ** 2)))


def nodule(scene: Scene, lesion: Lesion) -> None:
    """One to three small, well-defined round spots (under 3 cm)."""
    rng = lesion.rng
    for k in range(1 + int(rng.integers(0, 3))):
        side = lesion.side if k == 0 else int(rng.choice([RIGHT, LEFT]))
        radius = 0.050 + 0.022 * lesion.severity * rng.uniform(0.8, 1.0)
        _round(scene, "Nodule", scene.lung(side), rng, radius, 0.0)


def mass(scene: Scene, lesion: Lesion) -> None:
    """One large, slightly lobulated round opacity (over 3 cm)."""
    radius = 0.095 + 0.065 * lesion.severity
    _round(scene, "Mass", scene.lung(lesion.side), lesion.rng, radius, 0.10)


def _round(
    scene: Scene, name: str, lung: Lung, rng: np.random.Generator, radius: float, lobes: float
) -> None:
    """A solid round lesion; `lobes` is how uneven its outline is, as a share of the radius."""
    centre = lung.at(rng.uniform(0.30, 0.75), rng.uniform(0.25, 0.85), scene.thorax.body)
    angle = np.arctan2(scene.y - centre[1], scene.x - centre[0])
    phase = rng.uniform(0.0, 6.28)
    outline = 1.0 + lobes * np.cos(3.0 * angle + phase) + 0.5 * lobes * np.cos(5.0 * angle)
    far = np.hypot(scene.x - centre[0], scene.y - centre[1]) / outline
    soft = max(0.012 + 0.12 * radius, 1.0 / scene.size)
    cover = edge(radius - far, soft)
    thick = ball(scene.x, scene.y, centre, (1.15 * radius, 1.15 * radius))
    field = cover * (0.65 + 0.35 * thick) * lung.inside
    scene.opacify(name, field)
    scene.extra = single(scene.extra + 0.07 * field)
