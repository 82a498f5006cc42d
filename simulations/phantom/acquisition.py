"""From attenuation to a stored picture: each hospital's X-ray unit, and the ward's lines.

The signal behind the patient falls off exponentially with attenuation (Beer-Lambert law), so the
quantum noise of the displayed logarithm grows with it; then comes the hospital's tone curve.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulations.phantom.anatomy import HILUM, LEFT, RIGHT, Body
from simulations.phantom.fields import Canvas, Field, Pose, blur, curve, noise, single


@dataclass(frozen=True)
class Unit:
    """One hospital's acquisition.

    gamma, contrast, brightness: tone curve; softness: blur in thousandths of the image side;
    grain: noise of the displayed value; margin: usual collimated border, share of the side;
    marker: side of the body that carries the lead letter; marker_at: its height, -1..1.
    """

    gamma: float
    contrast: float
    brightness: float
    softness: float
    grain: float
    margin: float
    marker: int
    marker_at: float


def unit(seed: int, hospital: int) -> Unit:
    """The X-ray unit of hospital 0, 1, ...; the same for a seed on every call."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, hospital)))
    turn = (hospital * 0.618034) % 1.0  # spread evenly, so that few hospitals already differ
    return Unit(
        gamma=float(0.85 + 0.36 * turn + rng.uniform(-0.03, 0.03)),
        contrast=float(rng.uniform(0.82, 1.06)),
        brightness=float(rng.uniform(-0.04, 0.05)),
        softness=float(rng.uniform(1.0, 5.0)),
        grain=float(rng.uniform(0.004, 0.013)),
        margin=float(rng.choice([0.0, 0.0, 0.02, 0.04])),
        marker=LEFT if hospital % 2 == 0 else RIGHT,
        marker_at=float(rng.uniform(-0.92, -0.70)),
    )


def expose(
    attenuation: Field, profile: Unit, view: str, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """The picture (size, size) uint8 of an attenuation field of the same shape; white is dense."""
    size = attenuation.shape[0]
    portable = view == "AP"
    # Everything that does not depend on `size` is drawn first, so that it is the same at any size.
    contrast = profile.contrast * (0.90 if portable else 1.0) * rng.uniform(0.95, 1.05)
    offset = profile.brightness + rng.uniform(-0.02, 0.02)
    cuts = profile.margin * rng.uniform(0.3, 1.4, 4) * (rng.random(4) < 0.7)
    shading = 0.012 * noise(rng, 3, size)
    sharp = blur(attenuation, profile.softness * size / 1000.0)
    # A portable film has no grid: scattered light veils it.
    veil = (0.16 if portable else 0.07) * blur(sharp, 0.05 * size)
    value = sharp * (1.02 if portable else 1.12) + veil + shading * (sharp > 0.02)
    value = value + _grain(sharp, profile.grain * (1.4 if portable else 1.0), rng)
    value = 0.5 + contrast * (value - 0.5) + offset
    value = np.power(np.clip(value, 0.0, 1.2), profile.gamma)
    tone = value / (1.0 + np.power(value, 6.0)) ** (1.0 / 6.0)  # the film's soft shoulder
    picture: npt.NDArray[np.uint8] = np.clip(255.0 * tone + 0.5, 0.0, 255.0).astype(np.uint8)
    for quarter, cut in enumerate(cuts):
        turned = np.rot90(picture, quarter)  # a view: the shutters write into the picture
        turned[: round(float(cut) * size)] = 5
    return picture


def _grain(attenuation: Field, strength: float, rng: np.random.Generator) -> Field:
    """Quantum noise of the logarithm: its deviation goes with one over the root of the dose."""
    size = attenuation.shape[0]
    fine = 0.7 * rng.standard_normal(attenuation.shape, dtype=np.float32)
    coarse = 0.5 * noise(rng, max(8, size // 3), size)
    dose = np.exp(-1.6 * attenuation)
    return single(strength * (fine + coarse) / np.sqrt(dose))


def marker(profile: Unit, size: int, rng: np.random.Generator) -> Field:
    """The burned-in lead letter "R" or "L" beside the shoulder, (size, size) float32 0 or 1."""
    canvas = Canvas(Pose(angle=float(rng.uniform(-0.15, 0.15))), size)
    x = profile.marker * (0.86 + rng.uniform(-0.04, 0.03))
    y = profile.marker_at + rng.uniform(-0.04, 0.04)
    wide, high = 0.05, 0.085
    if profile.marker == LEFT:
        strokes = [curve((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))]
    else:
        bowl = curve((-0.5, 0.5), (-0.5, -0.5), (0.3, -0.5), (0.5, -0.25), (0.3, 0.0), (-0.5, 0.0))
        strokes = [bowl, curve((0.0, 0.0), (0.5, 0.5))]
    for stroke in strokes:
        canvas.line(stroke * [wide, high] + [x, y], 0.022, 1.0)
    return canvas.field()


def devices(body: Body, pose: Pose, size: int, rng: np.random.Generator, drain: int) -> Field:
    """Electrodes and lines of a bedside film; `drain` is the side of a chest tube, 0 for none."""
    canvas = Canvas(pose, size)
    if rng.random() < 0.7:
        for side in (RIGHT, LEFT):
            x, y = side * rng.uniform(0.45, 0.62), body.apex + rng.uniform(0.20, 0.40)
            ring = np.linspace(0.0, 2.0 * np.pi, 20)
            disc = np.stack([x + 0.028 * np.cos(ring), y + 0.028 * np.sin(ring)], axis=1)
            canvas.polygon(disc, 0.22)
            t = np.linspace(0.0, 1.0, 16)
            sag = 0.12 * np.sin(np.pi * t) * side
            end = (side * rng.uniform(0.75, 1.1), 1.1)
            wire = np.stack([x + t * (end[0] - x) + sag, y + t * (end[1] - y)], axis=1)
            canvas.line(wire, 0.012, 0.14)
    if rng.random() < 0.4:  # central venous line from the right side of the neck
        tip = (-0.07 + body.shift, HILUM - 0.02)
        canvas.line(curve((-0.20, -1.1), (-0.15, -0.7), (-0.09, -0.4), tip), 0.013, 0.16)
    if rng.random() < 0.3:  # tracheal tube
        canvas.line(curve((0.01, -1.2), (0.0, -0.7), (body.shift, HILUM - 0.32)), 0.016, 0.15)
    if drain:
        wall, top = drain * (body.half_width + 0.1), body.apex + 0.35
        tube = curve((wall, 0.28), (drain * 0.62, 0.10), (drain * 0.55, -0.2), (drain * 0.4, top))
        canvas.line(tube, 0.024, 0.17)
    return canvas.field()
