from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from patchguard.anomalies.distortions import (
    DISTORTIONS,
    LEVELS,
    bilinear,
    blur,
    distort,
    draw_distortions,
    erase,
    jpeg,
)
from patchguard.anomalies.noise import perlin

SIZES = [(1, 1), (1, 9), (2, 2), (5, 3), (24, 40)]


def crop_of(shape, seed=0):
    return np.random.default_rng(seed).random((*shape, 3), dtype=np.float32)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", DISTORTIONS)
def test_keeps_shape_range_and_input(name, shape):
    for seed in range(10):
        crop = crop_of(shape, seed)
        before = crop.copy()
        out = DISTORTIONS[name](crop, np.random.default_rng(seed))
        assert out.shape == crop.shape
        assert out.dtype == np.float32
        assert out.min() >= 0
        assert out.max() <= 1
        np.testing.assert_array_equal(crop, before)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_changes_a_textured_crop(name):
    crop = crop_of((24, 40))
    for seed in range(10):
        out = DISTORTIONS[name](crop, np.random.default_rng(seed))
        assert np.abs(out - crop).mean() > 0.005


@pytest.mark.parametrize("name", DISTORTIONS)
def test_grey_stays_grey(name):
    crop = np.repeat(crop_of((24, 40))[..., :1], 3, axis=2)
    for seed in range(10):
        out = DISTORTIONS[name](crop, np.random.default_rng(seed))
        assert np.ptp(out, axis=2).max() < 1e-5


@pytest.mark.parametrize("name", ["elastic", "swirl", "blur"])
def test_moving_pixels_makes_no_new_colours(name):
    crop = 0.3 + 0.2 * crop_of((24, 40))
    out = DISTORTIONS[name](crop, np.random.default_rng(0))
    assert out.min() >= crop.min() - 1e-6
    assert out.max() <= crop.max() + 1e-6


def test_blur_and_jpeg_lose_detail():
    crop = crop_of((32, 32))
    for distortion in (blur, jpeg):
        out = distortion(crop, np.random.default_rng(0))
        assert np.abs(np.diff(out, axis=0)).mean() < np.abs(np.diff(crop, axis=0)).mean()


def test_erase_fills_one_rectangle_with_one_colour():
    crop = crop_of((24, 40))
    out = erase(crop, np.random.default_rng(3))
    changed = (out != crop).any(axis=2)
    rows, cols = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    inside = out[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    assert changed.sum() == inside.shape[0] * inside.shape[1]
    assert np.ptp(inside.reshape(-1, 3), axis=0).max() == 0


def test_bilinear_agrees_with_scipy():
    crop = crop_of((11, 17))
    rng = np.random.default_rng(1)
    rows, cols = rng.uniform(-3, 14, (9, 8)), rng.uniform(-3, 20, (9, 8))
    expected = np.stack(
        [
            ndimage.map_coordinates(crop[..., c], (rows, cols), order=1, mode="nearest")
            for c in range(3)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(bilinear(crop, rows, cols), expected, atol=1e-5)


def test_level_frequencies_and_counts():
    rng = np.random.default_rng(0)
    n = 6000
    levels: Counter[str] = Counter()
    counts: dict[str, set[int]] = {name: set() for name in LEVELS}
    for _ in range(n):
        level, names = draw_distortions(rng)
        levels[level] += 1
        counts[level].add(len(names) - 1)
        assert names[0] == "colour"
        assert len(set(names)) == len(names)
        assert set(names[1:]) <= set(LEVELS[level].names)
    for level, share in {"light": 0.2, "medium": 0.2, "heavy": 0.6}.items():
        # Four standard deviations of a binomial share.
        assert abs(levels[level] / n - share) < 4 * np.sqrt(share * (1 - share) / n)
    assert counts == {"light": {0, 1}, "medium": {0, 1, 2}, "heavy": {0, 1, 2, 3, 4}}


def test_tears_blotches_and_holes_are_for_heavy_only():
    heavy_only = {"torn_lines", "blotches", "erase"}
    assert not heavy_only & set(LEVELS["light"].names + LEVELS["medium"].names)
    assert heavy_only < set(LEVELS["heavy"].names)


def test_distort_is_deterministic_in_its_generator():
    crop = crop_of((20, 20))
    first, second = (distort(crop, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_perlin_is_bounded_centred_and_smooth():
    fields = np.stack([perlin(40, 60, 12.0, np.random.default_rng(seed)) for seed in range(50)])
    assert np.abs(fields).max() <= 1
    assert abs(fields.mean()) < 0.02
    assert fields.std() > 0.2
    assert np.abs(np.diff(fields, axis=1)).max() < 0.5


def test_perlin_vanishes_on_its_lattice():
    class NoOffset:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def random(self):
            return 0.0

        def uniform(self, *args):
            return self.rng.uniform(*args)

    field = perlin(33, 49, 8.0, NoOffset())  # type: ignore[arg-type]
    np.testing.assert_allclose(field[::8, ::8], 0, atol=1e-6)
    assert np.abs(field[4::8, 4::8]).max() > 0.1
