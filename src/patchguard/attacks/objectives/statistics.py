"""What the objectives for localization know of a whole test set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from patchguard.arrays import DoubleArray
from patchguard.errors import PatchGuardError


@dataclass(frozen=True)
class PixelStatistics:
    """How a detector's maps lie on a test set.

    Attributes:
        threshold: where as large a share of the anomalous pixels falls below as of the normal
            ones above (equal error rates), in raw units of the map.
        scale: median distance of a pixel from the threshold, both classes counting equally, in
            raw units; positive.
        anomalous_fraction: anomalous pixels as a fraction of all, in (0, 1).
    """

    threshold: float
    scale: float
    anomalous_fraction: float

    @classmethod
    def of(cls, maps: np.ndarray | Tensor, coverage: np.ndarray | Tensor) -> PixelStatistics:
        """Of maps [N, H, W] and the anomalous fraction of each pixel [N, H, W], in [0, 1].

        A partly covered pixel counts in both classes, by its fractions.

        Raises:
            PatchGuardError: shapes that differ, a map that is not finite, or an absent class.
        """
        values, anomalous = pixels(maps, coverage)
        normal = 1 - anomalous
        missed, passed = anomalous / anomalous.sum(), normal / normal.sum()
        threshold = _equal_error(values, missed, passed)
        return cls(
            threshold=threshold,
            scale=_spread(np.abs(values - threshold), missed + passed),
            anomalous_fraction=float(anomalous.mean()),
        )


def pixels(
    maps: np.ndarray | Tensor, coverage: np.ndarray | Tensor
) -> tuple[DoubleArray, DoubleArray]:
    """Values and anomalous fractions of all pixels, each [N·H·W].

    Raises:
        PatchGuardError: shapes that differ, a map that is not finite, or an absent class.
    """
    values, anomalous = _array(maps), _array(coverage)
    if values.shape != anomalous.shape:
        raise PatchGuardError(
            f"anomaly maps have shape {values.shape} and masks {anomalous.shape}; "
            "both must be [N, H, W] and equal"
        )
    if not np.isfinite(values).all():
        raise PatchGuardError("the anomaly maps contain NaN or infinity; check the detector")
    if not 0 < anomalous.sum() < anomalous.size:
        raise PatchGuardError(
            "attacks on localization need normal and anomalous pixels; give images with masks"
        )
    return values.ravel(), anomalous.ravel()


def _array(values: np.ndarray | Tensor) -> DoubleArray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array.astype(np.float64)


def _equal_error(values: DoubleArray, missed: DoubleArray, passed: DoubleArray) -> float:
    """The middle of the gap above the pixel at which the two error rates meet."""
    order = np.argsort(values)
    # Below a threshold: the missed anomalous share, plus the passed normal share, which is 1 less
    # the share of false alarms. Rounding must not carry the crossing past a gap between classes.
    balance = np.cumsum((missed + passed)[order])
    at = min(int(np.searchsorted(balance, 1 - 1e-9)), values.size - 1)
    above = min(at + 1, values.size - 1)
    return float(values[order[at]] + values[order[above]]) / 2


def _spread(distances: DoubleArray, weights: DoubleArray) -> float:
    """Weighted median; the mean where that is 0, and 1 where all are."""
    order = np.argsort(distances)
    reached = np.cumsum(weights[order])
    median = float(distances[order[int(np.searchsorted(reached, reached[-1] / 2))]])
    return median or float(np.average(distances, weights=weights)) or 1.0
