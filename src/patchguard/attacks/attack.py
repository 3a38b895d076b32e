"""What all attacks share: the sweep over eps, the starts, and the best image by the true score.

An attack takes ``(detector, images, labels, masks, eps=[...])`` and returns attacked images for
each eps. It never stops early and never skips an image: AUROC depends on every score. A relative
is a dataclass whose fields are its settings; it overrides :meth:`Attack.search`, the search from
one start, or one of the three hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from patchguard.attacks.balls import LINF, Ball
from patchguard.attacks.objectives import Objective
from patchguard.constraints import Settings
from patchguard.detector import Detector, Inspection
from patchguard.errors import PatchGuardError

FORWARD = 0.5
"""What a forward pass costs in passes forward and backward: as much as the way back, on which no
gradients of weights are needed."""


class NotDifferentiable(PatchGuardError):
    """The detector's outputs carry no gradient with respect to the images."""


def _go_on() -> None:
    """What is done at each step where nobody may want to stop."""


@dataclass(frozen=True)
class Problem:
    """A batch under attack.

    Attributes:
        detector: the detector attacked, frozen.
        images: [B, 3, H, W] in [0, 1].
        labels: [B] bool, True = anomalous.
        masks: [B, H, W], the anomalous fraction of each pixel, in [0, 1].
        objective: what is climbed.
        judge: by what the best image is chosen: the true score.
        generator: source of all random draws, on the device of the images.
        each_step: called before every look at the detector; what it raises ends the attack.
    """

    detector: Detector
    images: Tensor
    labels: Tensor
    masks: Tensor
    objective: Objective
    judge: Objective
    generator: torch.Generator | None = None
    each_step: Callable[[], None] = _go_on

    @torch.no_grad()
    def judged(self, attacked: Tensor) -> Tensor:
        """The true value [B] of attacked images."""
        self.each_step()
        return self._of(self.judge, self.detector.inspect(attacked), 1.0)

    def gradient(self, attacked: Tensor, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient [B, 3, H, W] of the objective, its value [B], and the true value [B].

        Where the gradient is NaN or infinite it is 0: one such entry must not spoil the step of
        all others.

        Args:
            attacked: [B, 3, H, W].
            progress: fraction of the search that is done, for objectives that anneal.

        Raises:
            NotDifferentiable: the outputs are cut off from the images.
        """
        self.each_step()
        attacked = attacked.detach().requires_grad_()
        seen = self.detector.inspect(attacked)
        value = self._of(self.objective, seen, progress)
        if not value.requires_grad:
            raise NotDifferentiable(
                "the detector's outputs carry no gradient: only attacks without gradients apply"
            )
        (gradient,) = torch.autograd.grad(
            value.sum(), attacked, allow_unused=True, materialize_grads=True
        )
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        if self.judge is self.objective:
            return gradient, value.detach(), value.detach()
        with torch.no_grad():
            return gradient, value.detach(), self._of(self.judge, seen, 1.0)

    def _of(self, objective: Objective, seen: Inspection, progress: float) -> Tensor:
        return objective(seen, self.labels, self.masks, progress)


class Best:
    """The best image so far of each image of a batch, by its true value."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.values = torch.full((len(images),), -torch.inf, device=images.device)

    def update(self, images: Tensor, values: Tensor) -> None:
        """Take over the images with larger values.

        Raises:
            PatchGuardError: a value is NaN, which would compare as no better and so look robust.
        """
        if values.isnan().any():
            raise PatchGuardError(
                "the detector returned NaN for an attacked image: it cannot be evaluated before "
                "that is mended"
            )
        better = values > self.values
        self.images = torch.where(better[:, None, None, None], images, self.images)
        self.values = torch.where(better, values, self.values)


def at_image(attack: Attack, problem: Problem, eps: float) -> Tensor:
    """The image itself."""
    return problem.images


def uniform(attack: Attack, problem: Problem, eps: float) -> Tensor:
    """A random point of the ball."""
    return attack.random_start(problem.images, eps, problem.generator)


Start = Callable[["Attack", Problem, float], Tensor]
"""A point [B, 3, H, W] of the ball of radius eps, from (attack, problem, eps)."""

Starts = Annotated[Sequence[Start], Field(min_length=1)]


@dataclass(kw_only=True)
class Attack(Settings):
    """An attack on any detector, towards a larger true value of every image.

    Args:
        objective: what is climbed, per image.
        judge: by what the best image is chosen; the objective itself when absent.
        ball: the threat model.
        starts: how each restart begins; the best of all is kept. From the second eps on the result
            of the smaller eps takes the place of the first.
        eval_mode: attack the detector in eval mode (dropout off).
        keep_best: the result is the best image; without, it is where the last search ends, and
            each eps begins anew.
    """

    objective: Objective = field(kw_only=False)
    judge: Objective | None = None
    ball: Ball = LINF
    starts: Starts = (uniform,)
    eval_mode: bool = True
    keep_best: bool = field(default=True, init=False)

    def __call__(
        self,
        detector: Detector,
        images: Tensor,
        labels: Tensor,
        masks: Tensor,
        *,
        eps: Sequence[float],
        generator: torch.Generator | None = None,
        warm: Tensor | None = None,
        each_step: Callable[[], None] = _go_on,
    ) -> list[Tensor]:
        """Attacked images [B, 3, H, W], one batch for each eps.

        Where the best image is kept, the result of a smaller eps is a starting point and a
        candidate of every larger one, and so is the image itself: the true value never falls
        along the sweep.

        Args:
            detector: the detector attacked, in whatever mode; its mode is restored.
            images: [B, 3, H, W] in [0, 1].
            labels: [B] bool, True = anomalous.
            masks: [B, H, W], anomalous fraction of each pixel in [0, 1].
            eps: radii of the ball, ascending; in pixel space.
            generator: source of all random draws, on the device of the images.
            warm: result of an eps smaller than all of these, to go on from; projected onto the
                first ball where it lies outside.
            each_step: called before every look at the detector; what it raises ends the attack.

        Raises:
            NotDifferentiable: an attack by gradients on outputs without any.
            PatchGuardError: radii that do not ascend, or a true value that is NaN.
        """
        if not eps or list(eps) != sorted(eps):
            raise PatchGuardError(f"the radii of an attack must ascend: {list(eps)} do not")
        results: list[Tensor] = []
        problem = Problem(
            detector,
            images,
            labels.bool(),
            masks,
            self.objective,
            self.judge or self.objective,
            generator,
            each_step,
        )
        with attackable(detector, self.eval_mode):
            best = Best(images)
            if self.keep_best:
                best.update(images, problem.judged(images))
                if warm is not None:
                    inside = self._inside(warm, images, eps[0])
                    best.update(inside, problem.judged(inside))
            for radius in eps:
                for restart, start in enumerate(self.restarts):
                    go_on = restart == 0 and (warm is not None or bool(results))
                    first = (
                        best.images if go_on and self.keep_best else start(self, problem, radius)
                    )
                    last = self.search(problem, first, radius, best)
                results.append(best.images if self.keep_best else last)
        return results

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        """The last point of a search from ``first``.

        Where the best image is kept, ``best`` has seen that of the search, of all its points in
        the ball.
        """
        raise NotImplementedError

    @property
    def passes(self) -> float:
        """About how many passes forward and backward it costs per image and eps.

        A forward pass alone counts :data:`FORWARD`; what starts cost is left out.
        """
        known = 2 * FORWARD if self.keep_best else 0
        return known + len(self.restarts) * self.cost()

    def cost(self) -> float:
        """Of one search, in the unit of :attr:`passes`."""
        raise NotImplementedError

    @property
    def restarts(self) -> Sequence[Start]:
        """How each of its searches begins."""
        return self.starts

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        """A random point of the ball and the box."""
        return self.ball.random(images, eps, generator)

    def normalise(self, gradient: Tensor, attacked: Tensor, stride: float | Tensor) -> Tensor:
        """The step of norm ``stride`` from ``attacked`` along the steepest direction."""
        return self.ball.step(gradient, attacked, stride)

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        """Onto the ball around ``images`` and into [0, 1]."""
        return self.ball.project(attacked, images, eps)

    def _inside(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        """Projected where it lies outside by more than rounding: a projection rounds too."""
        outside = self.ball.size(attacked - images) > eps * (1 + 1e-6)
        projected = self.project(attacked, images, eps)
        return torch.where(outside[:, None, None, None], projected, attacked)


@contextmanager
def attackable(detector: nn.Module, eval_mode: bool = True) -> Iterator[None]:
    """Gradients on, parameters frozen, and eval mode if asked for; all restored afterwards."""
    modes = {module: module.training for module in detector.modules()}
    frozen = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    if eval_mode:
        detector.eval()
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
