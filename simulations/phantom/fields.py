"""Small tools to draw with: a posed pixel grid, soft edges, smooth noise, lines, blur.

Coordinates: the body frame has x from -1 (image left, the patient's right) to +1 and y from -1
(top) to +1 (bottom) when the pose is neutral. Every field is a (size, size) float32 array.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Field = npt.NDArray[np.float32]
Real = npt.NDArray[np.floating[Any]]
Points = npt.NDArray[np.float64]

CANVAS = 512  # lines are drawn at least this large and averaged down: that is their antialiasing


@dataclass(frozen=True)
class Pose:
    """How the patient stands in front of the detector.

    zoom: image half-widths per body unit; angle: tilt in radians; dx, dy: shift in half-widths;
    bend: sideways curve of the spine (scoliosis) in body units.
    """

    zoom: float = 1.0
    angle: float = 0.0
    dx: float = 0.0
    dy: float = 0.0
    bend: float = 0.0

    def grid(self, size: int) -> tuple[Field, Field]:
        """Body coordinates (x, y) of every pixel centre, each (size, size) float32."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
        right = (axis[None, :] - self.dx) / self.zoom
        down = (axis[:, None] - self.dy) / self.zoom
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        y = single(down * cos - right * sin)
        x = single(right * cos + down * sin - self._curve(y))
        return x, y

    def pixels(self, points: Points, size: int) -> Points:
        """Pixel positions (n, 2) of body points (n, 2): the inverse of `grid`."""
        y = points[:, 1]
        x = points[:, 0] + self._curve(y)
        half = size / 2.0
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        right = (x * cos - y * sin) * self.zoom + self.dx
        down = (y * cos + x * sin) * self.zoom + self.dy
        out = np.empty_like(points)
        out[:, 0], out[:, 1] = (right + 1.0) * half - 0.5, (down + 1.0) * half - 0.5
        return out

    def _curve(self, y: Real) -> Real:
        sideways: Real = self.bend * np.sin(np.pi * (y + 0.7) / 1.4)
        return sideways


class Canvas:
    """Antialiased lines and polygons, in body units. A later stroke covers an earlier one."""

    def __init__(self, pose: Pose, size: int) -> None:
        self.pose, self.size = pose, size
        self.scale = max(1, CANVAS // size)
        full = size * self.scale
        self._image = Image.new("F", (full, full), 0.0)
        self._draw = ImageDraw.Draw(self._image)

    def line(self, points: Points, width: float, value: float) -> None:
        """A polyline through body points (n, 2), `width` body units wide."""
        full = self.size * self.scale
        pixels = [(x, y) for x, y in self.pose.pixels(points, full).tolist()]
        thick = max(1, round(width * self.pose.zoom * full / 2.0))
        self._draw.line(pixels, fill=value, width=thick, joint="curve" if thick > 2 else None)

    def tapered(self, points: Points, width: float, value: float, end: float) -> None:
        """A polyline whose width and value shrink evenly to the share `end` at its last point."""
        full = self.size * self.scale
        pixels = self.pose.pixels(points, full).tolist()
        last = len(pixels) - 1
        for k in range(last):
            share = 1.0 - (1.0 - end) * k / last
            thick = max(1, round(width * share * self.pose.zoom * full / 2.0))
            self._draw.line((*pixels[k], *pixels[k + 1]), fill=value * share, width=thick)

    def polygon(self, points: Points, value: float) -> None:
        """A filled polygon with body points (n, 2) as corners."""
        full = self.size * self.scale
        pixels = [(x, y) for x, y in self.pose.pixels(points, full).tolist()]
        self._draw.polygon(pixels, fill=value)

    def field(self) -> Field:
        """What was drawn, averaged down to (size, size) float32."""
        small = self._image.reduce(self.scale) if self.scale > 1 else self._image
        return np.asarray(small, dtype=np.float32)


def curve(*points: tuple[float, float]) -> Points:
    """Points as an (n, 2) float64 array."""
    return np.array(points, dtype=np.float64)


def single(value: npt.ArrayLike) -> Field:
    """The values as float32: mixed arithmetic on fields drifts to float64."""
    return np.asarray(value, dtype=np.float32)


def smooth(value: Real) -> Field:
    """The cubic step 3t^2 - 2t^3 of `value` clipped to 0..1."""
    t = np.clip(value, 0.0, 1.0)
    return single(t * t * (3.0 - 2.0 * t))


def edge(distance: Real, width: float) -> Field:
    """1 where the signed distance is positive, 0 where negative, soft over 2 x `width`."""
    return smooth(distance / (2.0 * width) + 0.5)


def ball(x: Field, y: Field, centre: tuple[float, float], radius: tuple[float, float]) -> Field:
    """Thickness of an ellipsoid seen from the front: 1 in the middle, 0 at its rim."""
    far = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2
    return single(np.sqrt(np.clip(1.0 - far, 0.0, 1.0)))


def cloud(x: Field, y: Field, centre: tuple[float, float], radius: tuple[float, float]) -> Field:
    """A Gaussian haze with standard deviations `radius`, 1 in the middle."""
    far = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2
    return single(np.exp(-0.5 * far))


def noise(rng: np.random.Generator, cells: int, size: int) -> Field:
    """Smooth unit-variance noise with about `cells` waves across the image."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    field = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return single(field / max(float(field.std()), 1e-6))


def blur(image: Field, sigma: float) -> Field:
    """Gaussian blur with `sigma` in pixels, edges repeated; nothing to do below 0.15 pixels."""
    if sigma < 0.15:
        return image
    radius = max(1, round(3.0 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps = single(taps / taps.sum())
    height, width = image.shape
    padded = np.pad(image, radius, mode="edge")
    rows = np.zeros((height, padded.shape[1]), dtype=np.float32)
    for k, tap in enumerate(taps):
        rows += tap * padded[k : k + height]
    out = np.zeros_like(image)
    for k, tap in enumerate(taps):
        out += tap * rows[:, k : k + width]
    return out
