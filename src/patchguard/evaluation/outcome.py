"""What attacks leave behind: scores, maps, and the worst of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from patchguard.evaluation.histograms import PixelHistograms


@dataclass(frozen=True)
class Scored:
    """What a detector says of a test set: scores [N] and maps [N, H, W], float32."""

    scores: np.ndarray
    maps: np.ndarray


@dataclass(frozen=True)
class Attacked:
    """One attack at one radius.

    Attributes:
        attack: its name in the suite; ``legacy`` is the published one.
        norm: of the threat it belongs to.
        eps: radius as written in the suite.
        scored: what the detector says of the attacked images.
        largest: the largest norm of all its perturbations.
        kind: key of :data:`~patchguard.attacks.suite.ATTACKS`; empty when unknown.
        objective: what it climbs, key of :data:`~patchguard.attacks.objectives.registry.DETECTION`
            or ``LOCALIZATION``; empty when unknown.
        pixel: ``auroc`` and ``aupro`` of its maps; empty without ground truth.
    """

    attack: str
    norm: str
    eps: str
    scored: Scored
    largest: float
    kind: str = ""
    objective: str = ""
    pixel: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mixture:
    """The maps of one attack for each image, chosen to lower pooled pixel metrics.

    Attributes:
        pixel: its pixel metrics: exact, but never above those from histograms, by which attacks
            are compared (the two differ in the fourth digit at most, on ordinary maps).
        attacks: the attack chosen for each image, [N]; for AUROC.
        histograms: those of its maps; for AUROC.
    """

    pixel: Mapping[str, float]
    attacks: tuple[str, ...]
    histograms: PixelHistograms


@dataclass(frozen=True)
class Worst:
    """The worst that all attacks of a threat up to one radius found.

    Attributes:
        norm: of the threat.
        eps: radius as written in the suite.
        scores: [N], per image the worst of clean image and attacks (exact for detection).
        winners: the attack that reached it, ``clean`` where none moved the score, [N].
        images: the images with those scores, [N, 3, H, W].
        mixtures: by row (``both``, ``anomalies``, ``normals``), the maps that lower pixel AUROC
            most; empty without ground truth.
        floor: pixel AUROC if every pixel were at its own worst at once: not attainable; None
            without ground truth.
    """

    norm: str
    eps: str
    scores: np.ndarray
    winners: tuple[str, ...]
    images: Tensor
    mixtures: Mapping[str, Mixture] = field(default_factory=dict)
    floor: float | None = None
