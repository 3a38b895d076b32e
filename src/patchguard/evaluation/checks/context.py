"""What the checks look at, and the few things that most of them do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchguard.attacks.apgd import APGD
from patchguard.attacks.attack import Attack
from patchguard.attacks.objectives import image_score
from patchguard.config import parse_eps
from patchguard.detector import Detector, Inspection, device_of
from patchguard.evaluation.metrics import image_metrics
from patchguard.evaluation.outcome import Attacked, Scored, Worst
from patchguard.evaluation.scoring import score_images
from patchguard.evaluation.test_set import TestSet

Effort = Literal["quick", "full"]

BATCH = 32
GRADIENT = ("pgd", "apgd")
"""Kinds of attacks that see this detector's gradients and keep the best image: no others must be
stronger."""


@dataclass(frozen=True)
class AttackedBatch:
    """Images on the detector's device: [B, 3, H, W], labels [B] bool, masks [B, H, W]."""

    images: Tensor
    labels: Tensor
    masks: Tensor


class Attempt(NamedTuple):
    """What an attack found: images [B, 3, H, W], and their true value [B] for the attacker."""

    images: Tensor
    values: Tensor


@dataclass(frozen=True)
class Reference:
    """The attack that others are compared with, and its search.

    Attributes:
        found: its result.
        trace: [steps, B], the value of every point whose gradient it took.
    """

    found: Attempt
    trace: Tensor


