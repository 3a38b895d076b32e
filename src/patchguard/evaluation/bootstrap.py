"""Intervals: how far a metric would move on another test set of the same size.

Those of AUROC are percentile bootstraps: images are drawn with replacement, normal and anomalous
ones apart, so that every resample has as many of each as the test set (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Pixels are not drawn: those of one image are no
independent observations. What the intervals leave out is another training run and another run of
the attacks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from patchguard.arrays import DoubleArray
from patchguard.evaluation.histograms import PixelHistograms, histogram_auroc

RESAMPLES = 1000
CONFIDENCE = 0.95

_Mask = npt.NDArray[np.bool_]


class BootstrapInterval(NamedTuple):
    """A percentile interval of a metric; nan where the metric is not defined."""

    low: float
    high: float


UNDEFINED = BootstrapInterval(float("nan"), float("nan"))


def image_auroc_interval(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, seed: int = 0
) -> BootstrapInterval:
    """95 % interval of the image AUROC of scores [N] with labels [N], True = anomalous."""
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        return UNDEFINED
    draws = _draws(labels, seed)
    order = np.argsort(scores[~labels])
    normal = scores[~labels][order]
    drawn_below = np.cumsum(draws[:, ~labels][:, order], axis=1)
    drawn_below = np.pad(drawn_below, ((0, 0), (1, 0)))
    won, not_lost = (
        drawn_below[:, np.searchsorted(normal, scores[labels], side)] for side in ("left", "right")
    )
    pairs = normal.size * int(labels.sum())
    return _interval((draws[:, labels] * (won + not_lost)).sum(axis=1) / (2 * pairs))


def rate_intervals(
    scores: npt.ArrayLike, labels: npt.ArrayLike, threshold: float
) -> tuple[BootstrapInterval, BootstrapInterval]:
    """95 % intervals of the true and false positive rate of the verdicts `score > threshold`.

    Exact binomial ones (Clopper and Pearson 1934): resamples of images that all pass would know
    no doubt. The threshold is taken as given: it comes from other images.
    """
    labels = np.asarray(labels, dtype=bool)
    # In float64, as numpy would round the threshold to the precision of float32 scores.
    verdicts = np.asarray(scores).astype(np.float64) > threshold
    return _rate_interval(verdicts[labels]), _rate_interval(verdicts[~labels])


def pixel_auroc_interval(
    histograms: PixelHistograms, labels: npt.ArrayLike, *, seed: int = 0
) -> BootstrapInterval:
    """95 % interval of the pooled pixel AUROC, from the histograms of N images with labels [N]."""
    draws = _draws(np.asarray(labels, dtype=bool), seed).astype(np.float64)
    return _interval(
        histogram_auroc(draws @ histograms.normal.toarray(), draws @ histograms.anomalous.toarray())
    )


def _draws(labels: _Mask, seed: int) -> npt.NDArray[np.int64]:
    """How often each resample holds each image, [RESAMPLES, N]."""
    rng = np.random.default_rng(seed)
    draws = np.empty((RESAMPLES, labels.size), dtype=np.int64)
    for members in (labels, ~labels):
        count = int(members.sum())
        if count:
            draws[:, members] = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return draws


def _rate_interval(verdicts: _Mask) -> BootstrapInterval:
    if verdicts.size == 0:
        return UNDEFINED
    found = stats.binomtest(int(verdicts.sum()), verdicts.size).proportion_ci(CONFIDENCE)
    return BootstrapInterval(float(found.low), float(found.high))


def _interval(values: DoubleArray) -> BootstrapInterval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return BootstrapInterval(float(low), float(high))
