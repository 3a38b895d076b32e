"""An oblong, film-coated tablet with a score line and a printed code on a dark tray."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from patchguard.data.synthetic import canvas
from patchguard.data.synthetic.canvas import Array, Pose, Rng, Scene, Surface

_HALF = (98.0, 54.0)
_COAT = (0.86, 0.82, 0.76)
_CORE = (0.93, 0.91, 0.88)
_INK = (0.14, 0.20, 0.42)
_TRAY = (0.16, 0.23, 0.24)
_CODE = "PG20"
_GLYPH_CENTRES = (-66.0, -32.0, 32.0, 66.0)
_GLYPH_HALF = (10.0, 18.0)


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float) -> Array:
    t = np.radians(np.linspace(start, stop, 18))
    return canvas.f32(np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1))


# Strokes in a box from (-1, -1) to (1, 1), y down.
_STROKES: dict[str, tuple[Array, ...]] = {
    " ": (),
    "0": (_arc(0, 0, 1, 1, 0, 360),),
    "2": (np.vstack([_arc(0, -0.45, 0.95, 0.55, 190, 390), canvas.f32([[-1, 1], [1, 1]])]),),
    "4": (canvas.f32([[0.5, 1], [0.5, -1], [-1, 0.4], [1, 0.4]]),),
    "7": (canvas.f32([[-1.0, -1.0], [1.0, -1.0], [-0.3, 1.0]]),),
    "8": (_arc(0, -0.5, 0.8, 0.5, 0, 360), _arc(0, 0.5, 1, 0.5, 0, 360)),
    "G": (np.vstack([_arc(0, 0, 1, 1, 315, 40), canvas.f32([[0.95, 0.1], [0.2, 0.1]])]),),
    "P": (
        canvas.f32([[-0.9, 1.0], [-0.9, -1.0], [0.0, -1.0]]),
        np.vstack([_arc(0, -0.45, 1, 0.55, 270, 450), canvas.f32([[-0.9, 0.1]])]),
    ),
}


@dataclass(frozen=True)
class _Part:
    """One tablet: where it lies, its textures `[H, W]`, the code and where the print sits."""

    pose: Pose
    powder: Array
    tray: Array
    print_shift: Array
    code: str = _CODE


def draw_tablets(rng: Rng) -> _Part:
    """A normal tablet; the print is up to 2 px off its place."""
    pose = canvas.draw_pose(rng, shift=8, angle=0.12, scale=0.03)
    speckle = rng.standard_normal((canvas.SIZE, canvas.SIZE), dtype=np.float32)
    powder = canvas.f32(0.03) * ndimage.uniform_filter(speckle, 2) + canvas.f32(
        0.008
    ) * canvas.smooth_noise(rng, 9)
    lint = rng.standard_normal((canvas.SIZE, canvas.SIZE), dtype=np.float32)
    tray = canvas.f32(0.03) * ndimage.uniform_filter(lint, 3) + canvas.f32(
        0.01
    ) * canvas.smooth_noise(rng, 7)
    return _Part(pose, powder, tray, canvas.f32(rng.uniform(-2, 2, 2)))


def _surface(part: _Part) -> Surface:
    """The tablet as it should be."""
    return _finish(part, _outline(part))


def _outline(part: _Part) -> Array:
    return canvas.rounded_box(*part.pose.local(), _HALF, _HALF[1]) * canvas.f32(part.pose.scale)


def _finish(part: _Part, outline: Array) -> Surface:
    """Tray, shadow, dome, score line and print, cut to an outline (signed distance, `[H, W]`)."""
    u, _ = part.pose.local()
    shade = 1 - canvas.f32(0.65) * canvas.ramp(canvas.shifted(outline, 7, 7), 9, -6)
    tray = (canvas.f32(_TRAY) + part.tray[..., None]) * shade[..., None]
    coat = canvas.blend(
        canvas.f32(_COAT) + part.powder[..., None], _INK, canvas.f32(0.88) * _printed(part)
    )
    score = np.exp(-((u / 3) ** 2))
    inside = np.clip(-_outline(part), 0, 30) / canvas.f32(30)
    dome = 10 * (1 - (1 - inside) ** 2)
    return Surface(
        canvas.blend(tray, coat * (1 - canvas.f32(0.18) * score)[..., None], canvas.cover(outline)),
        canvas.f32(dome - canvas.f32(1.8) * score * canvas.ramp(inside, 0, 0.3))
        * canvas.cover(outline),
    )


def _printed(part: _Part) -> Array:
    """Opacity `[H, W]` of the printed code."""
    lines = (
        part.pose.pixels(
            line * canvas.f32(_GLYPH_HALF) + canvas.f32([centre, 0]) + part.print_shift
        )
        for glyph, centre in zip(part.code, _GLYPH_CENTRES, strict=True)
        for line in _STROKES[glyph]
    )
    return canvas.strokes(lines, 5)


def _edge_point(rng: Rng, inset: float) -> Array:
    """A point `inset` inside the tablet's edge, in part coordinates."""
    angle = rng.uniform(0, 2 * np.pi)
    toward = canvas.f32([np.cos(angle), np.sin(angle)])
    middle = canvas.f32([rng.uniform(0, 1) * np.sign(toward[0]) * (_HALF[0] - _HALF[1]), 0])
    if abs(toward[0]) > abs(toward[1]):
        middle[0] = np.sign(toward[0]) * (_HALF[0] - _HALF[1])
    else:
        toward = canvas.f32([0, np.sign(toward[1])])
    return middle + (_HALF[1] - canvas.f32(inset)) * toward


