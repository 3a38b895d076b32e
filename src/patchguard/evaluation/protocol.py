"""An evaluation from start to end: attack, score, tabulate, and say how it was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchguard.attacks.attack import uniform
from patchguard.attacks.objectives import PixelMap, image_score, legacy
from patchguard.attacks.pgd import PGD
from patchguard.config import EvaluationConfig, parse_eps
from patchguard.data.images import resize_map
from patchguard.detector import Detector, device_of
from patchguard.evaluation.metrics import image_metrics, pixel_metrics, rates_at
from patchguard.evaluation.test_set import TestSet
from patchguard.models.patchguard import PatchGuard

ROWS = {"both": (True, True), "anomalies": (True, False), "normals": (False, True)}
"""Which classes of the test set are attacked: (anomalous, normal)."""

LEVELS = ("image", "pixel", "deployed")

JUDGED_BY = {"score": ("image", "deployed"), "map": ("pixel",), "legacy": LEVELS}
"""The metrics that an attack aims at."""


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
    """One attack at one radius: its images [N, 3, S, S] and what the detector says of them."""

    attack: str
    eps: str
    images: Tensor
    scored: Scored


@dataclass(frozen=True)
class Evaluation:
    """The outcome: ``summary`` is what ``metrics.json`` holds; the rest is for pictures."""

    summary: dict[str, Any]
    clean: Scored
    attacked: tuple[Attacked, ...]


def attacks_for(detector: Detector, test: TestSet, config: EvaluationConfig) -> dict[str, PGD]:
    """The attacks that the detector and the ground truth allow, by name.

    ``score`` is adaptive for detection, ``map`` for localization; ``legacy`` is the published
    one. The last two need masks, and ``legacy`` needs patch logits.
    """
    adaptive: dict[str, Any] = {"steps": config.steps, "starts": [uniform] * config.restarts}
    attacks = {"score": PGD(image_score, **adaptive)}
    if test.masks is not None:
        fraction = float(test.coverage().mean())
        attacks["map"] = PGD(PixelMap(fraction), **adaptive)
        if isinstance(detector, PatchGuard):
            attacks["legacy"] = PGD(legacy, steps=config.steps, start=0, keep_best=False)
    return attacks


def evaluate_detector(
    detector: Detector,
    test: TestSet,
    config: EvaluationConfig,
    *,
    threshold: float | None = None,
    seed: int = 0,
    advance: Callable[[float], None] = lambda _: None,
) -> Evaluation:
    """Clean and attacked metrics of a detector on a labelled test set.

    Every image is attacked at every eps, whatever the detector says of it; attacks see raw
    scores in float32.

    Args:
        detector: in eval mode, on the device to use.
        test: the images.
        config: the attacks.
        threshold: the calibrated one; adds the rates at which it flags images.
        seed: of the random starts.
        advance: called with the fraction of the work done, in [0, 1].
    """
    torch.backends.cudnn.allow_tf32 = False
    eps = sorted(config.eps, key=parse_eps)
    attacks = attacks_for(detector, test, config)
    clean = score_images(detector, test.images, config.batch_size)
    attacked: list[Attacked] = []
    for number, (name, attack) in enumerate(attacks.items()):
        batches = []
        for done, batch in _attack_batches(detector, test, attack, eps, config.batch_size, seed):
            batches.append(batch)
            advance((number + done) / len(attacks))
        for place, radius in enumerate(eps):
            images = torch.cat([batch[place] for batch in batches])
            scored = score_images(detector, images, config.batch_size)
            attacked.append(Attacked(name, radius, images, scored))
    summary = {
        "clean": _metrics(clean, test, threshold),
        "attacked": [_rows(entry, clean, test, threshold) for entry in attacked],
        "scores": _scores(clean, attacked, test),
    }
    return Evaluation(summary, clean, tuple(attacked))


@torch.no_grad()
def score_images(detector: Detector, images: Tensor, batch_size: int) -> Scored:
    """Scores and maps of images [N, 3, S, S] on the detector's device."""
    device = device_of(detector)
    found = [detector(batch.to(device)) for batch in torch.split(images, batch_size)]
    return Scored(
        torch.cat([detection.score for detection in found]).float().cpu().numpy(),
        torch.cat([detection.anomaly_map for detection in found]).float().cpu().numpy(),
    )


def _attack_batches(
    detector: Detector,
    test: TestSet,
    attack: PGD,
    eps: list[str],
    batch_size: int,
    seed: int,
) -> Iterator[tuple[float, list[Tensor]]]:
    device = device_of(detector)
    generator = torch.Generator(device).manual_seed(seed)
    labels, coverage = torch.from_numpy(test.labels), test.coverage()
    radii = [parse_eps(radius) for radius in eps]
    for start in range(0, len(test.images), batch_size):
        batch = slice(start, start + batch_size)
        images = attack(
            detector,
            test.images[batch].to(device),
            labels[batch].to(device),
            coverage[batch].to(device),
            eps=radii,
            generator=generator,
        )
        yield min(1.0, (start + batch_size) / len(labels)), [image.cpu() for image in images]


def _rows(entry: Attacked, clean: Scored, test: TestSet, threshold: float | None) -> dict[str, Any]:
    rows = {}
    for row, (anomalies, normals) in ROWS.items():
        chosen = np.where(test.labels, anomalies, normals)
        scored = entry.scored.mixed_with(clean, chosen)
        rows[row] = _metrics(scored, test, threshold, JUDGED_BY[entry.attack])
    return {"attack": entry.attack, "eps": entry.eps, "rows": rows}


def _metrics(
    scored: Scored, test: TestSet, threshold: float | None, wanted: Sequence[str] = LEVELS
) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    if "image" in wanted:
        metrics["image"] = asdict(image_metrics(scored.scores, test.labels))
    if "pixel" in wanted and test.masks is not None:
        maps = [
            resize_map(anomaly_map, mask.shape)
            for anomaly_map, mask in zip(scored.maps, test.masks, strict=True)
        ]
        metrics["pixel"] = asdict(pixel_metrics(maps, list(test.masks)))
    if "deployed" in wanted and threshold is not None:
        tpr, fpr = rates_at(scored.scores, test.labels, threshold)
        metrics["deployed"] = {"tpr": tpr, "fpr": fpr}
    return metrics


def _scores(clean: Scored, attacked: list[Attacked], test: TestSet) -> dict[str, Any]:
    return {
        "names": list(test.names),
        "kinds": list(test.kinds),
        "clean": clean.scores.tolist(),
        **{f"{entry.attack} {entry.eps}": entry.scored.scores.tolist() for entry in attacked},
    }
