"""One chest with its signs of disease, before it is exposed: layers that add up to attenuation."""

from dataclasses import dataclass

import numpy as np

from simulations.phantom import tissue
from simulations.phantom.anatomy import LEFT, RIGHT, Lung, Thorax
from simulations.phantom.fields import Field, Pose, single

Box = tuple[float, float, float, float]  # x, y, w, h in 1024-px coordinates

AIR = 0.47  # attenuation that a full depth of air-filled lung takes away from the chest
RETROCARDIAC = 0.70  # share of the lung's depth that the heart takes up where it covers the lung


@dataclass(frozen=True)
class Lesion:
    """One finding in one patient: where (side, and `rng` for the rest) and how severe (0..1).

    The generator is seeded by patient and finding, so a follow-up shows the same place again.
    """

    side: int
    severity: float
    rng: np.random.Generator


class Scene:
    """The layers that findings paint on; fields are (size, size) float32.

    fill: share 0..1 of the lung's air that fluid or cells replace; extra: attenuation to add
    (negative: to take away); markings: share of the vascular markings that remain visible.
    """

    def __init__(self, thorax: Thorax, pose: Pose, rng: np.random.Generator, view: str) -> None:
        self.thorax, self.pose, self.view, self.size = thorax, pose, view, thorax.size
        self.x, self.y = thorax.x, thorax.y
        self.depth = thorax.right.depth + thorax.left.depth
        self.fill = np.zeros_like(self.x)
        self.extra = np.zeros_like(self.x)
        self.markings = np.ones_like(self.x)
        self.shown: dict[str, Field] = {}
        body = thorax.body
        self._wall = tissue.wall(thorax, float(rng.uniform(0.2, 1.0)))
        self._bones = tissue.ribs(thorax) + tissue.spine(thorax)
        self._bones += tissue.girdle(thorax, pose, view)
        self._air = tissue.airway(thorax, pose) + tissue.stomach(thorax, rng)
        self._vessels = tissue.vessels(thorax, pose, rng) * body.vessels + tissue.hila(thorax)

    def lung(self, side: int) -> Lung:
        """The lung of RIGHT or LEFT."""
        return self.thorax.lung(side)

    def other(self, side: int) -> int:
        """The opposite side."""
        return LEFT if side == RIGHT else RIGHT

    def opacify(self, name: str, field: Field) -> None:
        """Replace air by `field` (0..1); signs over one another fill what air is left."""
        share = np.clip(field, 0.0, 1.0)
        self.fill = single(1.0 - (1.0 - self.fill) * (1.0 - share))
        self.show(name, share * (self.depth > 0.1))

    def show(self, name: str, field: Field) -> None:
        """Remember where a finding is seen, for its bounding box."""
        self.shown[name] = np.maximum(self.shown.get(name, np.zeros_like(field)), field)

    def attenuation(self) -> Field:
        """All layers together; 0 is air, about 1 the densest part of an average chest."""
        thorax = self.thorax
        air = self.depth * (1.0 - RETROCARDIAC * thorax.heart) * (1.0 - self.fill)
        field = self._wall * (1.0 + 0.30 * thorax.below)
        field = field + thorax.heart * (0.05 + 0.13 * thorax.thick) * (1.0 - 0.5 * thorax.below)
        field = field + self._bones * (1.0 - 0.5 * thorax.below)
        field = field - AIR * thorax.body.air * air - self._air
        field = field + 1.1 * self._vessels * self.markings * air + self.extra
        return single(np.maximum(field, 0.0))

    def boxes(self, name: str) -> list[Box]:
        """Bounding boxes of a painted finding in 1024-px coordinates; none if out of sight.

        One box a side, except for what lies in the middle. A box encloses what reaches half of the
        finding's strongest opacity.
        """
        field = self.shown.get(name)
        if field is None or float(field.max()) < 0.05:
            return []
        strong = field > 0.5 * float(field.max())
        central = name in ("Cardiomegaly", "Hernia")
        parts = [strong] if central else [strong & (self.x < 0.0), strong & (self.x >= 0.0)]
        scale = 1024.0 / self.size
        boxes = []
        for part in parts:
            if part.any():
                rows, columns = np.nonzero(part)
                x, y = float(columns.min()), float(rows.min())
                w, h = float(columns.max()) + 1.0 - x, float(rows.max()) + 1.0 - y
                boxes.append((x * scale, y * scale, w * scale, h * scale))
        return boxes
