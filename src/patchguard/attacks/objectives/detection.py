"""Detection (AD): raise the score of normal images, lower that of anomalous ones.

Image AUROC depends on each score monotonically, so the score itself is the optimal direction.
Its gradient reaches few patches, though; the others here are smooth or dense surrogates of it,
to be judged by :func:`image_score`. They read patch logits where a detector shows them and the
anomaly map elsewhere, raw: a squashed score has no gradient where it saturates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from patchguard.attacks.objectives.objective import local_scores, patch_labels
from patchguard.constraints import Count, Settings, Share
from patchguard.detector import Detector, Inspection, device_of
from patchguard.errors import PatchGuardError

COLDEST = 1e-3
"""Last temperature of the smooth maximum, as a fraction of the first."""

SMALLEST = 1e-20
"""Keeps the temperature of a constant map, and its inverse, within float32."""


def image_score(seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0) -> Tensor:
    """The deployed score: what detection is judged by."""
    return _towards_error(seen.score, labels)


def smooth_maximum(
    seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0
) -> Tensor:
    """The smooth maximum T·(logsumexp(s / T) - log n) of the n local scores s.

    T falls linearly with progress, from the standard deviation of each image's s to nearly 0.
    Taking off T·log n keeps the value between the mean of s (T large) and its maximum (T = 0), so
    that it does not depend on the number of patches; the gradient is a softmax either way.
    """
    scores = local_scores(seen).flatten(1)
    spread = scores.detach().std(1, unbiased=False)
    temperature = (spread * max(1 - progress, COLDEST)).clamp_min(SMALLEST)
    highest = scores.detach().amax(1)
    excess = torch.logsumexp((scores - highest[:, None]) / temperature[:, None], 1)
    smooth = highest + temperature * (excess - math.log(scores.shape[1]))
    return _towards_error(smooth, labels)


@dataclass(kw_only=True)
class TopKMean(Settings):
    """The mean of the K largest local scores, K falling geometrically with progress to ``k``.

    Args:
        k: patches in the mean at the end: those of the deployed score, if it is such a mean.
        share: patches in the mean at the start, as a fraction of all.
    """

    k: Count = 3
    share: Share = 0.25

    def __call__(
        self, seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0
    ) -> Tensor:
        scores = local_scores(seen).flatten(1)
        highest = scores.topk(self._count(scores.shape[1], progress), dim=1).values
        return _towards_error(highest.mean(1), labels)

    def _count(self, patches: int, progress: float) -> int:
        last = min(self.k, patches)
        first = max(last, round(self.share * patches))
        return round(math.exp((1 - progress) * math.log(first) + progress * math.log(last)))


def dense(seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0) -> Tensor:
    """The mean of all local scores: it pushes every patch of an image to the same side."""
    return _towards_error(local_scores(seen).flatten(1).mean(1), labels)


def legacy(seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0) -> Tensor:
    """The published attack: mean of the normal patch logits minus that of the anomalous ones.

    One attack for detection and localization. It is not adaptive for detection: in an anomalous
    image it pushes normal patches up, which raises the image score. On a detector without patch
    logits the pixels of its map take their place.
    """
    logits = local_scores(seen)
    anomalous = patch_labels(masks, tuple(logits.shape[1:])).flatten(1)
    logits, normal = logits.flatten(1), 1 - anomalous
    raised = (logits * normal).sum(1) / normal.sum(1).clamp_min(1)
    lowered = (logits * anomalous).sum(1) / anomalous.sum(1).clamp_min(1)
    return raised - lowered


@dataclass(kw_only=True, eq=False)
class FeatureDistance(Settings):
    """Mean distance of the patch features to the nearest features of normal images.

    A surrogate for detectors whose score is hard to differentiate: normal images leave the normal
    features, anomalous ones approach them.

    Args:
        prototypes: features [M, C] of normal images, see :func:`normal_prototypes`.
        metric: ``cosine`` is 1 - cosine similarity.

    Raises:
        PatchGuardError: when called, a detector that shows no features or features of another
            width.
    """

    prototypes: Tensor = field(kw_only=False)
    metric: Literal["cosine", "l2"] = "cosine"

    def __call__(
        self, seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0
    ) -> Tensor:
        features = _features(seen)
        if features.shape[-1] != self.prototypes.shape[-1]:
            raise PatchGuardError(
                f"features of width {features.shape[-1]} and prototypes of width "
                f"{self.prototypes.shape[-1]}: take the prototypes from the detector attacked"
            )
        prototypes = self.prototypes.to(features)
        if self.metric == "cosine":
            features, prototypes = (functional.normalize(x, dim=-1) for x in (features, prototypes))
        nearest = prototypes[torch.cdist(features.detach(), prototypes).argmin(-1)]
        distance = torch.linalg.vector_norm(features - nearest, dim=-1)
        if self.metric == "cosine":
            distance = distance.square() / 2  # 1 - cosine, for unit vectors
        return _towards_error(distance.mean(1), labels)


@torch.no_grad()
def normal_prototypes(
    detector: Detector, images: Tensor, *, count: int = 256, batch_size: int = 32
) -> Tensor:
    """At most ``count`` features [M, C] that cover those of normal images.

    A greedy k-centre coreset (as in PatchCore, Roth et al. 2022): the feature nearest to the mean,
    then again and again the one farthest from all that were chosen.

    Args:
        detector: in eval mode; the images go to its device.
        images: normal images [N, 3, H, W] in [0, 1].
        count: of prototypes.
        batch_size: images per forward pass.

    Raises:
        PatchGuardError: the detector shows no features.
    """
    device = device_of(detector)
    batches = torch.split(images, batch_size)
    features = torch.cat(
        [_features(detector.inspect(batch.to(device))).flatten(0, 1) for batch in batches]
    )
    chosen = [int(_distance(features, features.mean(0)).argmin())]
    gap = _distance(features, features[chosen[0]])
    while len(chosen) < min(count, len(features)):
        chosen.append(int(gap.argmax()))
        gap = torch.minimum(gap, _distance(features, features[chosen[-1]]))
    return features[chosen]


def _distance(features: Tensor, point: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(features - point, dim=1)
    return distance


def _features(seen: Inspection) -> Tensor:
    if seen.features is None:
        raise PatchGuardError(
            "the detector shows no features: the features objective does not apply; leave it out"
        )
    return seen.features


def _towards_error(values: Tensor, labels: Tensor) -> Tensor:
    return torch.where(labels, -values, values)
