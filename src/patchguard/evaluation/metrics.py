"""Ranking metrics for image scores and anomaly maps: exact, from one shared sort.

Everything is counted from ranks: scores are only ever compared, never squashed, binned or
normalised, so every value is unchanged by a strictly increasing map of the scores.

All curves here bend only at scores of anomalous items (between two of them only false positives
are added), so the few anomalous scores, and how many normal ones lie above each, hold AUROC,
average precision, F1-max and AUPRO together. Maps are read twice, one at a time: for the anomalous
scores, and to count the normal ones, so that memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from patchguard.arrays import DoubleArray
from patchguard.data.samples import GOOD
from patchguard.errors import PatchGuardError
from patchguard.results.schema import ImageMetrics, PixelMetrics

_Floats = npt.NDArray[np.floating]
Counts = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)

MOST_STEPS = 2**21
"""Different scores of anomalous pixels that are told apart. With more, neighbours are one step:
each step then holds about two of ``MOST_STEPS`` parts of the pixels and of the overlap."""

_BLOCK = 2**22
"""Normal pixels that are sorted at a time."""


@dataclass(frozen=True)
class _Steps:
    """The `k` distinct scores of anomalous items, ascending, with how many and how much has each.

    `counts` are items, `weights` their sums of weights.
    """

    scores: _Floats
    counts: Counts
    weights: DoubleArray

    @classmethod
    def of(cls, scores: _Floats, counts: Counts, weights: DoubleArray) -> _Steps:
        """Those of items `[p]` in any order."""
        order = np.argsort(scores)
        ascending = scores[order]
        starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1])[: order.size])
        return cls(ascending, counts[order], weights[order])._joined(starts)

    def coarse(self) -> _Steps:
        """About `MOST_STEPS` at most: neighbours are joined so that none has much of either."""
        if len(self.scores) <= MOST_STEPS:
            return self
        share = np.cumsum(self.counts) / self.counts.sum()
        share += np.cumsum(self.weights) / self.weights.sum()
        cells = np.floor(share * (MOST_STEPS / 2)).astype(np.int64)
        return self._joined(np.flatnonzero(np.diff(cells, prepend=-1)))

    def _joined(self, starts: Counts) -> _Steps:
        """Runs that begin at these places are one step, at their lowest score."""
        if len(starts) == len(self.scores):
            return self
        return _Steps(
            self.scores[starts],
            np.add.reduceat(self.counts, starts),
            np.add.reduceat(self.weights, starts),
        )


@dataclass(frozen=True)
class _Ranking:
    """The `k` distinct scores of anomalous items, descending, and what lies at or above each.

    `tp` and `fp` count items scored `>= thresholds`, `fp_above` normal items scored `>` them;
    `overlap` in [0, 1] is the weighted share of anomalous items scored `>= thresholds`.
    """

    thresholds: _Floats
    tp: Counts
    fp: Counts
    fp_above: Counts
    overlap: DoubleArray
    positives: int
    negatives: int


def image_metrics(scores: npt.ArrayLike, labels: npt.ArrayLike) -> ImageMetrics:
    """Metrics of image scores `[n]` (higher = more anomalous) against labels `[n]` (1 = anomalous).

    Raises `PatchGuardError` for NaN scores, no scores, and unequal lengths.
    """
    scores, labels = _scores(scores, "image scores"), _binary(labels, "image labels")
    _check_vectors(scores, labels)
    each = np.ones(int(labels.sum()), dtype=np.int64)
    ranking = _rank(_Steps.of(scores[labels], each, each.astype(float)), [scores[~labels]])
    f1_max, threshold = _f1_max(ranking)
    return ImageMetrics(
        auroc=_auroc(ranking, tie_credit=0.5),
        auroc_conservative=_auroc(ranking, tie_credit=0.0),
        ap=_average_precision(ranking),
        f1_max=f1_max,
        f1_max_threshold=threshold,
    )


def auroc_by_kind(scores: npt.ArrayLike, kinds: Sequence[str]) -> dict[str, float]:
    """Image AUROC of each kind of defect against all normal images, kinds in alphabetical order.

    Args:
        scores: `[n]`, higher = more anomalous.
        kinds: of the `n` images; those of ``good`` are the normal ones.

    Raises:
        PatchGuardError: as :func:`image_metrics`.
    """
    values, names = np.asarray(scores), np.array(kinds, dtype=str)
    judged = {kind: (names == kind) | (names == GOOD) for kind in sorted({*kinds} - {GOOD})}
    return {
        kind: image_metrics(values[chosen], (names == kind)[chosen]).auroc
        for kind, chosen in judged.items()
    }


def rates_at(scores: npt.ArrayLike, labels: npt.ArrayLike, threshold: float) -> tuple[float, float]:
    """True and false positive rate of the verdicts `score > threshold` on `[n]` scores.

    A rate whose class is absent is nan.
    """
    scores, labels = _scores(scores, "image scores"), _binary(labels, "image labels")
    _check_vectors(scores, labels)
    # In float64, as numpy would round the threshold to the precision of float32 scores.
    verdicts = scores.astype(np.float64) > threshold
    return _share(verdicts[labels]), _share(verdicts[~labels])


def pixel_metrics(
    maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike], *, fpr_limit: float = 0.3
) -> PixelMetrics:
    """Metrics of anomaly maps `[H, W]` against ground-truth masks `[H, W]`, pooled over images.

    Sizes may differ from image to image; a normal image has an all-False mask. Regions are
    8-connected components of the masks. Tied scores are one step of a curve, a straight line in
    the PRO curve, which is also interpolated linearly at `fpr_limit`.

    Maps and masks may be made as they are asked for: they are read twice, one at a time. The
    values are exact up to `MOST_STEPS` different scores of anomalous pixels, and about 1e-6 from
    that beyond.

    Raises `PatchGuardError` for NaN values, no maps, a mask of another shape than its map, and a
    limit outside (0, 1].
    """
    if not 0 < fpr_limit <= 1:
        raise PatchGuardError(f"fpr_limit is {fpr_limit}; it must lie in (0, 1]")
    if len(maps) == 0 or len(maps) != len(masks):
        raise PatchGuardError(
            f"{len(maps)} anomaly maps and {len(masks)} masks; give one mask per map, at least one"
        )
    ranking = _rank(_anomalous(maps, masks), _normal(maps, masks))
    return PixelMetrics(
        auroc=_auroc(ranking, tie_credit=0.5),
        ap=_average_precision(ranking),
        f1_max=_f1_max(ranking)[0],
        aupro=_aupro(ranking, fpr_limit),
    )


def _anomalous(maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike]) -> _Steps:
    """The steps of all anomalous pixels, each weighing 1 / area of its region."""
    steps = _Steps(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0))
    waiting: list[_Steps] = []
    for values, mask in _checked(maps, masks):
        scores = values[mask]
        waiting.append(_Steps(scores, np.ones(scores.size, np.int64), region_weights(mask)))
        if sum(len(each.scores) for each in waiting) > MOST_STEPS:
            steps, waiting = _merged([steps, *waiting]).coarse(), []
    return _merged([steps, *waiting]).coarse()


def _merged(found: Sequence[_Steps]) -> _Steps:
    return _Steps.of(
        np.concatenate([each.scores for each in found]),
        np.concatenate([each.counts for each in found]),
        np.concatenate([each.weights for each in found]),
    )


def _normal(maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike]) -> Iterator[_Floats]:
    """The normal pixels in blocks: many small maps are looked up together."""
    held: list[_Floats] = []
    for values, mask in _checked(maps, masks):
        held.append(values[~mask])
        if sum(part.size for part in held) >= _BLOCK:
            yield np.concatenate(held)
            held.clear()
    if held:
        yield np.concatenate(held)


def _checked(
    maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike]
) -> Iterator[tuple[_Floats, _Mask]]:
    for index, (anomaly_map, drawn) in enumerate(zip(maps, masks, strict=True)):
        values = _scores(anomaly_map, f"anomaly map {index}")
        mask = _binary(drawn, f"mask {index}")
        if values.ndim != 2 or values.shape != mask.shape:
            raise PatchGuardError(
                f"anomaly map {index} has shape {values.shape} and its mask {mask.shape}; "
                "both must be [H, W] and equal"
            )
        yield values, mask


def region_weights(mask: _Mask) -> DoubleArray:
    """1 / area of the 8-connected region of each True pixel of `mask`, in raster order."""
    if not mask.any():
        return np.empty(0)
    regions = ndimage.label(mask, structure=EIGHT_CONNECTED)[0][mask]
    weights: DoubleArray = 1.0 / np.bincount(regions)[regions]
    return weights


def _rank(anomalous: _Steps, normal: Iterable[_Floats]) -> _Ranking:
    """Rank the steps of anomalous scores among normal ones, which come in blocks `[m]`."""
    fp, fp_above = np.zeros((2, anomalous.scores.size), dtype=np.int64)
    negatives = 0
    for block in normal:
        ascending = np.sort(block)
        fp += block.size - np.searchsorted(ascending, anomalous.scores, side="left")
        fp_above += block.size - np.searchsorted(ascending, anomalous.scores, side="right")
        negatives += block.size
    tp, overlap = np.cumsum(anomalous.counts[::-1]), np.cumsum(anomalous.weights[::-1])
    return _Ranking(
        thresholds=anomalous.scores[::-1],
        tp=tp,
        fp=fp[::-1],
        fp_above=fp_above[::-1],
        overlap=overlap / overlap[-1:],
        positives=int(anomalous.counts.sum()),
        negatives=negatives,
    )


def _auroc(ranking: _Ranking, tie_credit: float) -> float:
    """The Mann-Whitney share of (anomalous, normal) pairs in the right order."""
    pairs = ranking.positives * ranking.negatives
    if pairs == 0:
        return float("nan")
    per_step = np.diff(ranking.tp, prepend=0)
    wins = int(per_step @ (ranking.negatives - ranking.fp))
    ties = int(per_step @ (ranking.fp - ranking.fp_above))
    return (wins + tie_credit * ties) / pairs


def _average_precision(ranking: _Ranking) -> float:
    """Sum of precision times gain in recall over the thresholds, without interpolation."""
    if ranking.positives == 0:
        return float("nan")
    precision = ranking.tp / (ranking.tp + ranking.fp)
    return float(np.diff(ranking.tp, prepend=0) @ precision) / ranking.positives


def _f1_max(ranking: _Ranking) -> tuple[float, float]:
    """The largest F1 over all thresholds, and the threshold that `score >` has to use."""
    if ranking.positives == 0:
        return float("nan"), float("nan")
    f1 = 2 * ranking.tp / (ranking.tp + ranking.fp + ranking.positives)
    best = int(np.argmax(f1))
    # One step down in the scores' own precision turns `>=` into `>`.
    return float(f1[best]), float(np.nextafter(ranking.thresholds[best], -np.inf))


def _aupro(ranking: _Ranking, fpr_limit: float) -> float:
    """Area under overlap against false positive rate in [0, fpr_limit], divided by the limit."""
    if ranking.positives == 0 or ranking.negatives == 0:
        return float("nan")
    fpr, overlap = _pro_curve(ranking)
    inside = int(np.searchsorted(fpr, fpr_limit, side="right"))
    at_limit = np.interp(fpr_limit, fpr, overlap)
    area = np.trapezoid(np.append(overlap[:inside], at_limit), np.append(fpr[:inside], fpr_limit))
    return float(area) / fpr_limit


def _pro_curve(ranking: _Ranking) -> tuple[DoubleArray, DoubleArray]:
    """The corners of the PRO curve, two per threshold: just above it and at it."""
    above_and_at = np.stack([ranking.fp_above, ranking.fp], axis=1).ravel()
    fpr = np.concatenate([[0.0], above_and_at / ranking.negatives, [1.0]])
    overlap = np.concatenate([[0.0], np.repeat(ranking.overlap, 2)])
    return fpr, np.insert(overlap, 1, 0.0)


def _scores(values: npt.ArrayLike, name: str) -> _Floats:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    if np.isnan(array).any():
        raise PatchGuardError(f"{name}: contains NaN; the detector's output cannot be ranked")
    return array


def _binary(values: npt.ArrayLike, name: str) -> _Mask:
    array = np.asarray(values)
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise PatchGuardError(f"{name}: holds values other than 0 and 1; binarise it first")
    return array.astype(bool, copy=False)


def _check_vectors(scores: _Floats, labels: _Mask) -> None:
    if scores.ndim != 1 or scores.shape != labels.shape or scores.size == 0:
        raise PatchGuardError(
            f"image scores have shape {scores.shape} and labels {labels.shape}; "
            "both must be [n] with n at least 1"
        )


def _share(verdicts: _Mask) -> float:
    return float(verdicts.mean()) if verdicts.size else float("nan")
