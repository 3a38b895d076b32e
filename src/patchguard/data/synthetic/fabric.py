"""A plain weave of indigo warp (vertical) and pale weft (horizontal) that fills the image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from patchguard.data.synthetic import canvas
from patchguard.data.synthetic.canvas import Array, Pose, Rng, Scene, Surface

_PITCH = 9.0
_THREADS = 64
_WARP = (0.33, 0.43, 0.62)
_WEFT = (0.78, 0.77, 0.72)
_BACKING = (0.10, 0.10, 0.12)


@dataclass(frozen=True)
class _Part:
    """One piece of cloth.

    `u`, `v` `[H, W]` count threads across the warp and the weft; `warp`, `weft` `[64, 3]` are the
    colours of the threads; `fibres` `[2, H, W]` the streaks along warp and weft; `warp_rise`,
    `weft_rise` `[H, W]` lift (or drop) a thread beside its normal course.
    """

    pose: Pose
    u: Array
    v: Array
    warp: Array
    weft: Array
    fibres: tuple[Array, Array]
    warp_rise: Array
    weft_rise: Array


def draw_fabric(rng: Rng) -> _Part:
    """A normal piece of cloth, anywhere along the roll, slightly stretched and turned."""
    pose = canvas.draw_pose(rng, shift=_PITCH, angle=0.05, scale=0.03)
    u, v = pose.local()
    u = u / canvas.f32(_PITCH) + canvas.f32(0.12) * canvas.smooth_noise(rng, 4)
    v = v / canvas.f32(_PITCH) + canvas.f32(0.12) * canvas.smooth_noise(rng, 4)
    level = np.zeros((canvas.SIZE, canvas.SIZE), np.float32)
    fibres = (_streaks(rng, axis=0), _streaks(rng, axis=1))
    return _Part(pose, u, v, _dye(rng, _WARP), _dye(rng, _WEFT), fibres, level, level)


def _surface(part: _Part) -> Surface:
    """The threads on top of each other, darker the deeper they lie."""
    column, row = _index(part.u), _index(part.v)
    across_u, across_v = _across(part.u), _across(part.v)
    turn = canvas.f32(1 - 2 * ((column + row) % 2))
    warp = _rounding(across_u) + turn * np.cos(canvas.f32(np.pi / 2) * across_v) + part.warp_rise
    weft = _rounding(across_v) - turn * np.cos(canvas.f32(np.pi / 2) * across_u) + part.weft_rise
    over = canvas.f32(0.5) + np.clip((warp - weft) * 2, -0.5, 0.5)
    colour = canvas.blend(
        part.weft[row] + part.fibres[1][..., None],
        part.warp[column] + part.fibres[0][..., None],
        over,
    )
    height = np.maximum(warp, weft)
    depth = canvas.ramp(height, -0.9, 1.6)
    return Surface(
        canvas.blend(canvas.f32(_BACKING), colour, canvas.f32(0.12) + canvas.f32(0.88) * depth),
        canvas.f32(0.45) * height,
    )


def _rounding(across: Array) -> Array:
    return 1 - canvas.f32(1.3) * across * across


def _index(threads: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.floor(threads).astype(np.int64) + _THREADS // 2


def _across(threads: Array) -> Array:
    """Position across a thread, from -1 at one side to 1 at the other."""
    return 2 * (threads - np.floor(threads)) - 1


def _streaks(rng: Rng, axis: int) -> Array:
    noise = rng.standard_normal((canvas.SIZE, canvas.SIZE), dtype=np.float32)
    return canvas.f32(0.105 * ndimage.uniform_filter1d(noise, 7, axis=axis, mode="wrap"))


def _dye(rng: Rng, colour: tuple[float, float, float]) -> Array:
    tone = rng.normal(1, 0.035, (_THREADS, 1))
    return canvas.f32(colour) * canvas.f32(tone)


def _anywhere(rng: Rng, margin: float) -> Array:
    """A pixel (x, y) at least `margin` from the image's border."""
    return canvas.f32(rng.uniform(margin, canvas.SIZE - margin, 2))


def _at(values: Array, point: Array) -> float:
    return float(values[int(point[1]), int(point[0])])


def missing_thread(part: _Part, rng: Rng) -> Surface:
    """A weft thread torn out over part of the width: the backing shows between the warps."""
    middle = _anywhere(rng, 50)
    row = np.floor(_at(part.v, middle))
    half = rng.uniform(4, 8)
    span = np.abs(part.u - canvas.f32(_at(part.u, middle))) < canvas.f32(half)
    gone = (np.floor(part.v) == row) & span
    torn = replace(part, weft_rise=np.where(gone, canvas.f32(-4), part.weft_rise))
    cloth = _surface(torn)
    return Surface(canvas.blend(cloth.albedo, _BACKING, canvas.f32(0.45) * gone), cloth.height)


