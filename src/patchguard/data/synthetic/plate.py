"""A machined, brushed metal plate with drilled holes and two slots on a rubber mat."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from patchguard.data.synthetic import canvas
from patchguard.data.synthetic.canvas import Array, Pose, Rng, Scene, Surface

_HALF = (92.0, 68.0)
_CORNER_RADIUS = 9.0
_CORNERS = ((-66, -43), (66, -43), (66, 43), (-66, 43))
_HOLE_RADIUS = 11.0
_BORE_RADIUS = 25.0
_METAL = (0.60, 0.61, 0.63)
_MAT = (0.13, 0.15, 0.17)


@dataclass(frozen=True)
class _Part:
    """One plate: where it lies, its textures `[H, W]` and the centres of its corner holes."""

    pose: Pose
    brushing: Array
    mat: Array
    holes: tuple[tuple[float, float], ...] = _CORNERS


def draw_plate(rng: Rng) -> _Part:
    """A normal plate."""
    pose = canvas.draw_pose(rng, shift=7, angle=0.09, scale=0.03)
    return _Part(pose, _brushing(rng, pose), _rubber(rng))


def _surface(part: _Part) -> Surface:
    """The plate as it should be."""
    return _finish(part, _outline(part))


def _brushing(rng: Rng, pose: Pose) -> Array:
    lines = ndimage.uniform_filter1d(
        rng.standard_normal((canvas.SIZE, canvas.SIZE + 64), dtype=np.float32),
        41,
        axis=1,
        mode="wrap",
    )
    u, v = pose.local()
    brushed = ndimage.map_coordinates(
        lines,
        [v + canvas.SIZE / 2, u + canvas.SIZE / 2 + 32],
        order=1,
        mode="mirror",
        output=np.float32,
    )
    return canvas.f32(canvas.f32(0.25) * brushed + canvas.f32(0.012) * canvas.smooth_noise(rng, 5))


def _rubber(rng: Rng) -> Array:
    grain = rng.standard_normal((canvas.SIZE, canvas.SIZE), dtype=np.float32)
    return canvas.f32(
        canvas.f32(0.04) * ndimage.uniform_filter(grain, 3)
        + canvas.f32(0.008) * canvas.smooth_noise(rng, 12)
    )


def _outline(part: _Part) -> Array:
    """Signed distance to the metal: the plate less its holes, slots and bore."""
    u, v = part.pose.local()
    metal = canvas.rounded_box(u, v, _HALF, _CORNER_RADIUS)
    cuts = [canvas.disc(u, v, centre, _HOLE_RADIUS) for centre in part.holes]
    cuts.append(canvas.disc(u, v, (0, 0), _BORE_RADIUS))
    cuts.append(canvas.rounded_box(np.abs(u) - 52, v, (5.5, 17.0), 5.5))
    return canvas.f32(np.maximum(metal, -np.minimum.reduce(cuts)) * canvas.f32(part.pose.scale))


def _finish(part: _Part, outline: Array) -> Surface:
    """Mat, shadow, metal and chamfered edges for an outline (signed distance, `[H, W]`)."""
    shade = 1 - canvas.f32(0.6) * canvas.ramp(canvas.shifted(outline, 5, 5), 6, -4)
    mat = (canvas.f32(_MAT) + part.mat[..., None]) * shade[..., None]
    metal = canvas.f32(_METAL) + part.brushing[..., None]
    height = canvas.f32(1.6) * canvas.ramp(outline, 0.5, -4)
    return Surface(canvas.blend(mat, metal, canvas.cover(outline)), height)


def _spot(part: _Part, rng: Rng, margin: float) -> Array:
    """A point of the plate, in part coordinates, `margin` from every edge and hole."""
    while True:
        u, v = rng.uniform([-80, -56], [80, 56])
        gaps = [np.hypot(u - cu, v - cv) - _HOLE_RADIUS for cu, cv in part.holes]
        gaps.append(np.hypot(u, v) - _BORE_RADIUS)
        gaps.append(np.hypot(abs(u) - 52, max(abs(v) - 11.5, 0)) - 5.5)
        gaps += [_HALF[0] - abs(u), _HALF[1] - abs(v)]
        if min(gaps) > margin:
            return canvas.f32([u, v])


def _path_on(part: _Part, outline: Array, rng: Rng) -> Array:
    """A curve in pixel coordinates `[N, 2]` that crosses hardly any hole."""
    while True:
        start, stop = _spot(part, rng, 6), _spot(part, rng, 6)
        path = part.pose.pixels(canvas.curve(start, stop, rng, 0.12))
        column, row = np.round(path).astype(int).T
        if 60 < np.hypot(*(stop - start)) < 110 and (outline[row, column] < 0).mean() > 0.85:
            return path


def missing_hole(part: _Part, rng: Rng) -> Surface:
    """A corner hole that was never drilled."""
    gone = int(rng.integers(len(part.holes)))
    return _surface(replace(part, holes=part.holes[:gone] + part.holes[gone + 1 :]))


def oval_hole(part: _Part, rng: Rng) -> Surface:
    """A corner hole drilled twice, the second time beside the first."""
    centre = canvas.f32(part.holes[rng.integers(len(part.holes))])
    angle = rng.uniform(0, 2 * np.pi)
    second = centre + rng.uniform(7, 9) * canvas.f32([np.cos(angle), np.sin(angle)])
    cut = canvas.disc(*part.pose.local(), second, _HOLE_RADIUS) * canvas.f32(part.pose.scale)
    return _finish(part, np.maximum(_outline(part), -cut))


def burr(part: _Part, rng: Rng) -> Surface:
    """Torn metal left standing on part of the bore's edge."""
    u, v = part.pose.local()
    middle, spread = rng.uniform(-np.pi, np.pi), rng.uniform(0.55, 0.85)
    theta = np.arctan2(v, u)
    off = np.abs((theta - canvas.f32(middle) + np.pi) % (2 * np.pi) - np.pi) / canvas.f32(spread)
    teeth = 1 + canvas.f32(0.35) * np.sin(theta * 23 + canvas.f32(rng.uniform(0, 6))) * np.sin(
        theta * 11
    )
    reach = canvas.f32(rng.uniform(9, 12)) * np.sqrt(np.clip(1 - off * off, 0, 1)) * teeth
    depth = canvas.f32(_BORE_RADIUS) - np.hypot(u, v)
    inside = np.maximum(-depth - 3, depth - reach)
    torn = np.where(off < 1, canvas.cover(inside * canvas.f32(part.pose.scale)), 0)
    base = _surface(part)
    folds = canvas.f32(0.08) * np.sin(depth * canvas.f32(0.9) + 2 * np.sin(theta * 9))
    steel = canvas.f32([0.78, 0.78, 0.79]) + folds[..., None]
    return Surface(canvas.blend(base.albedo, steel, torn), base.height + canvas.f32(0.8) * torn)


