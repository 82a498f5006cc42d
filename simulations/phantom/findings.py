"""The 14 findings: how each one changes the chest and what it paints where a radiologist looks.

`SIGNS` holds for every finding a function that reshapes the body (heart, diaphragm, aeration)
and one that paints on the scene. Findings are applied in the order of `SIGNS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from simulations.phantom import opacities
from simulations.phantom.anatomy import LEFT, RIGHT, Body
from simulations.phantom.fields import Canvas, ball, curve, edge, noise, single, smooth
from simulations.phantom.scene import Lesion, Scene


def _same(body: Body, lesion: Lesion) -> Body:
    """A finding that leaves the shape of the chest as it is."""
    del lesion
    return body


def _collapse(body: Body, lesion: Lesion) -> Body:
    """Volume loss: the diaphragm rises and the mediastinum moves to the collapsed side."""
    lift = 0.06 + 0.09 * lesion.severity
    shift = body.shift + lesion.side * (0.015 + 0.025 * lesion.severity)
    if lesion.side == RIGHT:
        return replace(body, dome_right=body.dome_right - lift, shift=shift)
    return replace(body, dome_left=body.dome_left - lift, shift=shift)


def _enlarge(body: Body, lesion: Lesion) -> Body:
    """A heart wider than half of the chest."""
    return body.with_heart(0.555 + 0.105 * lesion.severity)


def _inflate(body: Body, lesion: Lesion) -> Body:
    """Too much air: low flat diaphragms, narrow heart, dark lungs with few vessels."""
    low = 0.09 + 0.06 * lesion.severity
    angle = body.angle + 0.30 * low
    dome = min(body.dome_right + low, angle - 0.05)
    narrow = body.with_heart(body.cardiothoracic_ratio * (0.84 - 0.06 * lesion.severity))
    return replace(
        narrow,
        half_width=min(body.half_width * 1.03, 0.84),
        apex=body.apex - 0.02,
        dome_right=dome,
        dome_left=min(dome + 0.02, angle - 0.05),
        angle=angle,
        spacing=body.spacing * 1.10,
        air=body.air * (1.15 + 0.10 * lesion.severity),
        vessels=body.vessels * (0.60 - 0.25 * lesion.severity),
    )


def _shrink(body: Body, lesion: Lesion) -> Body:
    """Stiff, slightly smaller lungs."""
    lift = 0.03 + 0.04 * lesion.severity
    return replace(body, dome_right=body.dome_right - lift, dome_left=body.dome_left - lift)


def cardiomegaly(scene: Scene, lesion: Lesion) -> None:
    """Only the outline: the heart itself was enlarged in the body."""
    del lesion
    between = (scene.y > -0.02) & (scene.y < scene.thorax.body.dome_left + 0.1)
    scene.show("Cardiomegaly", single(scene.thorax.heart * between))


def effusion(scene: Scene, lesion: Lesion) -> None:
    """Fluid at the base: the angle is blunt, the upper border climbs to the side (meniscus)."""
    body, rng = scene.thorax.body, lesion.rng
    both = rng.random() < 0.3
    second = rng.uniform(0.4, 0.9)
    for side, share in ((lesion.side, 1.0), (scene.other(lesion.side), second * both)):
        if share == 0.0:
            continue
        lung = scene.lung(side)
        high = (0.10 + 0.42 * lesion.severity**1.5) * share
        level = body.angle - 0.07 - high
        climb = 0.20 * np.clip(lung.out / body.half_width, 0.0, 1.1) ** 3
        fluid = smooth((scene.y - level + climb - 0.05) / 0.09)
        space = np.maximum(lung.inside, scene.thorax.below * edge(lung.lateral - lung.out, 0.015))
        space = space * edge(lung.out - 0.10, 0.03) * edge(body.angle + 0.02 - scene.y, 0.06)
        scene.opacify("Effusion", 0.97 * fluid * lung.inside)
        scene.extra = single(scene.extra + 0.07 * fluid * space)


def pneumothorax(scene: Scene, lesion: Lesion) -> None:
    """Air between chest wall and lung: a black rim without vessels and a thin pleural line."""
    lung, rng = scene.lung(lesion.side), lesion.rng
    wide = 0.09 + 0.17 * lesion.severity
    gap = wide * (1.35 - 0.75 * np.clip(lung.height, 0.0, 1.0)) + 0.006 * noise(rng, 5, scene.size)
    space = edge(gap - lung.rim, 0.008) * lung.inside
    line = np.exp(-0.5 * ((lung.rim - gap) / max(0.009, 0.9 / scene.size)) ** 2) * lung.inside
    rest = lung.inside * (1.0 - space)
    scene.markings = single(scene.markings * (1.0 - space))
    scene.extra = single(scene.extra - 0.10 * space + 0.13 * line)
    scene.fill = single(np.maximum(scene.fill, (0.10 + 0.15 * lesion.severity) * rest))
    scene.fill = single(scene.fill * (1.0 - space))
    scene.show("Pneumothorax", space)


def emphysema(scene: Scene, lesion: Lesion) -> None:
    """Bullae: round black areas with a hair-thin wall, in the upper zones."""
    rng = lesion.rng
    for side in (RIGHT, LEFT):
        lung = scene.lung(side)
        for _ in range(1 + round(1.5 * lesion.severity)):
            across, down = rng.uniform(0.35, 0.75), rng.uniform(0.15, 0.45)
            centre = lung.at(across, down, scene.thorax.body)
            radius = rng.uniform(0.07, 0.12)
            far = np.hypot(scene.x - centre[0], scene.y - centre[1]) / radius
            hole = smooth((1.1 - far) / 0.2) * lung.inside
            skin = np.exp(-0.5 * ((far - 1.0) / 0.09) ** 2) * lung.inside
            scene.markings = single(scene.markings * (1.0 - 0.8 * hole))
            scene.extra = single(scene.extra - 0.035 * hole + 0.03 * skin)


def pleural_thickening(scene: Scene, lesion: Lesion) -> None:
    """A dense band along the chest wall or over the apex, with a sharp inner border."""
    rng = lesion.rng
    apical = rng.random() < 0.45
    sides = (RIGHT, LEFT) if rng.random() < 0.3 else (lesion.side,)
    for side in sides:
        lung = scene.lung(side)
        thick = 0.055 + 0.055 * lesion.severity
        if apical:
            along = smooth((0.30 - lung.height) / 0.08)
        else:
            along = smooth((lung.height - 0.28) / 0.08) * smooth((0.92 - lung.height) / 0.08)
        uneven = thick * (1.0 + 0.18 * noise(rng, 8, scene.size)) * along
        band = edge(uneven - lung.rim, 0.010) * lung.inside * along
        scene.opacify("Pleural_Thickening", 0.85 * band)
        scene.extra = single(scene.extra + 0.07 * band)


def hernia(scene: Scene, lesion: Lesion) -> None:
    """The stomach behind the heart: a round shadow with air above a flat fluid level."""
    body, rng = scene.thorax.body, lesion.rng
    radius = 0.17 + 0.06 * lesion.severity
    centre = (rng.uniform(0.08, 0.16), body.dome_left - 0.70 * radius)
    cover = edge(1.0 - np.hypot(scene.x - centre[0], scene.y - centre[1]) / radius, 0.08)
    level = centre[1] + rng.uniform(-0.1, 0.15) * radius
    air = ball(scene.x, scene.y, centre, (0.88 * radius, 0.88 * radius))
    air = air * edge(level - scene.y, 0.010)
    canvas = Canvas(scene.pose, scene.size)
    half = 0.80 * radius
    canvas.line(curve((centre[0] - half, level), (centre[0] + half, level)), 0.014, 0.06)
    extra = 0.13 * cover - (0.44 + 0.08 * lesion.severity) * air + canvas.field()
    scene.extra = single(scene.extra + extra)
    scene.show("Hernia", cover)


@dataclass(frozen=True)
class Sign:
    """How one finding reshapes the body and paints on the scene."""

    reshape: Callable[[Body, Lesion], Body]
    paint: Callable[[Scene, Lesion], None]


# Shapes first and the pleura last: what lies in the pleural space covers or displaces the lung.
# Cardiomegaly comes after Emphysema, which narrows the heart.
SIGNS: dict[str, Sign] = {
    "Emphysema": Sign(_inflate, emphysema),
    "Fibrosis": Sign(_shrink, opacities.fibrosis),
    "Atelectasis": Sign(_collapse, opacities.atelectasis),
    "Cardiomegaly": Sign(_enlarge, cardiomegaly),
    "Hernia": Sign(_same, hernia),
    "Infiltration": Sign(_same, opacities.infiltration),
    "Edema": Sign(_same, opacities.edema),
    "Pneumonia": Sign(_same, opacities.pneumonia),
    "Consolidation": Sign(_same, opacities.consolidation),
    "Nodule": Sign(_same, opacities.nodule),
    "Mass": Sign(_same, opacities.mass),
    "Pleural_Thickening": Sign(_same, pleural_thickening),
    "Effusion": Sign(_same, effusion),
    "Pneumothorax": Sign(_same, pneumothorax),
}
