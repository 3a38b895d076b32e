"""How each view of a trained detector is scored: chosen on normals kept for that, under attack.

How many of the largest patch logits an image score should average depends on the defects: one
patch for a spot, many for a scratch, and under attack more, for an attacker moves a single patch
further than many. No test image is looked at: the candidates are judged by how well they rank
pseudo-anomalies above the normals they are made from, both attacked. Those normals also bring the
views to one scale, on which a view that ranks them badly has to be the more certain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from patchguard.anomalies.paste import anomaly_in_window, make_pseudo_anomaly, sample_rng
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.config import AnomalyConfig, View
from patchguard.detector import Detection, Detector, device_of, to_tensor
from patchguard.models.discriminator import top_mean
from patchguard.models.patchguard import PatchGuard, ViewScore
from patchguard.runtime import full_precision
from patchguard.training.prepare import Normals

MOST_PAIRS = 16
"""Normals, and as many pseudo-anomalies, on which the choice is made."""
ATTACK_STEPS = 10
SHARE_OF_EPS = 0.25
"""The attack's radius as a fraction of the one of training."""
_LEAST_SCALE = 1e-3
_LEAST_WEIGHT = 0.01


@dataclass(frozen=True)
class Candidate:
    """A number of patches, and how well it ranks pseudo-anomalies above normals.

    Attributes:
        patches: in the mean.
        clean: image AUROC.
        attacked: the same with both attacked.
        gap: between the attacked means, in standard deviations; decides between equal AUROC.
    """

    patches: int
    clean: float
    attacked: float
    gap: float

    @property
    def weight(self) -> float:
        """Of a view in the joined score, in (0, 1]: twice how far its AUROC is above chance."""
        return min(1.0, max(_LEAST_WEIGHT, self.clean + self.attacked - 1))

    @property
    def merit(self) -> tuple[float, float]:
        """The larger, the better."""
        return self.clean + self.attacked, self.gap


class Alone(Detector):
    """One view of a detector; its score is the mean over several numbers of patches.

    Args:
        detector: with that view.
        view: its name.
        counts: the numbers of patches.
    """

    def __init__(self, detector: PatchGuard, view: View, counts: Sequence[int]) -> None:
        super().__init__()
        self.detector = detector
        self.view = view
        self.counts = counts

    def scores(self, images: Tensor) -> Tensor:
        """[B, counts] of images [B, 3, H, W]."""
        logits = self.detector.look(images, self.view).logits
        return torch.stack([top_mean(logits, count) for count in self.counts], 1)

    def forward(self, images: Tensor) -> Detection:
        return Detection(self.scores(images).mean(1), images.mean(1))


def choose_scores(
    detector: PatchGuard,
    tuning: Normals,
    anomalies: AnomalyConfig,
    *,
    eps: float,
    seed: int,
) -> dict[str, Any]:
    """Choose and set how each view is scored; returns what the choice was made by.

    Args:
        detector: trained, in eval mode, on the device to use; its ``scores`` are replaced.
        tuning: normals that took no part in training and do not calibrate: a threshold chosen on
            the same images would not keep its promise exactly.
        anomalies: as in training.
        eps: radius that training defended against.
        seed: of the pseudo-anomalies and the attack.
    """
    normals, made = _pairs(tuning, anomalies, detector.config.window, seed)
    evidence: dict[str, Any] = {}
    for view in detector.config.views:
        counts = _counts(detector, view, normals)
        found = _compared(Alone(detector, view, counts), normals, made, SHARE_OF_EPS * eps, seed)
        best = max(found, key=lambda candidate: candidate.merit)
        centre, scale = 0.0, 1.0
        if len(detector.config.views) > 1:
            centre, scale = _spread_of(Alone(detector, view, [best.patches]), tuning)
            centre -= scale * math.log(best.weight)
        detector.scores[view] = ViewScore(best.patches, centre, scale)
        evidence[view] = {
            **asdict(detector.scores[view]),
            "candidates": [asdict(candidate) for candidate in found],
        }
    return evidence


