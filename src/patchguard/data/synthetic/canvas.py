"""What the three scenes share: pose, shapes, textures, light and camera.

Arrays are float32 and 256x256; lengths are pixels. Shapes are signed distances `[H, W]`,
negative inside, so that edges come out antialiased.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

SIZE = 256
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

# A change below this is not visible and not part of a defect.
_CHANGE = 6 / 255
_SUPERSAMPLE = 4


@dataclass(frozen=True)
class Surface:
    """What the lamp shines on: albedo `[H, W, 3]` in [0, 1] and height `[H, W]` in pixels."""

    albedo: Array
    height: Array


PartT = TypeVar("PartT")


@dataclass(frozen=True)
class Scene(Generic[PartT]):
    """A category: how a part is drawn at random, what it looks like, whole and with each defect."""

    draw: Callable[[Rng], PartT]
    surface: Callable[[PartT], Surface]
    defects: Mapping[str, Callable[[PartT, Rng], Surface]]


@dataclass(frozen=True)
class Pose:
    """Where a part lies: its centre (x, y), rotation in radians and scale."""

    x: float
    y: float
    angle: float
    scale: float

    def local(self) -> tuple[Array, Array]:
        """Part coordinates (u, v) of every pixel, each `[H, W]`, origin at the part's centre."""
        x, y = _grid()
        cos, sin = np.cos(self.angle) / self.scale, np.sin(self.angle) / self.scale
        dx, dy = x - np.float32(self.x), y - np.float32(self.y)
        return f32(cos) * dx + f32(sin) * dy, f32(cos) * dy - f32(sin) * dx

    def pixels(self, points: ArrayLike) -> Array:
        """Pixel coordinates `[N, 2]` of part coordinates `[N, 2]`."""
        u, v = np.asarray(points, np.float32).reshape(-1, 2).T * f32(self.scale)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return f32(np.stack([self.x + cos * u - sin * v, self.y + sin * u + cos * v], axis=1))


def draw_pose(rng: Rng, *, shift: float, angle: float, scale: float) -> Pose:
    """A pose near the middle of the image, uniform within +-shift, +-angle and 1 +- scale."""
    dx, dy = rng.uniform(-shift, shift, 2)
    return Pose(
        SIZE / 2 + dx, SIZE / 2 + dy, rng.uniform(-angle, angle), 1 + rng.uniform(-scale, scale)
    )


@dataclass(frozen=True)
class Lamp:
    """A lamp from the upper left: direction, level, fall-off over the image and colour."""

    azimuth: float
    level: float
    slope: tuple[float, float]
    warmth: float

    def shine(self, surface: Surface) -> Array:
        """The image `[H, W, 3]` of a surface, not yet clipped."""
        x, y = _grid()
        dy, dx = np.gradient(surface.height)
        towards = f32(np.cos(self.azimuth)) * dx + f32(np.sin(self.azimuth)) * dy
        relief = (1 - f32(0.9) * towards) / np.sqrt(1 + dx * dx + dy * dy)
        light = f32(self.level) + (
            f32(self.slope[0]) * (x / SIZE - f32(0.5)) + f32(self.slope[1]) * (y / SIZE - f32(0.5))
        )
        light *= np.clip(relief, 0.25, 1.5)
        tint = f32([1 + self.warmth, 1, 1 - self.warmth])
        return f32(surface.albedo * light[..., None] * tint)


def draw_lamp(rng: Rng) -> Lamp:
    """A lamp as it drifts in a real station: up to 8 % in level and across the image."""
    return Lamp(
        azimuth=-0.75 * np.pi + rng.uniform(-0.2, 0.2),
        level=rng.uniform(0.92, 1.06),
        slope=(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)),
        warmth=rng.uniform(-0.03, 0.03),
    )


