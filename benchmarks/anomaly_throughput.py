"""Pseudo-anomalies per second, against the same operations written pixel by pixel.

Both sides draw the same random numbers and must give the same images. The reference replaces
dilation, the search for free rectangles, colour change, Perlin noise (elastic, blotches), swirl,
interpolation, rotation and pasting by loops over plain Python numbers. Blur, JPEG, torn lines and
erasing are shared.

    python benchmarks/anomaly_throughput.py
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from time import process_time
from unittest.mock import patch

import numpy as np
import PIL
import scipy
from numpy.typing import NDArray

from patchguard.anomalies import distortions, paste
from patchguard.anomalies.noise import perlin
from patchguard.arrays import FloatArray
from patchguard.config import AnomalyConfig
from patchguard.data.windows import Box

ROUNDS = 3
PUBLISHED = AnomalyConfig(shapes=["rectangle"], blends=["opaque"], count_max=1)
Pixels = list[list[list[float]]]


def sample(pixels: Pixels, row: float, col: float) -> list[float]:
    height, width = len(pixels), len(pixels[0])
    row, col = min(max(row, 0), height - 1), min(max(col, 0), width - 1)
    top, left = int(row), int(col)
    below, beside = min(top + 1, height - 1), min(left + 1, width - 1)
    down, right = row - top, col - left
    return [
        (pixels[top][left][c] * (1 - right) + pixels[top][beside][c] * right) * (1 - down)
        + (pixels[below][left][c] * (1 - right) + pixels[below][beside][c] * right) * down
        for c in range(3)
    ]


def bilinear_by_pixel(crop: FloatArray, rows: FloatArray, cols: FloatArray) -> FloatArray:
    pixels: Pixels = crop.tolist()
    colours = [
        sample(pixels, r, c)
        for r, c in zip(rows.ravel().tolist(), cols.ravel().tolist(), strict=True)
    ]
    return np.array(colours, dtype=np.float32).reshape(*rows.shape, 3)


def perlin_by_pixel(height: int, width: int, period: float, rng: np.random.Generator) -> FloatArray:
    row_offset, col_offset = rng.random(), rng.random()
    nodes = [
        int((length - 1) / period + offset) + 2
        for length, offset in ((height, row_offset), (width, col_offset))
    ]
    angles = rng.uniform(0, 2 * np.pi, nodes).tolist()
    field = [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            row, col = y / period + row_offset, x / period + col_offset
            total = 0.0
            for i in (int(row), int(row) + 1):
                for j in (int(col), int(col) + 1):
                    down, right = row - i, col - j
                    slope = math.sin(angles[i][j]) * down + math.cos(angles[i][j]) * right
                    total += fade(1 - abs(down)) * fade(1 - abs(right)) * slope
            field[y][x] = min(max(total * math.sqrt(2), -1), 1)
    return np.array(field, dtype=np.float32)


def fade(x: float) -> float:
    return x**3 * (x * (x * 6 - 15) + 10)


def colour_by_pixel(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    hue = distortions._hue_rotation(rng.uniform(-np.pi / 4, np.pi / 4))
    mixing = (hue @ distortions._saturation(rng.uniform(0.4, 1.6))).tolist()
    contrast, brightness = rng.uniform(0.5, 1.5), rng.uniform(-0.3, 0.3)
    mean = crop.mean(axis=(0, 1)).tolist()
    pixels: Pixels = crop.tolist()
    for row in pixels:
        for x, pixel in enumerate(row):
            spread = [contrast * (pixel[c] - mean[c]) + mean[c] for c in range(3)]
            mixed = [sum(m * v for m, v in zip(line, spread, strict=True)) for line in mixing]
            row[x] = [min(max(v + brightness, 0), 1) for v in mixed]
    return np.array(pixels, dtype=np.float32)


def swirl_by_pixel(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    height, width = crop.shape[:2]
    middle_row = rng.uniform(0.35, 0.65) * (height - 1)
    middle_col = rng.uniform(0.35, 0.65) * (width - 1)
    radius = rng.uniform(0.3, 0.7) * max(height, width)
    twist = rng.choice((-1, 1)) * rng.uniform(1, 5)
    pixels: Pixels = crop.tolist()
    swirled = []
    for y in range(height):
        for x in range(width):
            down, right = y - middle_row, x - middle_col
            angle = twist * math.exp(-math.hypot(down, right) / radius)
            row = middle_row + math.cos(angle) * down - math.sin(angle) * right
            col = middle_col + math.sin(angle) * down + math.cos(angle) * right
            swirled.append(sample(pixels, row, col))
    return np.array(swirled, dtype=np.float32).reshape(crop.shape)


def draw_patch_by_pixel(
    image: FloatArray,
    source: Box,
    target: Box,
    free: NDArray[np.bool_],
    rng: np.random.Generator,
    config: AnomalyConfig,
) -> paste._Patch:
    """The published setting: an opaque rectangle."""
    angle = rng.uniform(-np.pi / 2, np.pi / 2)
    rng.integers(len(config.shapes)), rng.integers(len(config.blends))
    pixels: Pixels = distortions.distort(source.of(image), rng).tolist()
    rows, cols = paste._rotated_extent(target, angle, free.shape)
    allowed = free.tolist()
    middle_row = target.top + (target.height - 1) / 2
    middle_col = target.left + (target.width - 1) / 2
    found = []
    for y in rows.tolist():
        for x in cols.tolist():
            row, col = y - middle_row, x - middle_col
            down = math.cos(angle) * row - math.sin(angle) * col
            right = math.sin(angle) * row + math.cos(angle) * col
            if abs(down) > target.height / 2 or abs(right) > target.width / 2 or not allowed[y][x]:
                continue
            in_row, in_col = down + (target.height - 1) / 2, right + (target.width - 1) / 2
            found.append((y, x, sample(pixels, in_row, in_col)))
    ys, xs, colours = zip(*found, strict=True)
    return paste._Patch(np.array(ys), np.array(xs), np.array(colours, dtype=np.float32))


def widened_by_pixel(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    pixels = mask.tolist()
    wide = [
        [
            any(pixels[k][x] for k in range(max(0, y - radius), min(len(pixels), y + radius + 1)))
            for x in range(len(row))
        ]
        for y, row in enumerate(pixels)
    ]
    return np.array(wide)


def integral_by_pixel(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    height, width = mask.shape
    pixels = mask.tolist()
    sums = [[0] * (width + 1) for _ in range(height + 1)]
    for y in range(height):
        along = 0
        for x in range(width):
            along += pixels[y][x]
            sums[y + 1][x + 1] = sums[y][x + 1] + along
    return np.array(sums, dtype=np.int32)


def place_by_pixel(
    integral: NDArray[np.int32], height: int, width: int, rng: np.random.Generator
) -> Box:
    rows, cols = integral.shape
    height, width = min(height, rows - 1), min(width, cols - 1)
    sums = integral.tolist()
    while True:
        corners = [
            (y, x)
            for y in range(rows - height)
            for x in range(cols - width)
            if sums[y + height][x + width] - sums[y + height][x] - sums[y][x + width] + sums[y][x]
            == height * width
        ]
        if corners:
            top, left = corners[rng.integers(len(corners))]
            return Box(top, left, height, width)
        height, width = max(1, int(height * 0.8)), max(1, int(width * 0.8))


@contextmanager
def by_pixel() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(patch.object(distortions, "bilinear", bilinear_by_pixel))
        stack.enter_context(patch.object(distortions, "perlin", perlin_by_pixel))
        stack.enter_context(patch.object(paste, "_draw_patch", draw_patch_by_pixel))
        stack.enter_context(patch.object(paste, "_widened", widened_by_pixel))
        stack.enter_context(patch.object(paste, "_integral", integral_by_pixel))
        stack.enter_context(patch.object(paste, "_place", place_by_pixel))
        table = {"colour": colour_by_pixel, "swirl": swirl_by_pixel}
        stack.enter_context(patch.dict(distortions.DISTORTIONS, table))
        yield


def scene(size: int, seed: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    """A textured disc over a plain ground, and the disc."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:size, :size] / size - 0.5
    disc = np.hypot(rows, cols) < 0.4
    coarse, fine = (perlin(size, size, size * scale, rng) for scale in (0.2, 0.04))
    texture = 0.45 + 0.15 * coarse + 0.1 * fine
    tint = np.array([1.1, 0.95, 0.8], dtype=np.float32)
    image = np.where(disc[..., None], texture[..., None] * tint, np.float32(0.85))
    return np.clip(image, 0, 1, dtype=np.float32), disc


