"""Auto-PGD: projected gradient ascent that sets its own step size.

For linf and l2 as in Croce and Hein, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks" (ICML 2020), for l1 as in "Mind the box: l1-APGD for
sparse adversarial attacks on image classifiers" (ICML 2021), and with radii that shrink during the
search as in the latter and in Croce, Singh and Hein, "Towards reliable evaluation and fast training
of robust semantic segmentation models" (ECCV 2024). The last quarter of a search in l1 settles how
far the chosen values go, which is ours. Nothing asks whether an image is fooled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem
from patchguard.attacks.balls import BALLS, movable
from patchguard.constraints import Count


def _ends_in_the_ball(radii: Sequence[float]) -> Sequence[float]:
    if not radii or radii[-1] != 1:
        raise PydanticCustomError("radii", "a list that ends with 1")
    return radii


Radius = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Radii = Annotated[Sequence[Radius], AfterValidator(_ends_in_the_ball)]


@dataclass(kw_only=True)
class APGD(Attack):
    """Steps whose length and sparsity follow, per image, from how the search goes.

    The objective gives the direction; the judge decides whether a step was an improvement, and so
    when to take shorter steps and go back to the best point. So an objective may anneal.

    It costs ``steps`` gradient passes per start, and one forward pass for each of the radii.

    Args:
        steps: gradient passes per restart.
        radii: multiples of eps to search in, one after the other, each from the best point of the
            one before; the last is 1 and gets 40 % of the steps, the others share the rest.
    """

    steps: Count = 100
    radii: Radii = (1.0,)

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        done = 0
        for radius, steps in self._stages():
            first = self.project(first, problem.images, radius * eps)
            top = self._climb(problem, first, radius * eps, range(done, done + steps))
            first = top.images
            done += steps
        # The best point of the last radius; those of the others may lie outside the ball.
        best.update(top.images, top.values)
        return top.images

    def cost(self) -> float:
        return self.steps + FORWARD * len(self.radii)

    def _stages(self) -> Iterator[tuple[float, int]]:
        """Radii and steps of the stages."""
        *wider, final = self.radii
        share = int(0.6 * self.steps / len(wider)) if wider else 0
        for radius in wider:
            yield radius, share
        yield final, self.steps - share * len(wider)

    def _climb(self, problem: Problem, first: Tensor, eps: float, steps: range) -> _Top:
        """The search in one ball."""
        top = _Top(first)
        paces = self._paces(problem.images, first, eps, len(steps))
        moves, attacked, previous = paces[0], first, first
        for done, step in enumerate(steps):
            moves = paces.get(done, moves)
            gradient, _, judged = problem.gradient(attacked, step / self.steps)
            top.see(attacked, judged, gradient)
            again = moves.restarts(judged, top)
            if again.any():
                attacked = torch.where(again[:, None, None, None], top.images, attacked)
                gradient = torch.where(again[:, None, None, None], top.gradient, gradient)
            previous, attacked = attacked, moves.move(attacked, previous, gradient)
        top.update(attacked, problem.judged(attacked))
        return top

    def _paces(
        self, images: Tensor, first: Tensor, eps: float, steps: int
    ) -> dict[int, _Halving | _Sparse]:
        """How to move, by the step from which on."""
        if not self.ball.sparse:
            return {0: _Halving(self, images, eps, steps)}
        settling = steps // 4
        return {
            0: _Sparse(self, images, first, eps, steps - settling),
            steps - settling: _Settling(self, images, eps, settling),
        }


class _Top(Best):
    """The best point of a search, with its gradient."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(images)
        self.gradient = torch.zeros_like(images)

    def see(self, images: Tensor, values: Tensor, gradient: Tensor) -> None:
        better = (values > self.values)[:, None, None, None]
        self.gradient = torch.where(better, gradient, self.gradient)
        self.update(images, values)


