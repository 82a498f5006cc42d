"""One patient's chest: a few measures, and the fields of lungs, heart and mediastinum from them.

All lengths are body units (see `fields`): the inner chest is about 1.5 units wide, so one unit
is roughly 20 cm in an adult.
"""

from dataclasses import dataclass, replace

import numpy as np

from simulations.phantom.fields import Field, edge, single, smooth

RIGHT, LEFT = -1, 1  # the patient's right lung is on the left of the image
HILUM = -0.06  # height of the lung roots
SPARED = 0.83  # share of the half width that the heart may reach
STRIP = 0.10  # width of the lung that always stays free beside the heart, body units


@dataclass(frozen=True)
class Body:
    """Measures of one chest on one image.

    half_width: inner half width of the rib cage; apex: top of the lungs; dome_right, dome_left:
    tops of the hemidiaphragms; angle: height of the costophrenic angles; heart_right, heart_left:
    how far the heart reaches from the midline; knob: bulge of the aortic arch; shift: mediastinal
    shift; air: aeration; vessels: strength of the vascular markings; breast, fat: soft tissue;
    bone: density of bone; spacing: distance between ribs.
    """

    half_width: float
    apex: float
    dome_right: float
    dome_left: float
    angle: float
    heart_right: float
    heart_left: float
    knob: float
    breast: float
    fat: float
    bone: float
    spacing: float
    shift: float = 0.0
    air: float = 1.0
    vessels: float = 1.0

    @property
    def cardiothoracic_ratio(self) -> float:
        """Widest heart over widest inner chest; above 0.5 is an enlarged heart (PA film)."""
        return (self.heart_right + self.heart_left) / (2.0 * self.half_width)

    def with_heart(self, ratio: float) -> "Body":
        """The same chest with the given cardiothoracic ratio; most of a change goes left."""
        width = 2.0 * self.half_width * ratio
        right = 0.17 + 0.28 * max(width - 0.50, -0.15)
        left = min(width - right, SPARED * self.half_width)
        return replace(self, heart_right=width - left, heart_left=left)


def sample_body(rng: np.random.Generator, age: float, sex: str) -> Body:
    """A normal chest for a patient of this age (years) and sex ("M" or "F")."""
    child = float(np.clip((14.0 - age) / 12.0, 0.0, 1.0))
    old = float(np.clip((age - 50.0) / 40.0, 0.0, 1.0))
    half_width = 0.73 + 0.045 * rng.standard_normal() - 0.02 * (sex == "F") - 0.05 * child
    half_width = float(np.clip(half_width, 0.62, 0.82))
    dome = 0.36 + 0.035 * rng.standard_normal() - 0.10 * child
    drop = 0.20 + 0.02 * rng.standard_normal() - 0.06 * child
    grown = sex == "F" and age >= 15
    body = Body(
        half_width=half_width,
        apex=float(-0.76 + 0.025 * rng.standard_normal() + 0.10 * child),
        dome_right=float(dome),
        dome_left=float(dome + 0.05 + 0.015 * rng.standard_normal()),
        angle=float(dome + max(drop, 0.08)),
        heart_right=0.0,
        heart_left=0.0,
        knob=float(0.045 + 0.05 * old + 0.012 * rng.standard_normal() - 0.02 * child),
        breast=float(rng.uniform(0.25, 1.0)) if grown else 0.0,
        fat=float(rng.beta(2.0, 3.0)) * (1.0 - 0.6 * child),
        bone=float(1.05 - 0.30 * old - 0.25 * child + 0.08 * rng.standard_normal()),
        spacing=float(0.128 + 0.006 * rng.standard_normal()),
    )
    ratio = 0.435 + 0.022 * rng.standard_normal() + 0.02 * old + 0.04 * child
    return body.with_heart(float(np.clip(ratio, 0.36, 0.49)))


def with_view(body: Body, view: str, inspiration: float) -> Body:
    """The chest as this view and breath show it.

    AP: the heart lies further from the detector and is magnified, and the patient breathes in
    less. inspiration: diaphragm movement in body units, positive is a deeper breath.
    """
    down = inspiration - (0.075 if view == "AP" else 0.0)
    wider = 1.0 - 0.35 * down  # a shallow breath spreads the heart
    ratio = body.cardiothoracic_ratio * wider * (1.06 if view == "AP" else 1.0)
    moved = replace(
        body,
        dome_right=body.dome_right + down,
        dome_left=body.dome_left + down,
        angle=body.angle + 0.8 * down,
        spacing=body.spacing * (1.0 + 0.25 * down),
    )
    return moved.with_heart(min(ratio, 0.52))


