"""What lies around the lungs: body wall, bones, airways and the vessels in the lungs.

Each function returns a (size, size) float32 field of attenuation; 1.0 is about the attenuation of
the abdomen of an average adult.
"""

import numpy as np

from simulations.phantom.anatomy import HILUM, LEFT, RIGHT, Lung, Thorax
from simulations.phantom.fields import (
    Canvas,
    Field,
    Points,
    Pose,
    Real,
    ball,
    blur,
    cloud,
    curve,
    edge,
    single,
    smooth,
)


def wall(thorax: Thorax, arms_down: float) -> Field:
    """Soft tissue of trunk, neck, shoulders, arms and breasts; zero in the air around."""
    body, x, y = thorax.body, thorax.x, thorax.y
    across = np.abs(x)
    half = body.half_width + 0.13 + 0.12 * body.fat + 0.05 * smooth((-0.1 - y) / 0.5)
    shoulder = body.apex - 0.16 + 0.30 * np.clip(across - 0.20, 0.0, 2.0) ** 1.1
    room = np.minimum(half - across, single(y - shoulder))
    trunk = np.sqrt(np.clip(room / 0.45, 0.0, 1.0)) * (0.56 + 0.16 * body.fat)
    neck = 0.21 + 0.05 * body.fat + 0.25 * smooth((y - body.apex + 0.2) / 0.25)
    throat = np.sqrt(np.clip((neck - across) / 0.2, 0.0, 1.0)) * 0.58
    throat *= edge(0.1 - y, 0.2)
    centre = 0.93 + 0.06 * body.fat + (0.30 - 0.22 * arms_down) * (y + 0.55)
    arm = np.sqrt(np.clip(1.0 - ((across - centre) / 0.19) ** 2, 0.0, 1.0))
    arm *= edge(y - shoulder - 0.02, 0.05) * 0.5
    joint = np.sqrt(np.clip(1.0 - ((across - 0.80) / 0.30) ** 2, 0.0, 1.0))
    joint = joint * np.clip(1.0 - ((y - body.apex - 0.28) / 0.34) ** 2, 0.0, 1.0) * 0.55
    joint *= edge(y - shoulder, 0.04)
    field = np.maximum(np.maximum(trunk, throat), np.maximum(arm, joint))
    if body.breast > 0.0:
        radius = 0.24 + 0.12 * body.breast
        for side in (RIGHT, LEFT):
            centre_at = (side * 0.46, body.dome_right - 0.06 + 0.10 * body.breast)
            field = field + (0.05 + 0.12 * body.breast) * ball(x, y, centre_at, (radius, radius))
    return single(field)


def ribs(thorax: Thorax) -> Field:
    """Posterior and anterior arcs of the ribs, hollow like tubes."""
    body, y = thorax.body, thorax.y
    field = np.zeros_like(y)
    for lung in (thorax.right, thorax.left):
        q = np.clip(lung.out / (lung.lateral + 0.025), 0.0, 1.2)
        cage = edge(lung.lateral + 0.035 - lung.out, 0.012) * edge(lung.out - 0.06, 0.02)
        cage *= edge(lung.height + 0.03, 0.02) * (1.0 - 0.75 * smooth((lung.height - 0.8) / 0.35))
        back = body.apex + 0.02 - 0.10 * q * (1.0 - q) + 0.27 * q**2.6
        front = body.apex + 0.29 + 0.56 * np.maximum(1.0 - q, 0.0) ** 1.15
        posterior = _tubes((y - back) / body.spacing, 0.27)
        anterior = _tubes((y - front) / body.spacing, 0.30) * smooth((q - 0.38) / 0.22)
        anterior = anterior * edge(y - front + 0.5 * body.spacing, 0.02)
        field = field + cage * (0.115 * posterior + 0.065 * anterior)
    return single(field * body.bone)


def _tubes(phase: Real, half: float) -> Field:
    """Parallel tubes, one per unit of `phase`, `half` their half width: bright cortex, dim core."""
    off = np.abs(phase - np.round(phase)) / half
    cover = smooth((1.12 - off) / 0.24)
    return single(cover * (0.62 + 0.38 * np.clip(off, 0.0, 1.0) ** 3))


def spine(thorax: Thorax) -> Field:
    """Vertebral column: bodies, discs between them, and the faint rows of processes."""
    body, x, y = thorax.body, thorax.x, thorax.y
    half = 0.062 + 0.022 * smooth((y + 0.9) / 1.6)
    cover = edge(half - np.abs(x), 0.022)
    phase = (y + 0.9) / (0.92 * body.spacing)
    disc = np.exp(-0.5 * ((phase - np.round(phase)) / 0.13) ** 2)
    dots = np.exp(-0.5 * (x / 0.018) ** 2) * np.exp(
        -0.5 * ((phase - 0.5 - np.round(phase - 0.5)) / 0.2) ** 2
    )
    field = cover * (0.065 - 0.035 * disc) + 0.035 * dots
    return single(field * body.bone)


