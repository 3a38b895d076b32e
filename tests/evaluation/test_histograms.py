"""Histograms against the exact metrics of the same maps: within the bounds, or equal."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from patchguard.data.images import resize_map
from patchguard.errors import PatchGuardError
from patchguard.evaluation.histograms import (
    Binning,
    Bounded,
    PixelHistograms,
    PixelTruth,
    pixelwise_floor,
    select,
)
from patchguard.evaluation.metrics import pixel_metrics
from patchguard.results.schema import PixelMetrics

SHAPES = [(24, 24), (17, 40), (33, 9), (24, 24), (8, 8), (12, 30)]
SIZE = 12

DRAWS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda rng: rng.normal(size=(SIZE, SIZE)),
    "heavy tails": lambda rng: rng.standard_cauchy(size=(SIZE, SIZE)) * 1e3,
    "far from 0": lambda rng: 40 + rng.normal(size=(SIZE, SIZE)),
    "tiny": lambda rng: rng.normal(size=(SIZE, SIZE)) * 1e-20,
    "two values": lambda rng: rng.integers(0, 2, (SIZE, SIZE)),
    "constant": lambda rng: np.full((SIZE, SIZE), -3.0),
}


def random_masks(seed: int) -> list[np.ndarray]:
    """Ragged regions, and every third image without any."""
    rng = np.random.default_rng(seed)
    return [rng.random(shape) < 0.15 * (i % 3 > 0) for i, shape in enumerate(SHAPES)]


def random_maps(draw: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([DRAWS[draw](rng) for _ in SHAPES]).astype(np.float32)


def exact(maps: np.ndarray, masks: list[np.ndarray]) -> PixelMetrics:
    resized = [resize_map(m, mask.shape) for m, mask in zip(maps, masks, strict=True)]
    return pixel_metrics(resized, masks)


def holds(bounded: Bounded, value: float) -> bool:
    rounding = 1e-12
    return bounded.low - rounding <= value <= bounded.high + rounding


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("bins", [2, 16, 4096])
def test_metrics_of_the_maps_lie_within_the_bounds(draw: str, bins: int) -> None:
    maps, masks = random_maps(draw, 1), random_masks(2)
    of_clean = Binning.of(maps)
    binning = Binning(of_clean.centre, of_clean.spread, bins)
    histograms = PixelTruth(masks).histograms(maps, binning)
    metrics = exact(maps, masks)
    for bounded, value in (
        (histograms.auroc(), metrics.auroc),
        (histograms.aupro(), metrics.aupro),
    ):
        assert holds(bounded, value)
        assert holds(bounded, bounded.value)


def test_bounds_are_tight_on_the_maps_that_set_the_binning() -> None:
    maps, masks = random_maps("normal", 3), random_masks(4)
    histograms = PixelTruth(masks).histograms(maps, Binning.of(maps))
    for bounded in (histograms.auroc(), histograms.aupro()):
        assert bounded.high - bounded.low < 2e-3
        assert bounded.value == pytest.approx((bounded.low + bounded.high) / 2, abs=1e-3)


def test_equal_to_the_exact_metrics_where_each_bin_holds_one_value() -> None:
    rng = np.random.default_rng(5)
    masks = [rng.random((12, 12)) < 0.3 for _ in range(4)]
    maps = rng.integers(0, 9, (4, 12, 12)).astype(np.float32)
    histograms = PixelTruth(masks).histograms(maps, Binning(4.0, 4.0))
    metrics = exact(maps, masks)
    assert histograms.auroc().value == pytest.approx(metrics.auroc, abs=1e-14)
    assert histograms.aupro().value == pytest.approx(metrics.aupro, abs=1e-14)


def test_histograms_count_pixels_and_regions() -> None:
    masks = random_masks(6)
    maps = random_maps("normal", 7)
    histograms = PixelTruth(masks).histograms(maps, Binning.of(maps))
    assert len(histograms) == len(masks)
    marked = [int(mask.sum()) for mask in masks]
    assert histograms.anomalous.sum(axis=1).tolist() == marked
    assert histograms.normal.sum(axis=1).tolist() == [
        mask.size - count for mask, count in zip(masks, marked, strict=True)
    ]
    one_region = np.zeros((8, 8), dtype=bool)
    one_region[0, 0] = one_region[1, 1] = one_region[5:7, 5:7] = True
    overlap = PixelTruth([one_region]).histograms(maps[:1], Binning.of(maps)).overlap
    assert overlap.sum() == pytest.approx(2)


@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (-37.3, 0.013), (1e-3, 4e4)])
def test_bins_never_fall_as_values_rise(centre: float, spread: float) -> None:
    """Also for neighbouring floats, around every edge, and for whatever a float can hold."""
    binning = Binning(centre, spread)
    patterns = np.random.default_rng(8).integers(0, 2**32, 200_000, dtype=np.uint32)
    anywhere = patterns.view(np.float32)
    around = centre + spread * np.linspace(-5, 5, 20_001)
    edges = around.astype(np.float32)
    neighbours = [edges, np.nextafter(edges, np.float32(-np.inf)), np.nextafter(edges, np.inf)]
    with np.errstate(all="ignore"):
        values = np.sort(np.concatenate([anywhere[np.isfinite(anywhere)], *neighbours]))
        indices = binning.indices(values)
    assert (np.diff(indices) >= 0).all()
    assert (indices[0], indices[-1]) == (0, binning.bins - 1)


def test_bins_cover_the_line_half_of_them_around_the_centre() -> None:
    binning = Binning(2.0, 0.5, 8)
    values = np.array([-np.inf, -1e30, 1.5, 1.999, 2.0, 2.499, 2.501, 1e30, np.inf], np.float32)
    assert binning.indices(values).tolist() == [0, 0, 2, 3, 4, 5, 6, 7, 7]
    assert binning.indices(values.reshape(3, 3)).shape == (3, 3)


def test_binning_is_that_of_the_clean_maps() -> None:
    ramp = np.arange(1001, dtype=np.float32).reshape(1, 7, 143)
    assert Binning.of(ramp) == Binning(500.0, 980.0)
    assert Binning.of(np.full((1, 4, 4), 7.0)) == Binning(7.0, 1.0)
    outlier = np.zeros((1, 100, 100))
    outlier[0, 0, 0] = 3.0
    assert Binning.of(outlier) == Binning(0.0, 3.0)


def test_selected_images_come_from_their_candidate() -> None:
    masks, truth = random_masks(9), PixelTruth(random_masks(9))
    first, second = random_maps("normal", 10), random_maps("far from 0", 11)
    binning = Binning.of(first)
    choice = np.array([0, 1, 1, 0, 1, 0])
    selected = select([truth.histograms(m, binning) for m in (first, second)], choice)
    mixed = truth.histograms(np.where(choice[:, None, None] == 1, second, first), binning)
    for kind in ("normal", "anomalous", "overlap"):
        found, expected = (getattr(each, kind).toarray() for each in (selected, mixed))
        np.testing.assert_array_equal(found, expected)
    assert len(masks) == len(selected)


def test_pixelwise_floor_lies_below_every_mixture() -> None:
    masks, truth = random_masks(12), PixelTruth(random_masks(12))
    attacked = np.stack([random_maps("normal", seed) for seed in range(13, 18)])
    binning = Binning.of(attacked[0])
    floor = pixelwise_floor(
        truth.histograms(attacked.max(axis=0), binning),
        truth.histograms(attacked.min(axis=0), binning),
    )
    candidates = [truth.histograms(maps, binning) for maps in attacked]
    rng = np.random.default_rng(18)
    for _ in range(20):
        choice = rng.integers(0, len(attacked), len(masks))
        mixture = select(candidates, choice)
        assert floor.auroc().value <= mixture.auroc().value
        assert floor.aupro().value <= mixture.aupro().value
        maps = attacked[choice, np.arange(len(masks))]
        assert floor.auroc().low <= exact(maps, masks).auroc


def test_a_class_that_is_absent_leaves_nan() -> None:
    maps = random_maps("normal", 19)[:1]
    for mask in (np.zeros((5, 5), dtype=bool), np.ones((5, 5), dtype=bool)):
        histograms = PixelTruth([mask]).histograms(maps, Binning.of(maps))
        assert math.isnan(histograms.auroc().value) and math.isnan(histograms.aupro().value)


def of(count: int, binning: Binning) -> PixelHistograms:
    masks = [np.eye(4, dtype=bool)] * count
    return PixelTruth(masks).histograms(np.zeros((count, 4, 4), np.float32), binning)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Binning.of(np.array([])), "no values"),
        (lambda: Binning.of(np.array([0.0, np.inf])), "not all finite"),
        (
            lambda: PixelTruth([np.eye(4, dtype=bool)]).histograms(
                np.zeros((2, 4, 4), np.float32), Binning(0.0, 1.0)
            ),
            r"expected \[1, H, W\]",
        ),
        (
            lambda: PixelTruth([np.eye(4, dtype=bool)] * 2).histograms(
                np.stack([np.eye(4), np.full((4, 4), np.nan)]).astype(np.float32),
                Binning(0.0, 1.0),
            ),
            "anomaly map 1: contains NaN",
        ),
        (lambda: select([of(1, Binning(0.0, 1.0)), of(1, Binning(0.0, 2.0))], [0]), "2 different"),
        (lambda: pixelwise_floor(of(1, Binning(0, 1)), of(2, Binning(0, 1))), "2 different"),
    ],
)
def test_unusable_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(PatchGuardError, match=message):
        call()