def chip(part: _Part, rng: Rng) -> Surface:
    """A piece broken off the edge: the rough core shows beside the gap."""
    u, v = part.pose.local()
    bite = canvas.blob(rng, u, v, _edge_point(rng, rng.uniform(-4, 2)), rng.uniform(15, 21), 0.12)
    grain = canvas.smooth_noise(rng, 64)
    gap = bite + rng.uniform(5, 7) + canvas.f32(0.8) * grain
    whole = _outline(part)
    base = _finish(part, np.maximum(whole, -gap))
    rough = canvas.cover(bite) * canvas.cover(-gap) * canvas.cover(whole)
    core = canvas.f32(_CORE) * canvas.f32(0.66) + canvas.f32(0.05) * grain[..., None]
    slope = np.minimum(
        base.height, canvas.f32(5) + canvas.f32(0.7) * bite + canvas.f32(0.5) * grain
    )
    height = base.height + rough * (slope - base.height)
    return Surface(canvas.blend(base.albedo, core, rough), canvas.f32(height))


def crack(part: _Part, rng: Rng) -> Surface:
    """A crack that runs in from the edge and forks."""
    start = _edge_point(rng, 1)
    aim = canvas.f32(rng.uniform([-50, -15], [50, 15])) - start
    stop = start + rng.uniform(48, 70) * aim / np.hypot(*aim)
    main = canvas.jagged(start, stop, rng, pieces=8, stray=4)
    fork = main[5] + canvas.f32(rng.uniform(-1, 1, 2)) * 8 + (main[5] - main[2]) * canvas.f32(0.7)
    side = canvas.jagged(main[5], fork, rng, pieces=4, stray=3)
    tablet = canvas.cover(_outline(part))
    gap = canvas.strokes([part.pose.pixels(main), part.pose.pixels(side)], 2.4) * tablet
    flank = canvas.shifted(gap, 1, 1) * tablet
    base = _surface(part)
    albedo = canvas.blend(
        canvas.blend(base.albedo, _CORE, canvas.f32(0.8) * flank),
        (0.2, 0.17, 0.15),
        canvas.f32(0.9) * gap,
    )
    return Surface(albedo, base.height)


def missing_print(part: _Part, rng: Rng) -> Surface:
    """One character of the code was not printed."""
    return _surface(replace(part, code=_misprinted(rng, "    ")))


def wrong_print(part: _Part, rng: Rng) -> Surface:
    """One character of the code is another one."""
    return _surface(replace(part, code=_misprinted(rng, "4487")))


def _misprinted(rng: Rng, wrong: str) -> str:
    """The code with one character replaced by the one at the same place of `wrong`."""
    place = int(rng.integers(len(_CODE)))
    return _CODE[:place] + wrong[place] + _CODE[place + 1 :]


def spot(part: _Part, rng: Rng) -> Surface:
    """A brown discoloured spot where moisture came through the coating."""
    u, v = part.pose.local()
    radius = rng.uniform(11, 17)
    edge = canvas.blob(rng, u, v, _edge_point(rng, rng.uniform(24, 48)), radius, 0.15)
    soaked = canvas.ramp(edge, 3, -5) * canvas.cover(_outline(part))
    base = _surface(part)
    loss = soaked[..., None] * canvas.f32([0.22, 0.40, 0.60])
    return Surface(base.albedo * (1 - loss), base.height)


def fibre(part: _Part, rng: Rng) -> Surface:
    """A hair lying across the tablet."""
    middle = canvas.f32(rng.uniform([-55, -20], [55, 20]))
    angle, half = rng.uniform(0, np.pi), rng.uniform(38, 55)
    reach = half * canvas.f32([np.cos(angle), np.sin(angle)])
    path = part.pose.pixels(canvas.curve(middle - reach, middle + reach, rng, 0.5))
    hair = canvas.strokes([path], 2.4)
    shadow = canvas.f32(0.3) * canvas.strokes([path + canvas.f32([2, 2.5])], 2.4)
    base = _surface(part)
    albedo = canvas.blend(
        base.albedo * (1 - shadow)[..., None], (0.30, 0.10, 0.09), canvas.f32(0.95) * hair
    )
    return Surface(albedo, base.height)


TABLETS = Scene(
    draw_tablets,
    _surface,
    {
        "chip": chip,
        "crack": crack,
        "fibre": fibre,
        "missing_print": missing_print,
        "spot": spot,
        "wrong_print": wrong_print,
    },
)
