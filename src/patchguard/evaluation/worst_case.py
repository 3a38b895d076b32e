"""The worst case over a suite: for each image the attack that hurts the metric most.

Image metrics depend on each image's score alone, so the worst case is the worst score. Pixel
metrics pool the pixels of all images and the worst choice for one image depends on the others:
there a greedy descent finds a choice that no change of a single image makes worse, as SEA does
for mIoU (Croce, Singh, Hein, ECCV 2024).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from patchguard.arrays import DoubleArray
from patchguard.errors import PatchGuardError
from patchguard.evaluation.histograms import (
    Indices,
    PixelHistograms,
    aupro,
    check_alike,
    histogram_auroc,
    total,
)

Metric = Literal["auroc", "aupro"]

_ROUNDING = 1e-12
"""Gains below this are rounding errors; following them could go on for ever."""


@dataclass(frozen=True)
class Selection:
    """One candidate for each image, [N], and the pooled metric of that mixture."""

    choice: Indices
    value: float


def worst_scores(
    candidates: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.floating], Indices]:
    """The worst score [N] of each image over all candidates, and which candidate [N] reached it.

    The highest score of a normal image and the lowest of an anomalous one: no other choice gives
    a lower image AUROC. A tie goes to the first candidate, which by convention is the clean
    image.

    Args:
        candidates: scores [K, N], higher = more anomalous.
        labels: [N], True = anomalous.

    Raises:
        PatchGuardError: a score is NaN, or the shapes do not fit.
    """
    scores, anomalous = np.asarray(candidates), np.asarray(labels, dtype=bool)
    if scores.ndim != 2 or len(scores) == 0 or scores.shape[1:] != anomalous.shape:
        raise PatchGuardError(
            f"candidates have shape {scores.shape} and labels {anomalous.shape}; "
            "they must be [K, N] and [N] with K at least 1"
        )
    if np.isnan(scores).any():
        raise PatchGuardError("candidates: contain NaN; the detector's output cannot be ranked")
    winner = np.argmax(np.where(anomalous, -scores, scores), axis=0)
    return scores[winner, np.arange(anomalous.size)], winner


def worst_selection(
    candidates: Sequence[PixelHistograms],
    *,
    metric: Metric = "auroc",
    attacked: npt.ArrayLike | None = None,
    starts: Sequence[npt.ArrayLike] = (),
) -> Selection:
    """A choice of one candidate for each image with a low pooled pixel metric.

    Coordinate descent from the best single candidate and from every given start: image by image
    the candidate is taken that lowers the metric most, all other images as they are, until no
    image can be changed with profit. Never above any single candidate or any start. A local
    optimum: all that is known of the lowest choice is that it is not below
    :func:`patchguard.evaluation.histograms.pixelwise_floor`.

    Curves over eps do not rise if the selection at a smaller eps, as made by
    :func:`patchguard.evaluation.histograms.select`, is one of the candidates.

    Args:
        candidates: of the same images; the first is the clean one.
        metric: what is lowered.
        attacked: [N] bool, the images for which a candidate is chosen; the others stay clean.
            By default all.
        starts: choices [N] to descend from as well; at images that are not attacked they do not
            count.

    Raises:
        PatchGuardError: candidates differ in their binning or number of images.
    """
    check_alike(candidates)
    free = np.ones(len(candidates[0]), dtype=bool)
    if attacked is not None:
        free &= np.asarray(attacked, dtype=bool)
    mixtures = (_AurocMixtures if metric == "auroc" else _AuproMixtures)(candidates)
    singles = [np.where(free, each, 0) for each in range(len(candidates))]
    first = min(singles, key=mixtures.value)
    given = [np.where(free, start, 0).astype(np.intp) for start in starts]
    ends = [mixtures.descend(start, np.flatnonzero(free)) for start in (first, *given)]
    return min(ends, key=lambda end: end.value)


class _Mixtures(ABC):
    """All mixtures of candidates, and a metric of their histograms summed over the images.

    Args:
        normal: histograms of the normal pixels, [N, bins] for each candidate.
        positive: what the metric counts of the anomalous ones, likewise.
    """

    def __init__(
        self, normal: Sequence[sparse.csr_array], positive: Sequence[sparse.csr_array]
    ) -> None:
        self._images = int(normal[0].shape[0])
        self._normal = sparse.vstack(normal, format="csr")
        self._positive = sparse.vstack(positive, format="csr")

    @abstractmethod
    def _metric(self, normal: DoubleArray, positive: DoubleArray) -> DoubleArray:
        """The metric of histograms [bins]."""

    @abstractmethod
    def _values(self, image: int, normal: DoubleArray, positive: DoubleArray) -> DoubleArray:
        """The metric [K] with each candidate for one image, but for a constant.

        ``normal`` and ``positive`` [bins] are the sums over the other images.
        """

    def value(self, choice: Indices) -> float:
        """The metric of a mixture."""
        return float(self._metric(*self._pooled(choice)))

    def descend(self, choice: Indices, images: Indices) -> Selection:
        """Change one of ``images`` after the other until a whole round has changed none."""
        choice = choice.copy()
        normal, positive = self._pooled(choice)
        changed = True
        while changed:
            changed = False
            for image in images:
                now = choice[image]
                normal -= self._of(image, self._normal, now)
                positive -= self._of(image, self._positive, now)
                values = self._values(image, normal, positive)
                best = np.argmin(values)
                if values[best] < values[now] - _ROUNDING:
                    choice[image], changed = best, True
                normal += self._of(image, self._normal, choice[image])
                positive += self._of(image, self._positive, choice[image])
        return Selection(choice, self.value(choice))

    def _pooled(self, choice: Indices) -> tuple[DoubleArray, DoubleArray]:
        """The histograms [bins] of a mixture, summed over its images."""
        rows = choice * self._images + np.arange(self._images)
        return total(self._normal[rows]), total(self._positive[rows])

    def _of(self, image: int, histograms: sparse.csr_array, candidate: int) -> DoubleArray:
        """The histogram [bins] of one image and candidate."""
        row = candidate * self._images + image
        filled = slice(histograms.indptr[row], histograms.indptr[row + 1])
        dense = np.zeros(histograms.shape[1])
        dense[histograms.indices[filled]] = histograms.data[filled]
        return dense

    def _all(self, image: int, histograms: sparse.csr_array) -> sparse.csr_array:
        """The histograms [K, bins] of one image."""
        return histograms[image :: self._images]


class _AurocMixtures(_Mixtures):
    """AUROC: what an image adds is the pairs won against all other images and within itself."""

    def __init__(self, candidates: Sequence[PixelHistograms]) -> None:
        super().__init__(
            [each.normal for each in candidates], [each.anomalous for each in candidates]
        )
        # No candidate changes how many pixels there are. Without a class no choice matters.
        self._pairs = total(candidates[0].normal).sum() * total(candidates[0].anomalous).sum() or 1
        self._own = [self._won_within(image) for image in range(self._images)]

    def _metric(self, normal: DoubleArray, positive: DoubleArray) -> DoubleArray:
        return histogram_auroc(normal, positive)

    def _values(self, image: int, normal: DoubleArray, positive: DoubleArray) -> DoubleArray:
        below = np.cumsum(normal) - normal / 2
        above = np.cumsum(positive[::-1])[::-1] - positive / 2
        won = self._all(image, self._positive) @ below + self._all(image, self._normal) @ above
        values: DoubleArray = (won + self._own[image]) / self._pairs
        return values

    def _won_within(self, image: int) -> DoubleArray:
        """Pairs [K] that each candidate wins among the pixels of one image."""
        normal = self._all(image, self._normal).toarray()
        below = np.cumsum(normal, axis=1) - normal / 2
        won: DoubleArray = np.asarray(self._all(image, self._positive).multiply(below).sum(axis=1))
        return won


class _AuproMixtures(_Mixtures):
    """AUPRO: the limit moves with every candidate, so each is given its whole curve."""

    def __init__(self, candidates: Sequence[PixelHistograms]) -> None:
        super().__init__(
            [each.normal for each in candidates], [each.overlap for each in candidates]
        )

    def _metric(self, normal: DoubleArray, positive: DoubleArray) -> DoubleArray:
        return aupro(normal, positive)

    def _values(self, image: int, normal: DoubleArray, positive: DoubleArray) -> DoubleArray:
        return aupro(
            normal + self._all(image, self._normal).toarray(),
            positive + self._all(image, self._positive).toarray(),
        )