def captured(image: Array, rng: Rng) -> Array:
    """Add sensor noise (shot and read-out) and clip to [0, 1]."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    sigma = f32(0.006) + f32(0.008) * np.sqrt(np.clip(image, 0, 1))
    return np.clip(image + sigma * noise, 0, 1)


def repainted(defective: Array, normal: Array) -> Mask:
    """Where a defect shows, `[H, W]`: visible differences, gaps and specks of noise removed."""
    visible = np.abs(np.clip(defective, 0, 1) - np.clip(normal, 0, 1)).max(axis=2) > _CHANGE
    closed = ndimage.binary_closing(np.pad(visible, 2), np.ones((3, 3)))[2:-2, 2:-2]
    return _without_specks(~_without_specks(~closed, smallest=60), smallest=8)


def _without_specks(mask: Mask, *, smallest: int) -> Mask:
    """`mask` without its connected regions of fewer than `smallest` pixels."""
    regions, _ = ndimage.label(mask)
    kept = np.bincount(regions.ravel()) >= smallest
    kept[0] = False
    return np.asarray(kept[regions], bool)


def f32(values: ArrayLike) -> Array:
    """Any number or array in float32, so that nothing is promoted to float64."""
    return np.asarray(values, np.float32)


@cache
def _grid() -> tuple[Array, Array]:
    """Pixel coordinates (x, y), each `[H, W]`; integers are pixel centres."""
    axis = np.arange(SIZE, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def cover(distance: Array) -> Array:
    """Share of each pixel inside a shape, in [0, 1], from the signed distance to it."""
    return f32(np.clip(f32(0.5) - distance, 0, 1))


def ramp(values: Array, start: float, stop: float) -> Array:
    """Smooth step from 0 at `start` to 1 at `stop`."""
    t = np.clip((values - f32(start)) / f32(stop - start), 0, 1)
    return f32(t * t * (3 - 2 * t))


def blend(base: Array, paint: ArrayLike, alpha: Array) -> Array:
    """`base` `[H, W, 3]` with a colour or image painted over it at opacity `alpha` `[H, W]`."""
    return base + alpha[..., None] * (f32(paint) - base)


def rounded_box(u: Array, v: Array, half: tuple[float, float], radius: float) -> Array:
    """Signed distance to a rectangle of half-size `half` with rounded corners."""
    du, dv = np.abs(u) - f32(half[0] - radius), np.abs(v) - f32(half[1] - radius)
    outside = disc(np.maximum(du, 0), np.maximum(dv, 0), (0, 0), radius)
    return outside + np.minimum(np.maximum(du, dv), 0)


def disc(u: Array, v: Array, centre: ArrayLike, radius: float) -> Array:
    """Signed distance to a disc."""
    cu, cv = f32(centre)
    du, dv = u - cu, v - cv
    return f32(np.sqrt(du * du + dv * dv) - f32(radius))


def blob(rng: Rng, u: Array, v: Array, centre: ArrayLike, radius: float, roughness: float) -> Array:
    """Approximate signed distance to an irregular round shape."""
    cu, cv = f32(centre)
    theta = np.arctan2(v - cv, u - cu)
    wave = np.zeros_like(theta)
    for order in range(2, 8):
        amplitude = rng.normal(0, roughness / order)
        wave += f32(amplitude) * np.cos(order * theta + f32(rng.uniform(0, 2 * np.pi)))
    return f32(disc(u, v, centre, 0) - f32(radius) * (1 + wave))


def smooth_noise(rng: Rng, cells: int, cells_down: int | None = None) -> Array:
    """Band-limited noise `[H, W]`, about unit variance: a coarse random grid, interpolated."""
    shape = (cells_down or cells, cells)
    return enlarge(rng.standard_normal(shape, dtype=np.float32))


def enlarge(coarse: Array) -> Array:
    """A coarse grid interpolated bicubically to `[H, W]`."""
    return np.array(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def strokes(paths: Iterable[ArrayLike], width: float) -> Array:
    """Opacity `[H, W]` of lines `width` pixels wide through pixel coordinates, each `[N, 2]`."""
    sheet = Image.new("L", (SIZE * _SUPERSAMPLE, SIZE * _SUPERSAMPLE))
    pen, thickness = ImageDraw.Draw(sheet), round(width * _SUPERSAMPLE)
    for path in paths:
        # Pixel centres are integers here and halves in Pillow.
        points = ((np.asarray(path, np.float64) + 0.5) * _SUPERSAMPLE).tolist()
        pen.line([(x, y) for x, y in points], fill=255, width=thickness, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.circle((x, y), thickness / 2, fill=255)
    return np.array(sheet.reduce(_SUPERSAMPLE), np.float32) / f32(255)


def curve(start: ArrayLike, stop: ArrayLike, rng: Rng, bend: float) -> Array:
    """Points `[N, 2]` on a cubic Bezier curve whose handles stray `bend` times its length."""
    p0, p3 = np.asarray(start, np.float64), np.asarray(stop, np.float64)
    along = p3 - p0
    across = np.array([-along[1], along[0]])
    p1, p2 = (p0 + t * along + rng.uniform(-bend, bend) * across for t in (1 / 3, 2 / 3))
    t = np.linspace(0, 1, 40)[:, None]
    s = 1 - t
    return f32(s**3 * p0 + 3 * s * s * t * p1 + 3 * s * t * t * p2 + t**3 * p3)


def jagged(start: ArrayLike, stop: ArrayLike, rng: Rng, *, pieces: int, stray: float) -> Array:
    """Points `[pieces + 1, 2]` of a broken line that strays from the straight one by `stray`."""
    p0, p1 = np.asarray(start, np.float64), np.asarray(stop, np.float64)
    along = (p1 - p0) / np.hypot(*(p1 - p0))
    offset = rng.uniform(-stray, stray, pieces + 1)
    offset[[0, -1]] = 0
    straight = p0 + np.linspace(0, 1, pieces + 1)[:, None] * (p1 - p0)
    return f32(straight + offset[:, None] * np.array([-along[1], along[0]]))


def shifted(values: Array, dx: int, dy: int) -> Array:
    """`values` `[H, W]` moved right by `dx` and down by `dy`, edges repeated."""
    padded = np.pad(values, ((max(dy, 0), max(-dy, 0)), (max(dx, 0), max(-dx, 0))), mode="edge")
    top, left = max(-dy, 0), max(-dx, 0)
    return padded[top : top + SIZE, left : left + SIZE]
