"""Universal perturbations (Moosavi-Dezfooli et al. 2017): one for all images of a class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from patchguard.attacks.attack import Attack, Best, Problem, Starts, at_image, attackable
from patchguard.attacks.balls import Ball
from patchguard.constraints import Count, Positive
from patchguard.detector import Detector


@dataclass(frozen=True)
class Perturbation:
    """What is added to every normal and to every anomalous image.

    Attributes:
        deltas: [2, 3, H, W], for normal and for anomalous images.
        ball: their threat model.
        eps: their size in it.
    """

    deltas: Tensor
    ball: Ball
    eps: float

    def added(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images [B, 3, H, W] with the perturbation of their class [B] (True = anomalous)."""
        return self.ball.project(images + self.deltas[labels.long()], images, self.eps)


@dataclass(kw_only=True)
class UniversalPerturbation(Attack):
    """One perturbation for all normal images and one for all anomalous ones.

    :meth:`fit` makes them from a set. As an attack it takes a whole set: it makes them from one
    half and adds them to the other, and the other way round, so that no image meets a perturbation
    made from it. The halves are random, with the same share of each class; a class with a single
    image is left as it is. Unlike other attacks it does not choose image by image: its images may
    have a smaller true value than the clean ones; the judge chooses nothing. The norm of its ball
    must scale with the perturbation.

    Args:
        steps: passes over the images.
        step_size: step of the first mini-batch as a multiple of eps / steps, that of the ball when
            absent; it shortens to 0.
        batch_size: images of a mini-batch.
        shared: one and the same perturbation for both classes.
    """

    starts: Starts = field(default=(at_image,), init=False)
    keep_best: bool = field(default=False, init=False)
    steps: Count = 50
    step_size: Positive | None = None
    batch_size: Count = 16
    shared: bool = False

    def fit(
        self,
        detector: Detector,
        images: Tensor,
        labels: Tensor,
        masks: Tensor,
        *,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> Perturbation:
        """Perturbations made from all these images, to be added to others.

        Args:
            detector: the detector attacked, in whatever mode; its mode is restored.
            images: [N, 3, H, W] in [0, 1].
            labels: [N] bool, True = anomalous.
            masks: [N, H, W], anomalous fraction of each pixel in [0, 1].
            eps: radius of the ball, in pixel space.
            generator: source of the mini-batches, on the device of the images.

        Raises:
            NotDifferentiable: the detector's outputs carry no gradient.
        """
        judge = self.judge or self.objective
        problem = Problem(detector, images, labels, masks, self.objective, judge, generator)
        with attackable(detector, self.eval_mode):
            return self._fitted(problem, eps)

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        attacked = first.clone()
        one, other = _halves(problem.labels, problem.generator)
        for made_from, shown in ((one, other), (other, one)):
            perturbation = self._fitted(_part(problem, made_from), eps)
            attacked[shown] = perturbation.added(problem.images[shown], problem.labels[shown])
        return attacked

    def cost(self) -> float:
        return self.steps

    def _fitted(self, problem: Problem, eps: float) -> Perturbation:
        # A perturbation is kept as a change of mid-grey at half its size, where the ball knows how
        # to step and project, and the box means a change of at most 1.
        grey = torch.full_like(problem.images[:1], 0.5).expand(2, -1, -1, -1)
        carrier, count = grey, len(problem.images)
        starts = range(0, count, self.batch_size)
        multiple = self.ball.step_size if self.step_size is None else self.step_size
        for epoch in range(self.steps):
            order = torch.randperm(count, generator=problem.generator, device=problem.images.device)
            for start in starts:
                progress = (epoch + start / count) / self.steps
                batch = _part(problem, order[start : start + self.batch_size])
                gradient = self._gradient(batch, 2 * carrier - 1, progress)
                stride = multiple * eps / self.steps * (1 - progress)
                moved = carrier + self.normalise(gradient, carrier, stride / 2)
                carrier = self.project(moved, grey, eps / 2)
        return Perturbation(2 * carrier - 1, self.ball, eps)

    def _gradient(self, batch: Problem, deltas: Tensor, progress: float) -> Tensor:
        """Gradient [2, 3, H, W] of the summed objective with respect to the perturbations."""
        moved = batch.images + deltas[batch.labels.long()]
        gradient, _, _ = batch.gradient(moved.clamp(0, 1), progress)
        gradient = gradient * ((moved >= 0) & (moved <= 1))
        anomalous = batch.labels.float()
        member = torch.stack([1 - anomalous, anomalous])
        if self.shared:
            member = torch.ones_like(member)
        return torch.einsum("kb,bchw->kchw", member, gradient)


def _part(problem: Problem, chosen: Tensor) -> Problem:
    return replace(
        problem,
        images=problem.images[chosen],
        labels=problem.labels[chosen],
        masks=problem.masks[chosen],
    )


def _halves(labels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Two random halves of the images, with the same share of each class: their indices."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    by_class = torch.cat([shuffled[~labels[shuffled]], shuffled[labels[shuffled]]])
    return by_class[::2], by_class[1::2]
