"""Localization (AL): raise the normal pixels of the deployed map, lower the anomalous ones.

Pooled pixel AUROC, unlike image AUROC, is not the sum of one monotone term per image: what a
pixel is worth depends on the pixels of the other class over the whole test set. The objectives
differ in how they weigh pixels. All are means over the pixels of an image, in which a pixel that
is partly anomalous counts in both classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchguard.arrays import DoubleArray
from patchguard.attacks.objectives.statistics import PixelStatistics, pixels
from patchguard.constraints import Positive, checked_settings, setting_types
from patchguard.detector import Inspection
from patchguard.errors import PatchGuardError

CELLS = 2048
"""Resolution of a tabulated distribution function."""


class PixelObjective:
    """The mean gain over an image's pixels.

    Args:
        anomalous_fraction: anomalous pixels as a fraction of all pixels of the data set, in
            (0, 1).
        weight: of an anomalous pixel relative to a normal one. ``balanced`` gives both classes
            the same total over the data set. With infinity only the anomalous pixels of an image
            count, in images that have any; with 0 only the normal ones do.

    Raises:
        PatchGuardError: a weight that is no number from 0 to infinity.
    """

    def __init__(self, anomalous_fraction: float, weight: float | str) -> None:
        self.normal_fraction = 1 - anomalous_fraction
        self.weight = _weight(weight, anomalous_fraction)

    def __call__(
        self, seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0
    ) -> Tensor:
        maps = seen.anomaly_map
        anomalous = masks.to(maps.dtype)
        raised = (1 - anomalous) * self.raised(maps, progress)
        # Few pixels are anomalous: only these are asked what lowering them is worth.
        at = anomalous.nonzero(as_tuple=True)
        lowered = torch.zeros_like(maps).index_put(
            at, anomalous[at] * self.lowered(maps[at], progress)
        )
        of_normal = raised.mean((1, 2)) / self.normal_fraction
        of_anomalous = lowered.mean((1, 2)) / self.normal_fraction
        if math.isinf(self.weight):
            return torch.where(anomalous.amax((1, 2)) > 0, of_anomalous, of_normal)
        return of_normal + self.weight * of_anomalous

    def raised(self, pixels: Tensor, progress: float) -> Tensor:
        """What normal pixels of any shape are worth to the attacker: increasing in their value."""
        raise NotImplementedError

    def lowered(self, pixels: Tensor, progress: float) -> Tensor:
        """What anomalous pixels of any shape are worth to the attacker: decreasing."""
        raise NotImplementedError


class PixelMap(PixelObjective):
    """The map itself, up if normal and down if anomalous.

    Balanced, it is the linear surrogate of pooled pixel AUROC: the mean over all normal pixels of
    the data set minus the mean over all its anomalous pixels, of which an image contributes its
    share.
    """

    def __init__(self, anomalous_fraction: float, *, weight: float | str = "balanced") -> None:
        super().__init__(anomalous_fraction, weight)

    def raised(self, pixels: Tensor, progress: float) -> Tensor:
        return pixels

    def lowered(self, pixels: Tensor, progress: float) -> Tensor:
        return -pixels


class RankAware(PixelObjective):
    """Pooled pixel AUROC, smoothed: its gradient with respect to the pixels of an image.

    A normal pixel is worth the share of anomalous pixels of the data set that lie below it, an
    anomalous one loses the share of normal pixels below it, so a pixel is pushed as hard as the
    other class is dense around it. The distributions are those of the maps given: estimate them
    anew from attacked maps, two or three times.

    Args:
        maps: [N, H, W], of the whole test set, clean or attacked.
        coverage: [N, H, W], the anomalous fraction of each pixel, in [0, 1].
        weight: see :class:`PixelObjective`.
        bandwidth: of the smoothing, in units of ``PixelStatistics.scale``.

    Raises:
        PatchGuardError: as :meth:`PixelStatistics.of`, or a bandwidth that is not positive.
    """

    def __init__(
        self,
        maps: np.ndarray | Tensor,
        coverage: np.ndarray | Tensor,
        *,
        weight: float | str = "balanced",
        bandwidth: Positive = 0.25,
    ) -> None:
        checked_settings("RankAware", {"bandwidth": bandwidth}, setting_types(RankAware))
        statistics = PixelStatistics.of(maps, coverage)
        super().__init__(statistics.anomalous_fraction, weight)
        values, anomalous = pixels(maps, coverage)
        width = bandwidth * statistics.scale
        self.of_anomalous = SmoothedCDF(values, anomalous, statistics.threshold, width)
        self.of_normal = SmoothedCDF(values, 1 - anomalous, statistics.threshold, width)

    def raised(self, pixels: Tensor, progress: float) -> Tensor:
        return self.of_anomalous(pixels)

    def lowered(self, pixels: Tensor, progress: float) -> Tensor:
        return -self.of_normal(pixels)


class SmoothedCDF:
    """Distribution function of weighted values, smoothed by a Cauchy kernel, from a table.

    The heavy tails of the kernel let a pixel far from all of the other class still feel where
    they are. The table is uniform in asinh((value - centre) / bandwidth): fine where the classes
    meet, and wide. It is constant beyond a thousand times the range of the values.

    Args:
        values: [n].
        weights: [n], non-negative, not all 0.
        centre: where the table is finest.
        bandwidth: half width of the kernel at half height, positive.
    """

    def __init__(
        self, values: DoubleArray, weights: DoubleArray, centre: float, bandwidth: float
    ) -> None:
        self.centre = centre
        self.bandwidth = bandwidth
        place = np.arcsinh((values - centre) / bandwidth)
        self.end = float(np.arcsinh(1e3 * (1 + np.sinh(np.abs(place).max()))))
        knots = np.linspace(-self.end, self.end, CELLS + 1)
        mass = _share_out(place, weights, knots)
        offsets = np.sinh(knots)[:, None] - np.sinh(knots)
        heights = 0.5 + np.arctan(offsets) @ (mass / np.pi)
        # Steps are stored on their own: near height 1 float32 would lose them.
        self.heights = torch.from_numpy(heights[:-1])
        self.steps = torch.from_numpy(np.diff(heights))

    def __call__(self, values: Tensor) -> Tensor:
        """The function at ``values``, in [0, 1], of their shape; differentiable."""
        place = torch.asinh((values - self.centre) / self.bandwidth)
        cells = (place / self.end + 1) * (CELLS / 2)
        cells = cells.clamp(0, CELLS)
        cell = cells.detach().long().clamp_max(CELLS - 1)
        heights, steps = self.heights.to(values)[cell], self.steps.to(values)[cell]
        return heights + steps * (cells - cell)


def _share_out(place: DoubleArray, weights: DoubleArray, knots: DoubleArray) -> DoubleArray:
    """Weights of values, in all 1, given to the knots [k] on either side, nearer ones more."""
    cells = (place - knots[0]) / (knots[1] - knots[0])
    cell = np.clip(cells.astype(np.int64), 0, len(knots) - 2)
    upper = (cells - cell) * weights
    below = np.bincount(cell, weights - upper, minlength=len(knots))
    above = np.bincount(cell + 1, upper, minlength=len(knots))
    mass: DoubleArray = (below + above) / weights.sum()
    return mass


class MarginObjective(PixelObjective):
    """A loss of how far each pixel is on the wrong side of a threshold.

    The attacks on segmentation that the relatives come from weigh the cross-entropy of pixels.
    Here their weights multiply the margin itself where the formula leaves the choice: the
    gradient of cross-entropy vanishes at confident correct pixels, the very ones to be moved.
    And the classes are balanced, as pooled AUROC balances them: with all pixels alike, as
    published for many classes, the few anomalous ones hardly count.

    Args:
        statistics: of the detector's maps on the test set; margins are (map - threshold) / scale.
        weight: see :class:`PixelObjective`; 1 weighs all pixels alike, as published.
    """

    def __init__(self, statistics: PixelStatistics, *, weight: float | str = "balanced") -> None:
        super().__init__(statistics.anomalous_fraction, weight)
        self.threshold = statistics.threshold
        self.scale = statistics.scale

    def raised(self, pixels: Tensor, progress: float) -> Tensor:
        return self.loss((pixels - self.threshold) / self.scale, progress)

    def lowered(self, pixels: Tensor, progress: float) -> Tensor:
        return self.loss((self.threshold - pixels) / self.scale, progress)

    def loss(self, margin: Tensor, progress: float) -> Tensor:
        """Of margins of any shape, positive on the wrong side; increasing."""
        raise NotImplementedError


class SegPGD(MarginObjective):
    """Correct pixels first, wrong ones gradually as much (Gu et al. 2022).

    Wrong pixels weigh λ = progress / 2, correct ones 1 - λ.
    """

    def loss(self, margin: Tensor, progress: float) -> Tensor:
        wrong = progress / 2
        return (1 - wrong) * margin.clamp_max(0) + wrong * margin.clamp_min(0)


class CosPGD(MarginObjective):
    """Pixels weigh the cosine of prediction and truth (Agnihotri et al. 2024).

    With the probability p of the true class that is p / √(p² + (1 - p)²). The loss is the
    integral of this weight over the margin, -asinh(exp(-margin)): values can be compared along a
    search, which they could not if the weight were a constant factor.
    """

    def loss(self, margin: Tensor, progress: float) -> Tensor:
        # log(e^-m + √(1 + e^-2m)), without overflow.
        return -torch.logaddexp(-margin, functional.softplus(-2 * margin) / 2)


class Masked(MarginObjective):
    """Only pixels that are still correct (Croce et al. 2024, SEA)."""

    def loss(self, margin: Tensor, progress: float) -> Tensor:
        return margin.clamp_max(0)


class JensenShannon(MarginObjective):
    """Jensen-Shannon divergence of prediction and truth, in [0, log 2] (Croce et al. 2024, SEA).

    Its gradient vanishes at confident pixels, wrong ones above all, which are left alone.
    """

    def loss(self, margin: Tensor, progress: float) -> Tensor:
        divergence: Tensor = _Divergence.apply(margin)
        return divergence


class _Divergence(torch.autograd.Function):
    """Of margins, exact to 1e-7; its derivative in closed form, exact also where it is tiny.

    With the probabilities w of the wrong class and r of the right one the derivative is
    w r log(1 + 1/r) / 2. Plain logarithms: on a CPU the others take ten times as long.
    """

    @staticmethod
    def forward(ctx: Any, margin: Tensor) -> Tensor:
        wrong, right = margin.sigmoid(), (-margin).sigmoid()
        of_right = right.clamp_min(torch.finfo(right.dtype).tiny).log()
        of_mixture = ((1 + right) / 2).log()
        ctx.save_for_backward(wrong * right * (of_mixture + math.log(2) - of_right) / 2)
        of_prediction = right * of_right + wrong * math.log(2)
        return (of_prediction - (1 + right) * of_mixture) / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        scaled: Tensor = gradient * slope
        return scaled


class Tsallis(MarginObjective):
    """Tsallis cross-entropy (1 - p^(1-q)) / (1-q), q from -2 to 1 with progress (TsallisPGD, 2026).

    Against cross-entropy, which it becomes at q = 1, pixels weigh p^(1-q), p being the probability
    of the true class: wrong pixels are left alone at first.
    """

    def loss(self, margin: Tensor, progress: float) -> Tensor:
        exponent = 3 * (1 - progress)
        log_right = functional.logsigmoid(-margin)
        if exponent < 1e-6:
            return -log_right
        return -torch.expm1(exponent * log_right) / exponent


def _weight(weight: float | str, anomalous_fraction: float) -> float:
    if weight == "balanced":
        return (1 - anomalous_fraction) / anomalous_fraction
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise PatchGuardError(f"weight is {weight!r}; it must be balanced or a number from 0 up")
    return number