def _pairs(tuning: Normals, config: AnomalyConfig, window: int, seed: int) -> tuple[Tensor, Tensor]:
    """Normals [N, 3, H, W] from all over them, and a pseudo-anomaly of each.

    Made in a window and on the whole foreground in turn.
    """
    count = min(MOST_PAIRS, len(tuning.names))
    chosen = np.linspace(0, len(tuning.names) - 1, count).round().astype(int)
    normals, made = [], []
    for place, index in enumerate(chosen):
        image, foreground = tuning.images[index], tuning.foregrounds[index]
        seen = image, foreground, sample_rng(seed, 0, int(index)), config
        whole = place % 2 or window > min(image.shape[:2])
        anomaly = make_pseudo_anomaly(*seen)[0] if whole else anomaly_in_window(*seen, window)[0]
        normals.append(to_tensor(image))
        made.append(to_tensor(anomaly))
    return torch.stack(normals), torch.stack(made)


def _counts(detector: PatchGuard, view: View, images: Tensor) -> list[int]:
    """The numbers of patches that ``model.top`` asks for."""
    with torch.no_grad():
        patches = detector.look(images[:1].to(device_of(detector)), view).logits[0].numel()
    return sorted({max(1, round(share * patches)) for share in detector.config.top})


def _compared(view: Alone, normals: Tensor, made: Tensor, eps: float, seed: int) -> list[Candidate]:
    clean = [_scores(view, images) for images in (normals, made)]
    attacked = clean
    if eps:
        attacked = [
            _scores(view, _attacked(view, images, anomalous, eps, seed))
            for images, anomalous in ((normals, False), (made, True))
        ]
    return [
        Candidate(
            count,
            _auroc(clean[0][:, place], clean[1][:, place]),
            _auroc(attacked[0][:, place], attacked[1][:, place]),
            _gap(attacked[0][:, place], attacked[1][:, place]),
        )
        for place, count in enumerate(view.counts)
    ]


def _attacked(view: Alone, images: Tensor, anomalous: bool, eps: float, seed: int) -> Tensor:
    device = device_of(view.detector)
    attack = PGD(image_score, steps=ATTACK_STEPS)
    found = []
    for batch in torch.split(images.to(device), 2):
        labels = torch.full((len(batch),), anomalous, device=device)
        masks = torch.zeros_like(batch[:, 0])
        generator = torch.Generator(device).manual_seed(seed)
        found.append(attack(view, batch, labels, masks, eps=[eps], generator=generator)[0])
    return torch.cat(found)


def _scores(view: Alone, images: Tensor) -> np.ndarray:
    return in_batches(view.scores, images, device_of(view.detector))


@torch.no_grad()
def in_batches(
    look: Callable[[Tensor], Tensor], images: Tensor, device: torch.device
) -> np.ndarray:
    """What a look at a few images [B, 3, H, W] at a time gives of all of them, float64."""
    with full_precision():
        parts = [look(batch.to(device)).double().cpu() for batch in torch.split(images, 4)]
    return torch.cat(parts).numpy()


def _spread_of(view: Alone, normals: Normals) -> tuple[float, float]:
    """Median and standard deviation of the scores of normals."""
    scores = np.concatenate(
        [_scores(view, to_tensor(image)[None])[:, 0] for image in normals.images]
    )
    return float(np.median(scores)), max(float(scores.std()), _LEAST_SCALE)


def _auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    wins = mannwhitneyu(anomalous, normal, method="asymptotic").statistic
    return float(wins) / (len(normal) * len(anomalous))


def _gap(normal: np.ndarray, anomalous: np.ndarray) -> float:
    spread = np.sqrt((normal.var() + anomalous.var()) / 2) + _LEAST_SCALE
    return float((anomalous.mean() - normal.mean()) / spread)