def scratch(part: _Part, rng: Rng) -> Surface:
    """A bent groove with one bright flank and one dark flank."""
    outline = _outline(part)
    path = _path_on(part, outline, rng)
    metal = canvas.cover(outline)
    groove, flank = canvas.strokes([path], 2.2) * metal, canvas.strokes([path + 1.5], 1.8) * metal
    base = _surface(part)
    albedo = canvas.blend(
        canvas.blend(base.albedo, (0.95, 0.95, 0.96), flank), (0.22, 0.22, 0.23), groove
    )
    return Surface(albedo, base.height)


def rust(part: _Part, rng: Rng) -> Surface:
    """Rust that grew around a hole's edge and pitted the metal."""
    u, v = part.pose.local()
    hole = canvas.f32(part.holes[rng.integers(len(part.holes))])
    centre = hole * rng.uniform(0.78, 0.9)
    edge = canvas.blob(rng, u, v, centre, rng.uniform(15, 21), 0.25)
    pits = canvas.f32(0.5) * canvas.smooth_noise(rng, 64) + canvas.f32(0.5) * canvas.smooth_noise(
        rng, 32
    )
    alpha = canvas.f32(0.9) * canvas.ramp(edge + 3 * pits, 3, -3) * canvas.cover(_outline(part))
    colour = canvas.f32([0.47, 0.25, 0.11]) + canvas.f32([0.10, 0.07, 0.04]) * pits[..., None]
    base = _surface(part)
    return Surface(
        canvas.blend(base.albedo, colour, alpha), base.height + canvas.f32(0.35) * alpha * pits
    )


def dent(part: _Part, rng: Rng) -> Surface:
    """A dent from a dropped tool: a round hollow that mirrors the light the other way."""
    radius = rng.uniform(11, 14)
    centre = _spot(part, rng, 9)
    hollow = np.clip(
        1 - (canvas.disc(*part.pose.local(), centre, 0) / canvas.f32(radius)) ** 2, 0, 1
    )
    hollow = hollow * canvas.cover(_outline(part))
    base = _surface(part)
    albedo = base.albedo * (1 - canvas.f32(0.25) * canvas.ramp(hollow, 0, 0.5))[..., None]
    return Surface(albedo, base.height - canvas.f32(rng.uniform(4.5, 6)) * hollow**2)


def bent_corner(part: _Part, rng: Rng) -> Surface:
    """A corner folded down: it turns from the light and its tip is foreshortened."""
    u, v = part.pose.local()
    su, sv = canvas.f32(np.sign(part.holes[rng.integers(len(part.holes))]))
    tilt = rng.uniform(0.65, 0.9)
    beyond = np.cos(tilt) * su * u + np.sin(tilt) * sv * v
    tip = np.cos(tilt) * _HALF[0] + np.sin(tilt) * _HALF[1] - 0.4 * _CORNER_RADIUS
    beyond = canvas.f32(beyond - (tip - rng.uniform(17, 20)))
    base = _finish(part, np.maximum(_outline(part), (beyond - 12) * canvas.f32(part.pose.scale)))
    folded = canvas.ramp(beyond, -1, 1.5) * canvas.cover(_outline(part))
    gleam = np.exp(-((beyond + 1) ** 2) / 2) * canvas.cover(_outline(part))
    albedo = base.albedo * (1 - canvas.f32(0.42) * folded)[..., None]
    return Surface(
        canvas.blend(albedo, (0.9, 0.9, 0.9), canvas.f32(0.6) * gleam),
        base.height - canvas.f32(0.35) * np.maximum(beyond, 0) * folded,
    )


PLATE = Scene(
    draw_plate,
    _surface,
    {
        "bent_corner": bent_corner,
        "burr": burr,
        "dent": dent,
        "missing_hole": missing_hole,
        "oval_hole": oval_hole,
        "rust": rust,
        "scratch": scratch,
    },
)
