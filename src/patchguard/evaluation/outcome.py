"""What attacks leave behind: scores, maps, and the worst of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from patchguard.evaluation.histograms import PixelHistograms
from patchguard.evaluation.worst_case import Metric

CLEAN = "clean"
"""The name of no attack at all."""


@dataclass(frozen=True)
class Scored:
    """What a detector says of a test set: scores [N] and maps [N, S, S], float32."""

    scores: np.ndarray
    maps: np.ndarray

    def mixed_with(self, other: Scored, chosen: np.ndarray) -> Scored:
        """This where ``chosen`` [N] is True, the other elsewhere."""
        return Scored(
            np.where(chosen, self.scores, other.scores),
            np.where(chosen[:, None, None], self.maps, other.maps),
        )


@dataclass(frozen=True)
class Attacked:
    """One attack at one radius.

    Attributes:
        attack: its name in the suite; ``legacy`` is the published one.
        norm: of the threat it belongs to.
        eps: radius as written in the suite.
        scored: what the detector says of the attacked images.
        largest: the largest norm of all its perturbations.
        pixel: ``auroc`` and ``aupro`` of its maps; empty without ground truth.
    """

    attack: str
    norm: str
    eps: str
    scored: Scored
    largest: float
    pixel: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Selected:
    """The maps of one attack for each image, chosen to lower a pooled pixel metric.

    Attributes:
        value: the metric, from histograms.
        attacks: the attack chosen for each image, [N].
        maps: its maps [N, S, S].
        histograms: those of its maps.
    """

    value: float
    attacks: tuple[str, ...]
    maps: np.ndarray
    histograms: PixelHistograms


@dataclass(frozen=True)
class Worst:
    """The worst that all attacks of a threat up to one radius found.

    Attributes:
        norm: of the threat.
        eps: radius as written in the suite.
        scores: [N], per image the worst of clean image and attacks (exact for detection).
        winners: the attack that reached it, ``clean`` where none moved the score, [N].
        images: the images with those scores, [N, 3, S, S].
        selections: by row (``both``, ``anomalies``, ``normals``) and metric (``auroc``,
            ``aupro``), the attacks whose maps lower the pooled pixel metric most; empty without
            ground truth.
        floor: pixel AUROC if every pixel were at its own worst at once: not attainable; None
            without ground truth.
    """

    norm: str
    eps: str
    scores: np.ndarray
    winners: tuple[str, ...]
    images: Tensor
    selections: Mapping[tuple[str, Metric], Selected] = field(default_factory=dict)
    floor: float | None = None