class _Halving:
    """Momentum, and half the stride at checkpoints where the search has not progressed.

    Args:
        attack: whose steps and projection.
        images: the centre of the ball.
        eps: the radius of the ball.
        steps: moves of the search.
    """

    def __init__(self, attack: Attack, images: Tensor, eps: float, steps: int) -> None:
        self.attack, self.images, self.eps = attack, images, eps
        self.window = max(int(0.22 * steps), 1)
        self.shrink = max(int(0.03 * steps), 1)
        self.shortest = max(int(0.06 * steps), 1)
        self.stride = torch.full_like(images[:, 0, 0, 0], 2 * eps)
        self.shortened = torch.ones_like(self.stride, dtype=torch.bool)
        self.increases = torch.zeros_like(self.stride)
        self.judged = self.checked = self.increases
        self.moves = 0
        self.due = self.window

    def restarts(self, judged: Tensor, top: Best) -> Tensor:
        """Which images [B] go back to their best point; they take shorter steps from there."""
        if self.moves == 0:
            self.judged = self.checked = judged
        self.increases += judged > self.judged
        self.judged = judged
        if self.moves < self.due:
            return torch.zeros_like(self.shortened)
        stuck = ~self.shortened & (top.values <= self.checked)
        self.shortened = (self.increases <= 0.75 * self.window) | stuck
        self.stride = torch.where(self.shortened, self.stride / 2, self.stride)
        self.checked = top.values
        self.increases = torch.zeros_like(self.increases)
        self.window = max(self.window - self.shrink, self.shortest)
        self.due += self.window
        return self.shortened

    def move(self, attacked: Tensor, previous: Tensor, gradient: Tensor) -> Tensor:
        stride = self.stride[:, None, None, None]
        stepped = attacked + self.step(gradient, attacked, stride)
        stepped = self.attack.project(stepped, self.images, self.eps)
        self.moves += 1
        if self.moves == 1:
            return stepped
        mixed = attacked.lerp(stepped, 0.75).add_(attacked - previous, alpha=0.25)
        return self.attack.project(mixed, self.images, self.eps)

    def step(self, gradient: Tensor, attacked: Tensor, stride: Tensor) -> Tensor:
        return self.attack.normalise(gradient, attacked, stride)


class _Settling(_Halving):
    """Projected gradient steps from the best point of a sparse search.

    The sparse steps choose which values to change, all by as much as the others. These settle by
    how much: Euclidean steps, of which the projection keeps the steepest values.
    """

    def restarts(self, judged: Tensor, top: Best) -> Tensor:
        if self.moves:
            return super().restarts(judged, top)
        l2 = BALLS["l2"]
        # No point on the l1 sphere is nearer to its centre than this.
        nearest = self.eps / self.images[0].numel() ** 0.5
        self.stride = 2 * l2.size(top.images - self.images).clamp_min(nearest)
        super().restarts(top.values, top)
        return torch.ones_like(self.shortened)

    def step(self, gradient: Tensor, attacked: Tensor, stride: Tensor) -> Tensor:
        return BALLS["l2"].step(gradient, attacked, stride)


class _Sparse:
    """Equal steps of the steepest values only, as many as the best point suggests.

    The paper's direction is blind to the box: once its values are at the end of it, the search
    stands still. So the steepest value that can still move is always among them, and those that
    cannot do not count in the length of the step. They are pushed beyond the box all the same, or
    the projection would take from them what it must take from the others.

    Args:
        attack: whose projection.
        images: the centre of the ball.
        first: where the search begins.
        eps: the radius of the ball.
        steps: moves of the search.
    """

    def __init__(
        self, attack: Attack, images: Tensor, first: Tensor, eps: float, steps: int
    ) -> None:
        self.attack, self.images, self.eps = attack, images, eps
        self.window = max(int(0.04 * steps), 1)
        self.values = images[0].numel()
        changed = self._changed(first)
        self.changed = torch.where(changed > 0, changed, self.values)
        self.kept = (self.changed / 1.5).clamp_max(0.2 * self.values)
        self.stride = torch.full_like(changed, eps)
        self.moves = 0

    def restarts(self, judged: Tensor, top: Best) -> Tensor:
        """Which images [B] go back to their best point: those that have become sparser."""
        if self.moves == 0 or self.moves % self.window:
            return torch.zeros_like(judged, dtype=torch.bool)
        changed = self._changed(top.images)
        sparser = changed < 0.95 * self.changed
        shorter = (self.stride / 1.5).clamp_min(self.eps / 10)
        self.stride = torch.where(sparser, self.eps, shorter)
        self.kept = changed / 1.5
        self.changed = changed
        return sparser

    def move(self, attacked: Tensor, previous: Tensor, gradient: Tensor) -> Tensor:
        self.moves += 1
        slope = gradient.abs().flatten(1)
        free = movable(gradient, attacked).flatten(1)
        rank = self.kept.long().clamp_min(1) - 1
        least = slope.sort(1, descending=True).values.gather(1, rank[:, None])
        steepest_free = torch.where(free, slope, 0).amax(1, keepdim=True)
        steep = slope >= torch.minimum(least, steepest_free)
        share = self.stride / (steep & free).sum(1).clamp_min(1)
        step = share[:, None, None, None] * gradient.sign() * steep.view_as(gradient)
        return self.attack.project(attacked + step, self.images, self.eps)

    def _changed(self, attacked: Tensor) -> Tensor:
        """How many values [B] differ from those of the image by more than rounding."""
        differ = (attacked - self.images).abs() > 1e-6
        return differ.flatten(1).sum(1).to(attacked.dtype)
