"""Per-image histograms of anomaly maps: pixel metrics of any mixture of attacks, without the maps.

The worst case over a suite picks one attack for each image. Pooled pixel metrics of thousands of
such mixtures are affordable only from histograms, one set for each image and attack, that are
added up. The bins are fixed before any attack is run, so that histograms of all attacks add up,
and cover the whole real line, so that no value falls outside.

What binning costs is known: pixels of one bin count as tied, and `Bounded` says what the metric
would be if all those ties were lost and if all were won.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from patchguard.arrays import DoubleArray
from patchguard.data.images import resize_map
from patchguard.errors import PatchGuardError
from patchguard.evaluation.metrics import region_weights

Indices = npt.NDArray[np.intp]

FPR_LIMIT = 0.3
"""Where the PRO curve is cut, as in :func:`patchguard.evaluation.metrics.pixel_metrics`."""

_BLOCK = 2**16
"""Pixels binned at a time: temporaries stay in the processor's cache, which is twice as fast."""


@dataclass(frozen=True)
class Bounded:
    """A metric from histograms: ``low`` and ``high`` hold the metric of the unbinned maps.

    ``value`` counts pixels of one bin as tied.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Binning:
    """Bins of equal width in ``u = (1 + z / (1 + |z|)) / 2``, where ``z = (x - centre) / spread``.

    ``u`` maps the real line (infinities included) to [0, 1]: half of the bins cover
    ``centre +- spread``, and wherever an attack drives a map, its order is kept, more coarsely.
    """

    centre: float
    spread: float
    bins: int = 4096

    @classmethod
    def of(cls, maps: npt.ArrayLike) -> Binning:
        """The binning for clean anomaly maps: their median, and their 1 % to 99 % range.

        Maps that are constant, or nearly, are given their whole range, or else 1, as spread.

        Raises:
            PatchGuardError: a value is not finite, or there is none.
        """
        values = np.asarray(maps, dtype=np.float32).ravel()
        if values.size == 0 or not np.isfinite(values).all():
            raise PatchGuardError("anomaly maps: no values, or not all finite; cannot be binned")
        low, centre, high = np.quantile(values, (0.01, 0.5, 0.99)).astype(np.float64)
        return cls(float(centre), float(high - low) or float(np.ptp(values)) or 1.0)

    def indices(self, values: npt.NDArray[np.float32]) -> Indices:
        """The bin in 0..bins-1 of each value; never lower for a higher value."""
        flat = values.astype(np.float32, copy=False).ravel()
        found = np.empty(flat.shape, dtype=np.intp)
        for start in range(0, flat.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            found[block] = self._positions(flat[block])
        return found.reshape(values.shape)

    def _positions(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        # Each step is monotone after rounding too, which z / (1 + |z|) computed as it stands is
        # not: the bounds on the metrics rest on it.
        half = np.float32(self.bins / 2)
        z = (values - np.float32(self.centre)) / np.float32(self.spread)
        u: npt.NDArray[np.float32] = np.abs(z)
        u += 1
        np.divide(half, u, out=u)
        np.subtract(half, u, out=u)
        np.copysign(u, z, out=u)
        u += half
        return np.minimum(u, np.float32(self.bins - 1), out=u)


@dataclass(frozen=True)
class PixelHistograms:
    """Histograms of the anomaly maps of `N` images over the bins of one binning, ascending.

    Each is a sparse array [N, bins] (CSR, 8 bytes, for ``overlap`` 12, for each bin that is not
    empty): maps fill few bins, and those of normal images none but ``normal``.

    Attributes:
        binning: shared by all histograms that are compared or added up.
        normal: number of normal pixels, uint32.
        anomalous: number of anomalous pixels, uint32.
        overlap: anomalous pixels, each weighing 1 / area of its 8-connected region, float64.
    """

    binning: Binning
    normal: sparse.csr_array
    anomalous: sparse.csr_array
    overlap: sparse.csr_array

    def __len__(self) -> int:
        return int(self.normal.shape[0])

    def auroc(self) -> Bounded:
        """Pixel AUROC pooled over the images; nan when a class is absent."""
        normal, anomalous = total(self.normal), total(self.anomalous)
        low, value, high = (
            float(histogram_auroc(normal, anomalous, credit)) for credit in (0.0, 0.5, 1.0)
        )
        return Bounded(value, low, high)

    def aupro(self) -> Bounded:
        """AUPRO up to a false positive rate of 0.3; nan when a class is absent."""
        curve = _ProCurve(total(self.normal), total(self.overlap))
        return Bounded(float(curve.area()), float(curve.lowest()), float(curve.highest()))


class PixelTruth:
    """Native-resolution masks with their regions labelled, once for all attacks.

    Args:
        masks: bool [H, W] each, True = anomalous; sizes may differ.
    """

    def __init__(self, masks: Sequence[npt.NDArray[np.bool_]]) -> None:
        self._masks = [np.asarray(mask, dtype=bool) for mask in masks]
        self._weights = [region_weights(mask) for mask in self._masks]

    def histograms(self, maps: npt.NDArray[np.float32], binning: Binning) -> PixelHistograms:
        """Histograms of anomaly maps [N, H, W], each resized to its mask first.

        Raises:
            PatchGuardError: there is not one map for each mask, or one is not finite.
        """
        self._check(maps)
        shape = (len(maps), binning.bins)
        normal, anomalous = np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
        overlap = np.zeros(shape)
        for image, anomaly_map in enumerate(maps):
            mask = self._masks[image]
            indices = binning.indices(resize_map(anomaly_map, mask.shape))
            marked = indices[mask]
            anomalous[image] = np.bincount(marked, minlength=binning.bins)
            normal[image] = np.bincount(indices.ravel(), minlength=binning.bins) - anomalous[image]
            overlap[image] = np.bincount(marked, self._weights[image], binning.bins)
        return PixelHistograms(binning, *map(sparse.csr_array, (normal, anomalous, overlap)))

    def _check(self, maps: npt.NDArray[np.float32]) -> None:
        if maps.ndim != 3 or len(maps) != len(self._masks):
            raise PatchGuardError(
                f"anomaly maps have shape {maps.shape}; expected [{len(self._masks)}, H, W], "
                "one for each mask"
            )
        # Resizing turns infinities into NaN where it weighs them with 0.
        finite = np.isfinite(maps).all(axis=(1, 2))
        if not finite.all():
            raise PatchGuardError(
                f"anomaly map {int(np.argmin(finite))}: contains NaN or infinity; "
                "the detector's output cannot be ranked"
            )


def select(candidates: Sequence[PixelHistograms], choice: npt.ArrayLike) -> PixelHistograms:
    """The histograms of the mixture that takes image ``i`` from candidate ``choice[i]``.

    Args:
        candidates: of the same images.
        choice: [N], each in 0..len(candidates)-1.

    Raises:
        PatchGuardError: candidates differ in their binning or number of images.
    """
    check_alike(candidates)
    rows = np.asarray(choice, dtype=np.intp) * len(candidates[0]) + np.arange(len(candidates[0]))
    return PixelHistograms(
        candidates[0].binning,
        *(
            sparse.vstack([getattr(each, kind) for each in candidates], format="csr")[rows]
            for kind in ("normal", "anomalous", "overlap")
        ),
    )


def pixelwise_floor(highest: PixelHistograms, lowest: PixelHistograms) -> PixelHistograms:
    """A mixture of pixels: normal ones from one set of maps, anomalous ones from another.

    Of the pixelwise maximum and minimum, at the detector's size, over all attacked maps, its
    metrics are lower bounds on those of every choice of one attack for each image: resizing has
    non-negative weights, so the resized maximum is nowhere below any resized map. No single
    image need reach them.

    Raises:
        PatchGuardError: the two differ in their binning or number of images.
    """
    check_alike([highest, lowest])
    return PixelHistograms(highest.binning, highest.normal, lowest.anomalous, lowest.overlap)


def check_alike(candidates: Sequence[PixelHistograms]) -> None:
    """Raise `PatchGuardError` unless all share one binning and one number of images."""
    kinds = {(each.binning, len(each)) for each in candidates}
    if len(kinds) != 1:
        raise PatchGuardError(
            f"histograms of {len(kinds)} different binnings or numbers of images; "
            "make them all with the same PixelTruth and Binning"
        )


def total(histograms: sparse.csr_array) -> DoubleArray:
    """The sum over images, [bins]."""
    summed: DoubleArray = histograms.sum(axis=0, dtype=np.float64)
    return summed


def histogram_auroc(
    normal: DoubleArray, anomalous: DoubleArray, tie_credit: float = 0.5
) -> DoubleArray:
    """AUROC [...] of histograms [..., bins], a pair within one bin counting ``tie_credit``.

    nan where a class is absent.
    """
    below = np.cumsum(normal, axis=-1)
    pairs = below[..., -1] * anomalous.sum(axis=-1)
    below -= (1 - tie_credit) * normal
    with np.errstate(invalid="ignore"):
        ratio: DoubleArray = np.einsum("...b,...b->...", below, anomalous) / pairs
    return ratio


def aupro(normal: DoubleArray, overlap: DoubleArray) -> DoubleArray:
    """AUPRO [...] of histograms [..., bins]; pixels of one bin are a straight line of the curve.

    nan where a class is absent.
    """
    return _ProCurve(normal, overlap).area()


class _ProCurve:
    """Overlap against false positive rate, cut at the limit, one step for each bin from the top.

    The corners between bins are exact; within a bin the true curve rises anyhow, from the lower
    left to the upper right corner.
    """

    def __init__(self, normal: DoubleArray, overlap: DoubleArray) -> None:
        fpr, reached = _descending_share(normal), _descending_share(overlap)
        step = np.diff(fpr, prepend=0.0)
        self._width = np.diff(np.minimum(fpr, FPR_LIMIT), prepend=0.0)
        self._kept = np.divide(self._width, step, out=np.zeros_like(step), where=step != 0)
        self._rise = np.diff(reached, prepend=0.0)
        self._before = reached - self._rise

    def area(self) -> DoubleArray:
        """With straight lines through the bins."""
        return self._below(self._before + self._rise * self._kept / 2)

    def lowest(self) -> DoubleArray:
        """With the normal pixels of each bin above its anomalous ones."""
        return self._below(self._before)

    def highest(self) -> DoubleArray:
        """With the anomalous pixels of each bin above its normal ones."""
        return self._below(self._before + self._rise)

    def _below(self, height: DoubleArray) -> DoubleArray:
        area: DoubleArray = np.einsum("...b,...b->...", self._width, height) / FPR_LIMIT
        return area


def _descending_share(histograms: DoubleArray) -> DoubleArray:
    """The share [..., bins] of each histogram in its top bin, in its top two, and so on."""
    cumulative = np.cumsum(histograms[..., ::-1], axis=-1)
    with np.errstate(invalid="ignore"):
        share: DoubleArray = cumulative / cumulative[..., -1:]
    return share
