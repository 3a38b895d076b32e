"""The worst case of localization over the attacks of a threat, radius by radius."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from patchguard.data.images import resize_map
from patchguard.evaluation.histograms import (
    Binning,
    PixelTruth,
    pixelwise_floor,
    select,
)
from patchguard.evaluation.metrics import pixel_metrics
from patchguard.evaluation.outcome import Attacked, Mixture, Scored
from patchguard.evaluation.test_set import TestSet
from patchguard.evaluation.worst_case import Metric, worst_selection
from patchguard.results.schema import CLEAN, PixelMetrics

Maps = np.ndarray | Sequence[np.ndarray]
"""[N, H, W], at the detector's size."""

ROWS = {"both": (True, True), "anomalies": (True, False), "normals": (False, True)}
"""Which classes of the test set are attacked: (anomalous, normal)."""


class PixelCandidates:
    """All maps that an attacker may choose from: the clean ones and those of every attack so far.

    Maps of a smaller radius stay candidates of a larger one, so that no worst case rises with eps.

    Args:
        test: images with ground truth.
        clean: what the detector says of them.
    """

    def __init__(self, test: TestSet, clean: Scored) -> None:
        assert test.masks is not None
        self._masks = test.masks
        self._truth = PixelTruth(test.masks)
        self._labels = test.labels
        self._binning = Binning.of(clean.maps)
        self._names = [CLEAN]
        self._maps = [clean.maps]
        self._histograms = [self._truth.histograms(clean.maps, self._binning)]
        self._highest, self._lowest = clean.maps.copy(), clean.maps.copy()
        self._choices: dict[tuple[str, Metric], np.ndarray] = {}

    def add(self, entry: Attacked) -> dict[str, float]:
        """One more candidate; returns its own pixel metrics, from histograms."""
        maps = entry.scored.maps
        histograms = self._truth.histograms(maps, self._binning)
        self._names.append(entry.attack)
        self._maps.append(maps)
        self._histograms.append(histograms)
        np.maximum(self._highest, maps, out=self._highest)
        np.minimum(self._lowest, maps, out=self._lowest)
        return {"auroc": histograms.auroc().value, "aupro": histograms.aupro().value}

    def mixtures(self) -> dict[str, Mixture]:
        """The worst mixture by row."""
        return {row: self._mixture(row) for row in ROWS}

    def floor(self) -> float:
        """Pixel AUROC with every pixel at its own worst at once."""
        highest = self._truth.histograms(self._highest, self._binning)
        lowest = self._truth.histograms(self._lowest, self._binning)
        return pixelwise_floor(highest, lowest).auroc().value

    def _mixture(self, row: str) -> Mixture:
        """That for AUROC; its AUPRO is that of the mixture that is worst for AUPRO."""
        choice, auroc = self._chosen(row, "auroc")
        for_overlap, aupro = self._chosen(row, "aupro")
        exact = self._exact(choice)
        other = exact if np.array_equal(choice, for_overlap) else self._exact(for_overlap)
        return Mixture(
            {
                **exact.model_dump(exclude_unset=True),
                "auroc": min(exact.auroc, auroc),
                "aupro": min(exact.aupro, other.aupro, aupro),
            },
            tuple(self._names[which] for which in choice),
            select(self._histograms, choice),
        )

    def _chosen(self, row: str, metric: Metric) -> tuple[np.ndarray, float]:
        """The candidate of each image [N], and the metric of their histograms."""
        anomalies, normals = ROWS[row]
        before = self._choices.get((row, metric))
        found = worst_selection(
            self._histograms,
            metric=metric,
            attacked=np.where(self._labels, anomalies, normals),
            starts=() if before is None else (before,),
        )
        self._choices[row, metric] = found.choice
        return found.choice, found.value

    def _exact(self, choice: np.ndarray) -> PixelMetrics:
        maps = [self._maps[which][image] for image, which in enumerate(choice)]
        return metrics_of(maps, self._masks)


class _Resized(Sequence[np.ndarray]):
    """Maps at the resolution of their masks, resized when asked for: all at once would not fit."""

    def __init__(self, maps: Maps, masks: Sequence[np.ndarray]) -> None:
        self._maps, self._masks = maps, masks

    def __len__(self) -> int:
        return len(self._masks)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> _Resized: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | _Resized:
        if isinstance(index, slice):
            return _Resized(self._maps[index], self._masks[index])
        return resize_map(self._maps[index], self._masks[index].shape)


def metrics_of(maps: Maps, masks: Sequence[np.ndarray]) -> PixelMetrics:
    """Metrics of maps [N, H, W] at the resolution of the masks."""
    return pixel_metrics(_Resized(maps, masks), masks)
