"""Bootstrap intervals: they hold the truth about as often as they say, and degrade sensibly."""

import math

import numpy as np
import pytest

from patchguard.evaluation.bootstrap import (
    BootstrapInterval,
    image_auroc_interval,
    pixel_auroc_interval,
    rate_intervals,
)
from patchguard.evaluation.histograms import Binning, PixelHistograms, PixelTruth
from patchguard.evaluation.metrics import image_metrics, rates_at

LABELS = np.arange(60) % 2 == 1
SEPARATION = 1.0


def scores(seed: int) -> np.ndarray:
    rng: np.random.Generator = np.random.default_rng(seed)
    return rng.normal(size=LABELS.size) + SEPARATION * LABELS


def upper_tail(x: float) -> float:
    return math.erfc(x / math.sqrt(2)) / 2


def share_holding(intervals: list[BootstrapInterval], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def pixel_histograms(seed: int, images: int) -> tuple[PixelHistograms, np.ndarray]:
    """Maps of independent pixels, shifted as a whole from image to image."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 2 == 1
    mask = np.zeros((6, 6), dtype=bool)
    mask[:, :3] = True
    masks = [mask if anomalous else np.zeros_like(mask) for anomalous in labels]
    shift = rng.normal(size=(images, 1, 1))
    maps = rng.normal(size=(images, 6, 6)) + shift + SEPARATION * np.stack(masks)
    return PixelTruth(masks).histograms(maps.astype(np.float32), Binning(0.0, 3.0, 256)), labels


def test_intervals_hold_the_true_values_about_as_often_as_they_say() -> None:
    """Binormal scores, in closed form; 95 % nominal, a little less with 30 images of each class."""
    seeds, threshold = range(200), 0.5
    auroc = [image_auroc_interval(scores(seed), LABELS, seed=seed) for seed in seeds]
    assert 0.89 <= share_holding(auroc, upper_tail(-SEPARATION / math.sqrt(2))) <= 0.99
    tpr, fpr = zip(
        *(rate_intervals(scores(seed), LABELS, threshold) for seed in seeds),
        strict=True,
    )
    # Exact intervals of a count hold it more often than they promise, never less.
    assert 0.93 <= share_holding(list(tpr), upper_tail(threshold - SEPARATION)) <= 1.0
    assert 0.93 <= share_holding(list(fpr), upper_tail(threshold)) <= 1.0


def test_pixel_intervals_know_that_pixels_of_one_image_go_together() -> None:
    """The truth is that of two thousand images; intervals over pixels would miss it mostly."""
    truth = pixel_histograms(0, 2000)[0].auroc().value
    intervals = [pixel_auroc_interval(*pixel_histograms(seed, 40)) for seed in range(1, 41)]
    assert 0.8 <= share_holding(intervals, truth) <= 1.0
    assert np.mean([high - low for low, high in intervals]) > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_intervals_surround_the_estimate(seed: int) -> None:
    low, high = image_auroc_interval(scores(seed), LABELS)
    assert low < image_metrics(scores(seed), LABELS).auroc < high
    for (low, high), rate in zip(
        rate_intervals(scores(seed), LABELS, 0.5), rates_at(scores(seed), LABELS, 0.5), strict=True
    ):
        assert low < rate < high
    histograms, labels = pixel_histograms(seed, 20)
    low, high = pixel_auroc_interval(histograms, labels)
    assert low < histograms.auroc().value < high


def test_the_same_seed_draws_the_same_images() -> None:
    histograms, labels = pixel_histograms(3, 20)
    for of_seed in (
        lambda seed: image_auroc_interval(scores(0), LABELS, seed=seed),
        lambda seed: pixel_auroc_interval(histograms, labels, seed=seed),
    ):
        assert of_seed(1) == of_seed(1)
        assert of_seed(1) != of_seed(2)


def test_perfect_separation_leaves_auroc_no_width_but_rates_their_doubt() -> None:
    separated = np.where(LABELS, 2.0, 1.0)
    assert image_auroc_interval(separated, LABELS) == (1.0, 1.0)
    tpr, fpr = rate_intervals(separated, LABELS, 1.5)
    # The bound for 30 of 30: p with p^30 = 2.5 %.
    assert tpr == pytest.approx((0.025 ** (1 / 30), 1.0))
    assert fpr == pytest.approx((0.0, 1 - 0.025 ** (1 / 30)))
    assert image_auroc_interval(np.zeros(60), LABELS) == (0.5, 0.5), "ties count half"


def test_a_class_of_one_image_is_in_every_resample() -> None:
    labels = np.array([True, False, False, False, False])
    low, high = image_auroc_interval([2.5, 1.0, 2.0, 3.0, 4.0], labels)
    assert 0.0 <= low < 0.5 < high <= 1.0
    tpr, fpr = rate_intervals([2.5, 1.0, 2.0, 3.0, 4.0], labels, 1.5)
    assert tpr == pytest.approx((0.025, 1.0))
    assert fpr.low < 0.75 <= fpr.high
    assert image_auroc_interval([2.0, 1.0], [True, False]) == (1.0, 1.0)


def test_without_a_class_there_is_no_interval() -> None:
    normal_only = np.zeros(4, dtype=bool)
    assert np.isnan(image_auroc_interval(np.arange(4.0), normal_only)).all()
    tpr, fpr = rate_intervals(np.arange(4.0), normal_only, 1.5)
    assert np.isnan(tpr).all()
    assert fpr.low < 0.5 < fpr.high
    histograms = PixelTruth([np.zeros((3, 3), dtype=bool)] * 4).histograms(
        np.zeros((4, 3, 3), np.float32), Binning(0.0, 1.0)
    )
    assert np.isnan(pixel_auroc_interval(histograms, normal_only)).all()


def test_scores_at_the_threshold_are_normal_in_their_own_precision() -> None:
    at_threshold = np.array([0.1, 0.2], dtype=np.float32)
    tpr, fpr = rate_intervals(at_threshold, [False, True], float(at_threshold[1]))
    assert tpr.low == fpr.low == 0.0
    assert rate_intervals(at_threshold, [False, True], 0.1)[1].high == 1.0