def girdle(thorax: Thorax, pose: Pose, view: str) -> Field:
    """Clavicles, shoulder blades and upper arm bones; in AP the blades cross the lungs."""
    body, canvas = thorax.body, Canvas(pose, thorax.size)
    lift = -0.05 if view == "AP" else 0.0
    inner = 0.62 if view == "AP" else 0.90
    top = body.apex
    blade = np.array([[1.06, 0.16], [inner + 0.06, 0.10], [inner, 0.50], [inner + 0.10, 0.72]])
    for side in (RIGHT, LEFT):
        points = np.stack([side * blade[:, 0], top + blade[:, 1]], axis=1)
        canvas.polygon(np.vstack([points, [[side * 1.0, top + 0.42]]]), 0.045)
        canvas.line(points[1:], 0.016, 0.10)
        arm = curve((side * 0.97, top + 0.26), (side * 1.06, top + 1.3))
        canvas.line(arm, 0.085, 0.13)
        head = np.linspace(0.0, 2.0 * np.pi, 24)
        shoulder = np.stack([0.93 + 0.085 * np.cos(head), 0.24 + 0.085 * np.sin(head)], axis=1)
        canvas.polygon(shoulder * [side, 1.0] + [0.0, top], 0.12)
        t = np.linspace(0.0, 1.0, 16)
        rise = 0.27 - 0.20 * t + 0.045 * np.sin(2.0 * np.pi * t) + lift * (1.0 - 0.3 * t)
        clavicle = np.stack([side * (0.075 + 0.76 * t), top + rise], axis=1)
        canvas.line(clavicle, 0.062, 0.135)
        canvas.line(clavicle, 0.030, 0.095)
    return single(canvas.field() * body.bone)


def airway(thorax: Thorax, pose: Pose) -> Field:
    """Air in windpipe and main bronchi (positive: how much attenuation it takes away)."""
    canvas, shift = Canvas(pose, thorax.size), thorax.body.shift
    carina = HILUM - 0.20
    throat = curve((0.0, -1.2), (0.6 * shift - 0.012, -0.6), (shift - 0.02, carina))
    canvas.line(throat, 0.085, 0.17)
    canvas.line(curve((shift - 0.02, carina), (shift - 0.15, HILUM - 0.02)), 0.05, 0.11)
    canvas.line(curve((shift - 0.02, carina), (shift + 0.17, HILUM - 0.05)), 0.045, 0.11)
    return canvas.field()


def vessels(thorax: Thorax, pose: Pose, rng: np.random.Generator) -> Field:
    """Vascular markings: trees that fan out from each hilum and thin out to the periphery."""
    canvas = Canvas(pose, thorax.size)
    for lung in (thorax.right, thorax.left):
        for angle in np.linspace(-1.35, 1.40, 7) + 0.16 * rng.standard_normal(7):
            high = HILUM - 0.03 * (lung.side == LEFT) + 0.09 * np.sin(angle)
            root = np.array([lung.side * rng.uniform(0.15, 0.20), high])
            _branch(canvas, rng, lung, root, float(angle), rng.uniform(0.38, 0.55), 0.026, 0)
    return blur(canvas.field(), 0.0035 * thorax.size)


def _branch(
    canvas: Canvas,
    rng: np.random.Generator,
    lung: Lung,
    start: Points,
    angle: float,
    length: float,
    width: float,
    order: int,
) -> None:
    """One vessel and its side branches; angle in radians from straight sideways, down positive."""
    steps = 5 - order
    turns = angle + np.cumsum(0.14 * rng.standard_normal(steps)) * (1.0 + 0.3 * order)
    stride = length * rng.uniform(0.75, 1.15) / steps
    points = np.empty((steps + 1, 2))
    points[0] = start
    points[1:, 0] = start[0] + lung.side * stride * np.cos(turns).cumsum()
    points[1:, 1] = start[1] + stride * np.sin(turns).cumsum()
    if order < 2:
        forks = rng.random(steps) < 0.65
        bends = rng.uniform(0.35, 0.70, steps) * np.where(rng.random(steps) < 0.5, -1.0, 1.0)
        for at in np.flatnonzero(forks[1:]) + 1:
            fork = float(turns[at - 1] + bends[at])
            _branch(canvas, rng, lung, points[at], fork, 0.55 * length, 0.55 * width, order + 1)
    canvas.tapered(points, width, 0.15 - 0.04 * order, 0.45)


def hila(thorax: Thorax) -> Field:
    """The lung roots: soft density beside the heart, the left one a little higher."""
    field = np.zeros_like(thorax.x)
    for lung in (thorax.right, thorax.left):
        x = lung.side * 0.185 + thorax.body.shift
        y = HILUM - 0.03 * (lung.side == LEFT)
        field += 0.11 * cloud(thorax.x, thorax.y, (x, y), (0.055, 0.10))
    return field


def stomach(thorax: Thorax, rng: np.random.Generator) -> Field:
    """Gas under the left hemidiaphragm with its flat fluid level (positive: taken away)."""
    body, x, y = thorax.body, thorax.x, thorax.y
    wide = rng.uniform(0.10, 0.19)
    centre = (0.34 + rng.uniform(-0.05, 0.06), body.dome_left + 0.05 + 0.55 * wide)
    gas = ball(x, y, centre, (wide, 0.62 * wide))
    level = edge(centre[1] + 0.25 * wide - y, 0.012)
    return single(rng.uniform(0.10, 0.30) * gas * level * thorax.below)