@dataclass(frozen=True)
class CheckContext:
    """A detector, its evaluation, and how thoroughly to look.

    Attributes:
        detector: as it comes; its mode is judged too, and restored.
        test: the images.
        clean: what the detector says of them; None if nothing was evaluated yet.
        attacked: the attacks of the main linf threat at all radii; empty likewise.
        worst: its worst case at each radius; empty likewise.
        others: the attacks of all other threats; empty likewise.
        eps: the radius at which checks attack, in pixel space.
        threshold: the calibrated one, if any.
        twin_auroc: worst-case image AUROC at ``eps`` of the undefended twin, if there is one.
        deployed: score of an image [H, W, 3] in [0, 1] on the way it takes in operation.
        captured: the test images [H, W, 3] in [0, 1] before they were resized, in their order.
        provenance: what was recorded: ``weights_sha256``, ``data_sha256``, ``versions``,
            ``seed``, ``selected_on_test`` (whether test images had a part in the choice of the
            checkpoint, bool), ``selection_rule`` (that choice in words) and ``mask_protocol``
            (``native`` or the name of another).
        seed: of all random draws.
        effort: ``quick`` looks at fewer images for fewer steps.
    """

    detector: Detector
    test: TestSet
    clean: Scored | None = None
    attacked: Sequence[Attacked] = ()
    worst: Sequence[Worst] = ()
    others: Sequence[Attacked] = ()
    eps: float = 4 / 255
    threshold: float | None = None
    twin_auroc: float | None = None
    deployed: Callable[[np.ndarray], float] | None = None
    captured: Sequence[np.ndarray] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    effort: Effort = "quick"

    @property
    def full(self) -> bool:
        return self.effort == "full"

    @cached_property
    def chosen(self) -> np.ndarray:
        """Indices of the images that checks attack, of both classes.

        Half of each class are those nearest to the other class, on which AUROC turns; the other
        half are spread over the rest and so over the kinds of defects.
        """
        half = 4 if self.full else 2
        labels, worst = self.test.labels, self.worst_at_eps
        scores = self.clean_scores if worst is None else worst.scores
        chosen = []
        for label in (False, True):
            members = np.flatnonzero(labels == label)
            hardest = members[np.argsort(scores[members] if label else -scores[members])][:half]
            rest = np.setdiff1d(members, hardest)
            places = np.linspace(0, len(rest) - 1, min(half, len(rest))).round().astype(int)
            chosen += [np.sort(hardest), rest[places]]
        return np.concatenate(chosen)

    @cached_property
    def batch(self) -> AttackedBatch:
        """The images that checks attack."""
        device, chosen = device_of(self.detector), torch.from_numpy(self.chosen)
        return AttackedBatch(
            self.test.images[chosen].to(device),
            torch.from_numpy(self.test.labels)[chosen].to(device),
            self.test.coverage()[chosen].to(device),
        )

    @cached_property
    def clean_scores(self) -> np.ndarray:
        """Scores [N] of the test images."""
        return self.clean.scores if self.clean is not None else self.scores(self.test.images)

    @cached_property
    def spread(self) -> float:
        """The range of the clean scores: the unit in which differences of scores are given."""
        return float(np.ptp(self.clean_scores)) or 1.0

    @cached_property
    def reference(self) -> Reference:
        """APGD on the score at ``eps``: 50 steps, 100 in a full check."""
        recorder = Recorder()
        found = self.attempt(APGD(recorder, judge=image_score, steps=100 if self.full else 50))
        return Reference(found, torch.stack(recorder.values))

    @property
    def worst_at_eps(self) -> Worst | None:
        """The worst case at the radius nearest to ``eps``."""
        return min(self.worst, key=lambda worst: abs(parse_eps(worst.eps) - self.eps), default=None)

    @property
    def attacked_at_eps(self) -> list[Attacked]:
        """The attacks at the radius nearest to ``eps``."""
        radii = {entry.eps for entry in self.attacked}
        nearest = min(radii, key=lambda eps: (abs(parse_eps(eps) - self.eps), eps), default=None)
        return [entry for entry in self.attacked if entry.eps == nearest]

    def generator(self) -> torch.Generator:
        """The source of random draws, always from the same state."""
        return torch.Generator(device_of(self.detector)).manual_seed(self.seed)

    def scores(self, images: Tensor) -> np.ndarray:
        """Scores [N] of images [N, 3, H, W], in eval mode."""
        return score_images(self.detector, images, BATCH).scores

    def attempt(
        self,
        attack: Attack,
        *,
        eps: float | None = None,
        on: Detector | None = None,
    ) -> Attempt:
        """Attack the chosen images; what is found is scored anew, by this detector.

        Args:
            attack: with its settings.
            eps: radius; that of the context when absent.
            on: detector to attack; that of the context when absent.
        """
        batch = self.batch
        (images,) = attack(
            on or self.detector,
            batch.images,
            batch.labels,
            batch.masks,
            eps=[self.eps if eps is None else eps],
            generator=self.generator(),
        )
        scores = torch.from_numpy(self.scores(images)).to(batch.labels.device)
        return Attempt(images, self.as_scores(scores))

    def auroc(self, values: Tensor) -> float:
        """Image AUROC of the chosen images from the attacker's values [B]; a tie is half a win."""
        return image_auroc(self.as_scores(values), self.batch.labels)

    def as_scores(self, values: Tensor) -> Tensor:
        """Scores [..., B] of the chosen images from the attacker's values, or the other way."""
        return torch.where(self.batch.labels, -values, values)

    @property
    def tolerance(self) -> float:
        """Half a point of AUROC, or one pair of the chosen images if that is more."""
        anomalous = int(self.batch.labels.sum())
        pairs = anomalous * (len(self.batch.labels) - anomalous)
        return max(0.005, 1.001 / max(pairs, 1))


class Recorder:
    """The image score as an objective, with a memory of all its values [B]."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def __call__(self, seen: Inspection, labels: Tensor, masks: Tensor, progress: float) -> Tensor:
        value = image_score(seen, labels, masks, progress)
        self.values.append(value.detach())
        return value


def image_auroc(scores: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> float:
    """Image AUROC of scores [N] against labels [N]; nan when a class is absent."""
    return image_metrics(_array(scores), _array(labels)).auroc


@contextmanager
def undisturbed(context: CheckContext) -> Iterator[None]:
    """Draw from the context's seed, and leave buffers and random state as they were."""
    buffers = {name: buffer.clone() for name, buffer in context.detector.named_buffers()}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)
            yield
    finally:
        for name, buffer in context.detector.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape:
                buffer.data.copy_(buffers[name])


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values
