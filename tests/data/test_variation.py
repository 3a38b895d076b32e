"""Variations of a normal image."""

import numpy as np
import pytest

from patchguard.config import VariationConfig
from patchguard.data.variation import vary
from patchguard.errors import PatchGuardError

SIDE = 64


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A bright disk, off the centre of a dark image, and where it is."""
    rows, cols = np.mgrid[:SIDE, :SIDE]
    foreground = np.hypot(rows - 24, cols - 36) < 12
    image = np.where(foreground[..., None], 0.8, 0.2).astype(np.float32).repeat(3, axis=2)
    return image, foreground


def varied(seed: int = 0, **settings: float) -> tuple[np.ndarray, np.ndarray]:
    return vary(*scene(), np.random.default_rng(seed), VariationConfig(**settings))


def centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def test_nothing_is_changed_and_nothing_drawn_without_settings() -> None:
    rng = np.random.default_rng(0)
    image, foreground = vary(*scene(), rng, VariationConfig())
    assert np.array_equal(image, scene()[0]) and np.array_equal(foreground, scene()[1])
    assert rng.random() == np.random.default_rng(0).random()


def test_types_shapes_and_range_stay() -> None:
    image, foreground = varied(rotation=20, zoom=0.2, shift=0.1, contrast=0.9, brightness=0.5)
    assert image.dtype == np.float32 and image.shape == (SIDE, SIDE, 3)
    assert foreground.dtype == np.bool_ and foreground.shape == (SIDE, SIDE)
    assert image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_the_foreground_moves_with_the_image(seed: int) -> None:
    image, foreground = varied(seed, rotation=30, zoom=0.2, shift=0.1)
    bright = image[..., 0] > 0.5
    assert (bright & foreground).sum() > 0.95 * (bright | foreground).sum()
    assert not np.array_equal(foreground, scene()[1])


def test_a_shift_is_at_most_the_fraction_given() -> None:
    moved = [centre(varied(seed, shift=0.1)[1]) - centre(scene()[1]) for seed in range(40)]
    largest = np.abs(moved).max(axis=0)
    assert (largest <= 0.1 * SIDE + 0.5).all() and (largest > 0.07 * SIDE).all()


def test_zoom_goes_both_ways() -> None:
    area = scene()[1].sum()
    ratios = [varied(seed, zoom=0.2)[1].sum() / area for seed in range(40)]
    assert 1.2**-2 - 0.05 <= min(ratios) < 0.8 and 1.25 < max(ratios) <= 1.2**2 + 0.05


def test_a_rotation_turns_about_the_centre() -> None:
    middle = (SIDE - 1) / 2
    before = np.arctan2(*(centre(scene()[1]) - middle))
    turns = [np.arctan2(*(centre(varied(s, rotation=30)[1]) - middle)) - before for s in range(40)]
    degrees = np.degrees(turns)
    assert np.abs(degrees).max() <= 31 and degrees.min() < -20 and degrees.max() > 20


def test_light_keeps_every_edge_where_it_is() -> None:
    image, foreground = varied(contrast=0.3, brightness=0.1)
    assert np.array_equal(foreground, scene()[1])
    assert np.ptp(image[foreground]) < 1e-6 and np.ptp(image[~foreground]) < 1e-6
    assert not np.allclose(image, scene()[0], atol=0.005)


def test_a_setting_out_of_range_is_named() -> None:
    with pytest.raises(PatchGuardError, match=r"data\.variation\.shift"):
        VariationConfig(shift=0.8)


HEIGHT, WIDTH = 48, 96


def wide(seed: int, **settings: float) -> tuple[np.ndarray, np.ndarray]:
    """A variation of a disk of radius 10 a little off the centre of an image that is no square."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    foreground = np.hypot(rows - 26, cols - 54) < 10
    image = np.where(foreground[..., None], 0.8, 0.2).astype(np.float32).repeat(3, axis=2)
    return vary(image, foreground, np.random.default_rng(seed), VariationConfig(**settings))


@pytest.mark.parametrize("seed", range(5))
def test_a_circle_stays_a_circle_when_an_image_that_is_no_square_is_turned(seed: int) -> None:
    image, foreground = wide(seed, rotation=180)
    assert image.shape == (HEIGHT, WIDTH, 3) and foreground.shape == (HEIGHT, WIDTH)
    # Further out there are reflections of the disk.
    inner = slice((WIDTH - HEIGHT) // 2, (WIDTH + HEIGHT) // 2)
    distance = np.hypot(*(centre(foreground[:, inner]) - (HEIGHT - 1) / 2))
    assert distance == pytest.approx(np.hypot(2.5, 6.5), abs=0.5)
    for disk in (foreground[:, inner], image[:, inner, 0] > 0.5):
        height, width = (np.flatnonzero(disk.any(axis)).size for axis in (1, 0))
        assert abs(height - 19) <= 2 and abs(width - 19) <= 2


def test_a_shift_is_relative_to_each_side() -> None:
    moved = [centre(wide(seed, shift=0.1)[1]) - centre(wide(seed)[1]) for seed in range(40)]
    down, across = np.abs(moved).max(axis=0)
    assert 0.07 * HEIGHT < down <= 0.1 * HEIGHT + 0.5
    assert 0.07 * WIDTH < across <= 0.1 * WIDTH + 0.5