def wrong_thread(part: _Part, rng: Rng) -> Surface:
    """A weft thread of another colour across the whole cloth."""
    row = _index(canvas.f32([_at(part.v, _anywhere(rng, 30))]))
    dyes = ((0.70, 0.16, 0.14), (0.13, 0.45, 0.22), (0.12, 0.12, 0.13))
    weft = part.weft.copy()
    weft[row] = canvas.f32(dyes[rng.integers(len(dyes))])
    return _surface(replace(part, weft=weft))


def misweave(part: _Part, rng: Rng) -> Surface:
    """Warp threads that float over several wefts instead of passing under every second one."""
    middle = _anywhere(rng, 50)
    column, row = np.floor(_at(part.u, middle)), np.floor(_at(part.v, middle))
    wide, high = rng.integers(2, 4), rng.integers(5, 9)
    patch = (np.floor(part.u) - column >= 0) & (np.floor(part.u) - column < wide)
    patch &= (np.floor(part.v) - row >= 0) & (np.floor(part.v) - row < high)
    return _surface(replace(part, warp_rise=np.where(patch, canvas.f32(1.7), part.warp_rise)))


def knot(part: _Part, rng: Rng) -> Surface:
    """A knot: a lump of wound-up weft lying on the cloth, with two loose ends."""
    centre = _anywhere(rng, 40)
    x, y = Pose(centre[0], centre[1], rng.uniform(-0.5, 0.5), 1).local()
    lump = canvas.blob(rng, x / canvas.f32(1.25), y, (0, 0), rng.uniform(8.5, 11), 0.12)
    dome = np.sqrt(np.clip(-lump / 9, 0, 1))
    ends = [centre + rng.uniform([-34, -12], [-20, 12]), centre + rng.uniform([20, -12], [34, 12])]
    tails = canvas.strokes([canvas.curve(centre, end, rng, 0.4) for end in ends], 3.2)
    body = np.maximum(canvas.cover(lump), tails)
    shadow = canvas.f32(0.6) * np.maximum(
        canvas.ramp(canvas.shifted(lump, 4, 4), 3, -3), canvas.shifted(tails, 2, 2)
    )
    cloth = _surface(part)
    windings = canvas.f32(0.86) + canvas.f32(0.14) * np.sin(
        canvas.f32(1.3) * (x + canvas.f32(0.6) * y)
    )
    albedo = canvas.blend(
        cloth.albedo * (1 - shadow)[..., None], windings[..., None] * canvas.f32(0.92), body
    )
    height = cloth.height * (1 - body) + 4 * dome + canvas.f32(0.7) * tails
    return Surface(albedo, height)


def stain(part: _Part, rng: Rng) -> Surface:
    """A drop of machine oil, soaked in: the weave shows through, with a darker rim."""
    x, y = Pose(0, 0, 0, 1).local()
    radius = rng.uniform(16, 27)
    edge = canvas.blob(rng, x, y, _anywhere(rng, 35), radius, 0.15)
    soaked = canvas.ramp(edge, 2, -2)
    rim = np.exp(-(((edge + 3) / 3) ** 2))
    loss = (canvas.f32(0.42) * soaked + canvas.f32(0.16) * rim)[..., None] * canvas.f32(
        [0.8, 0.95, 1.25]
    )
    cloth = _surface(part)
    return Surface(cloth.albedo * (1 - loss), cloth.height)


def hole(part: _Part, rng: Rng) -> Surface:
    """A hole with frayed edges: threads end at slightly different places and hang into it."""
    x, y = Pose(0, 0, 0, 1).local()
    centre, radius = _anywhere(rng, 35), rng.uniform(10, 15)
    edge = canvas.blob(rng, x, y, centre, radius, 0.2)
    fray = rng.uniform(-3, 3, (2, _THREADS)).astype(np.float32)
    warp_end, weft_end = fray[0][_index(part.u)], fray[1][_index(part.v)]
    no_warp, no_weft = edge + warp_end < 0, edge + weft_end < 0
    torn = replace(
        part,
        warp_rise=np.where(no_warp, canvas.f32(-6), part.warp_rise),
        weft_rise=np.where(no_weft, canvas.f32(-6), part.weft_rise),
    )
    cloth = _surface(torn)
    return Surface(cloth.albedo, np.where(no_warp & no_weft, canvas.f32(0.3), cloth.height))


FABRIC = Scene(
    draw_fabric,
    _surface,
    {
        "hole": hole,
        "knot": knot,
        "missing_thread": missing_thread,
        "misweave": misweave,
        "stain": stain,
        "wrong_thread": wrong_thread,
    },
)