def run(size: int, n: int, seed: int, config: AnomalyConfig) -> tuple[float, list[FloatArray]]:
    """Processor seconds per pseudo-anomaly, after ten more to warm up; and the anomalies."""
    image, foreground = scene(size, seed)
    for index in range(10):
        paste.make_pseudo_anomaly(image, foreground, paste.sample_rng(seed, 1, index), config)
    start = process_time()
    made = [
        paste.make_pseudo_anomaly(image, foreground, paste.sample_rng(seed, 0, index), config)
        for index in range(n)
    ]
    seconds = (process_time() - start) / n
    return seconds, [anomaly for anomaly, _ in made]


def share_of_equal_pixels(ours: list[FloatArray], reference: list[FloatArray]) -> float:
    """Share of the pixels that agree to 1/255."""
    gap = np.abs(np.stack(ours) - np.stack(reference)).max(axis=-1)
    return float((gap <= 1 / 255).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("-n", type=int, default=30, help="pseudo-anomalies per measurement")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(
        f"one process, processor time, median of {ROUNDS} alternating rounds, n={args.n} each, "
        f"seed={args.seed}, textured disc on half of the image, {platform.machine()}, "
        f"python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, "
        f"pillow {PIL.__version__}"
    )
    print("  px  default ms  published ms  by pixel ms  by pixel / published  equal pixels")
    for size in args.sizes:
        print(f"{size:4d}  {compared(size, args.n, args.seed)}")


def compared(size: int, n: int, seed: int) -> str:
    """One line of the table; the default setting has no counterpart by pixel."""
    default, published, reference = [], [], []
    for _ in range(ROUNDS):
        default.append(run(size, n, seed, AnomalyConfig())[0])
        seconds, anomalies = run(size, n, seed, PUBLISHED)
        published.append(seconds)
        with by_pixel():
            seconds, expected = run(size, n, seed, PUBLISHED)
        reference.append(seconds)
    ours, theirs = median(published), median(reference)
    return (
        f"{median(default) * 1e3:10.2f}  {ours * 1e3:12.2f}  {theirs * 1e3:11.1f}"
        f"  {theirs / ours:20.0f}  {share_of_equal_pixels(anomalies, expected):12.4%}"
    )


if __name__ == "__main__":
    main()