class Lung:
    """One lung on the pixel grid.

    out: distance from the midline towards the side; height: 0 at the apex, 1 at the angle;
    lateral, medial: its borders; dome: height of the diaphragm below each pixel; rim: distance
    from the chest wall inwards (lateral and apical); depth: aerated thickness 0..1.
    """

    def __init__(self, body: Body, side: int, x: Field, y: Field, soft: float) -> None:
        self.side = side
        self.out = single(side * (x - 0.4 * body.shift))
        self.height = single((y - body.apex) / (body.angle - body.apex))
        top = 0.36 * body.half_width
        rise = 1.0 - np.clip(self.height / 0.68, 0.0, 1.0)
        flank = np.power(1.0 - np.power(rise, 2.3), 0.56)
        base = 0.03 * np.clip((self.height - 0.75) / 0.25, 0.0, 1.5) ** 2
        self.lateral = single(top + (body.half_width - top) * flank - base)
        near = np.clip(1.0 - self.height / 0.22, 0.0, 1.0) ** 2
        self.medial = single(0.075 + (top - 0.075) * near)
        self.dome = _dome(body, side, self.out)
        # Beside the apex the wall is nearly horizontal: distance to it is measured downwards.
        self.rim = single(np.minimum(self.lateral - self.out, (y - body.apex) + 0.02))
        inside = np.minimum(self.lateral - self.out, self.out - self.medial)
        self.inside = edge(inside, soft) * edge(self.dome - y, soft) * edge(self.height, 0.01)
        thin = 1.0 - 0.35 * np.exp(-np.maximum(self.rim, 0.0) / 0.07)
        self.depth = single(self.inside * thin)

    def at(self, across: float, down: float, body: Body) -> tuple[float, float]:
        """Body point in the lung: across 0 (medial) .. 1 (lateral), down 0 (apex) .. 1 (base)."""
        dome = body.dome_right if self.side == RIGHT else body.dome_left
        y = body.apex + down * (dome - body.apex)
        rise = 1.0 - min((y - body.apex) / (body.angle - body.apex) / 0.68, 1.0)
        top = 0.36 * body.half_width
        lateral = top + (body.half_width - top) * (1.0 - rise**2.3) ** 0.56
        return self.side * (0.14 + across * (lateral - 0.14)) + 0.4 * body.shift, y


def _dome(body: Body, side: int, out: Field) -> Field:
    """Height of one hemidiaphragm over the distance from the midline."""
    top = body.dome_right if side == RIGHT else body.dome_left
    peak = 0.46 * body.half_width
    beyond = np.clip((out - peak) / (body.half_width - peak), 0.0, 1.3)
    within = np.clip((peak - out) / peak, 0.0, 1.5)
    return single(top + (body.angle - top) * beyond**2.6 + 0.07 * within**2)


class Thorax:
    """Lungs, heart and mediastinum of a body on the pixel grid; see the attributes' comments."""

    def __init__(self, body: Body, x: Field, y: Field, size: int) -> None:
        self.body, self.x, self.y, self.size = body, x, y, size
        soft = max(0.012, 1.5 / size)
        self.right = Lung(body, RIGHT, x, y, soft)
        self.left = Lung(body, LEFT, x, y, soft)
        middle = x - body.shift
        right, left = _borders(body, y)
        # A strip of lung stays free beside the heart, so that each lung is one piece.
        self.border_right = np.minimum(right, self.right.lateral + 0.6 * body.shift - STRIP)
        self.border_left = np.minimum(left, self.left.lateral - 0.6 * body.shift - STRIP)
        inside = np.minimum(self.border_left - middle, self.border_right + middle)
        self.heart = edge(inside, soft)  # cover of the central shadow, 0..1
        width = 0.5 * (self.border_left + self.border_right)
        off = (middle - 0.5 * (self.border_left - self.border_right)) / width
        self.thick = single(np.sqrt(np.clip(1.0 - off**2, 0.0, 1.0)))
        self.below = 1.0 - edge(np.where(x < 0, self.right.dome, self.left.dome) - y, soft)
        self.mask = self._mask(middle)

    def lung(self, side: int) -> Lung:
        """The lung of RIGHT or LEFT."""
        return self.right if side == RIGHT else self.left

    def _mask(self, middle: Field) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """The lung fields as an annotator outlines them: what the heart does not cover."""
        found = np.zeros(middle.shape, dtype=np.bool_)
        for lung, border in ((self.right, self.border_right), (self.left, self.border_left)):
            free = np.minimum(lung.out - lung.medial, lung.side * middle - border)
            room = np.minimum(lung.lateral - lung.out, lung.dome - self.y)
            found |= (free > 0.0) & (room > 0.0) & (lung.height > 0.0)
        # The tip of an angle may hit a single pixel across a corner: no annotator would.
        wide = np.pad(found, 1)
        beside = wide[2:, 1:-1] | wide[:-2, 1:-1] | wide[1:-1, 2:] | wide[1:-1, :-2]
        return found & beside


def _borders(body: Body, y: Field) -> tuple[Field, Field]:
    """Right and left border of the central shadow, as distance from its midline, over height."""
    top = HILUM - 0.02
    long = max(body.dome_left + 0.02 - top, 0.25)
    t = (y - top) / long
    vessels = 0.105 + 0.03 * smooth((y + 0.75) / 0.6)  # great veins on the right
    atrium = _bulge((t + 0.10) / 1.35, 0.8)
    right = vessels + (body.heart_right - vessels) * atrium
    arch = np.exp(-0.5 * ((y + 0.37) / 0.085) ** 2) * body.knob
    trunk = 0.035 * np.exp(-0.5 * ((y - HILUM + 0.09) / 0.07) ** 2)
    ventricle = _bulge((t + 0.06) / 1.70, 1.15)
    left = 0.105 + arch + trunk + (body.heart_left - 0.105) * ventricle
    return single(right), single(left)


def _bulge(t: Field, power: float) -> Field:
    """Half a sine wave over t = 0..1, zero outside, to a power."""
    half = np.sin(np.pi * np.clip(t, 0.0, 1.0))
    return single(np.power(np.maximum(half, 0.0), power))
