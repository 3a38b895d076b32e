"""Threat models: what may be done to an image, always within [0, 1].

Projections are exact: onto the intersection of ball and box, not onto one after the other. They
and the steps to a hyperplane come down to one equation in one unknown, solved by a few passes over
the pixels. With ``d`` the perturbation asked for and ``room`` the way to the box, the projection
onto the l2 ball is ``min(s |d|, room)`` and that onto the l1 ball ``min((|d| - c)+, room)``, with
``s`` and ``c`` such that the norm is eps.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Ball(Protocol):
    """A norm ball around each image of a batch, cut by the box [0, 1].

    Attributes:
        name: of the norm.
        step_size: step of PGD as a multiple of eps / steps, long enough to cross the ball and
            settle.
        sparse: its largest growth is on few values, the steepest, not on all.
    """

    name: str
    step_size: float
    sparse: bool

    def random(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        """A random point [B, 3, H, W] of each ball of radius ``eps``, in the box."""
        ...

    def step(self, gradient: Tensor, attacked: Tensor, stride: float | Tensor) -> Tensor:
        """The step of norm ``stride`` along which a linear function with this gradient grows most.

        Zero where the gradient is. It may lead out of the box: the projection comes after it.

        Args:
            gradient: [B, 3, H, W].
            attacked: where the step begins, [B, 3, H, W] in [0, 1].
            stride: its length, one for all images or [B, 1, 1, 1].
        """
        ...

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        """The nearest point of ball and box, in the Euclidean sense."""
        ...

    def size(self, perturbation: Tensor) -> Tensor:
        """The norm [B] of perturbations [B, 3, H, W]."""
        ...


@runtime_checkable
class NormBall(Ball, Protocol):
    """A ball of an lp norm, whose distance to a hyperplane is known in closed form."""

    def reach(self, gradient: Tensor, images: Tensor, gain: Tensor) -> Tensor:
        """The smallest step in the box along which a linear function grows by ``gain``.

        The step of largest growth where the box allows no such gain.

        Args:
            gradient: of the linear function, [B, 3, H, W].
            images: where the step begins, [B, 3, H, W] in [0, 1].
            gain: [B], not negative.
        """
        ...


ROUNDING = 2.0**-24
"""Most by which float32 rounds a sum in [0, 1], with room for that of its difference."""


class Linf:
    """Every value of every pixel changes by at most eps."""

    name = "linf"
    step_size = 2.5
    sparse = False

    def random(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        noise = torch.empty_like(images).uniform_(-1, 1, generator=generator)
        return self.project(images + eps * noise, images, eps)

    def step(self, gradient: Tensor, attacked: Tensor, stride: float | Tensor) -> Tensor:
        return stride * gradient.sign()

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        # Less what images ± eps may be rounded away from the images.
        reach = max(eps - ROUNDING, 0.0)
        return torch.clamp(attacked, images - reach, images + reach).clamp_(0, 1)

    def size(self, perturbation: Tensor) -> Tensor:
        return perturbation.abs().flatten(1).amax(1)

    def reach(self, gradient: Tensor, images: Tensor, gain: Tensor) -> Tensor:
        slope, gain = _scaled(gradient, gain)
        room = _room(gradient, images)
        level = _level(slope, slope * room, gain)
        return gradient.sign() * torch.minimum(level, room)


class L2:
    """The Euclidean length of the change is at most eps."""

    name = "l2"
    # On a linear score the angle to the best direction falls by 1 / (1 + stride / eps) a step.
    step_size = 10.0
    sparse = False

    def random(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        noise = torch.empty_like(images).normal_(generator=generator)
        share = torch.rand(len(images), device=images.device, generator=generator)
        radius = eps * share ** (1 / images[0].numel()) / self.size(noise)
        return self.project(images + _per_image(radius) * noise, images, eps)

    def step(self, gradient: Tensor, attacked: Tensor, stride: float | Tensor) -> Tensor:
        """As in :meth:`Ball.step`, where the norm is that of the part which the box allows."""
        free = torch.where(movable(gradient, attacked), gradient, 0)
        # First to a largest value of 1, since the squares of small gradients underflow.
        scale = _per_image(_positive(free.abs().flatten(1).amax(1)))
        length = _per_image(self.size(free / scale))
        return torch.where(length > 0, stride * (gradient / scale) / length, 0)

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        change = attacked - images
        square = torch.full((len(images),), eps**2, dtype=images.dtype, device=images.device)
        level = _level(change**2, _room(change, images) ** 2, square)
        return _moved(images, level.sqrt().clamp_max(1) * change)

    def size(self, perturbation: Tensor) -> Tensor:
        # Not torch's norm, which loses digits in float32 where sum, which adds in pairs, does not.
        return perturbation.flatten(1).square().sum(1).sqrt()

    def reach(self, gradient: Tensor, images: Tensor, gain: Tensor) -> Tensor:
        slope, gain = _scaled(gradient, gain)
        room = _room(gradient, images)
        level = _level(slope**2, slope * room, gain)
        return gradient.sign() * torch.minimum(level * slope, room)


class L1:
    """The changes of all values of all pixels add up to at most eps."""

    name = "l1"
    step_size = 2.5
    sparse = True

    def random(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        noise = torch.empty_like(images).exponential_(generator=generator)
        signs = torch.empty_like(images).uniform_(-1, 1, generator=generator).sign()
        share = torch.rand(len(images), device=images.device, generator=generator)
        radius = eps * share ** (1 / images[0].numel()) / self.size(noise)
        return self.project(images + _per_image(radius) * noise * signs, images, eps)

    def step(self, gradient: Tensor, attacked: Tensor, stride: float | Tensor) -> Tensor:
        """As in :meth:`Ball.step`, with the box in mind.

        The steepest coordinate is soon at the end of the box. So each coordinate, steepest first,
        is offered what the steeper ones could not take; and those already at the end are pushed
        beyond it, or the projection would take from them what it must take from the others.
        """
        order = gradient.abs().flatten(1).argsort(1, descending=True)
        room = _room(gradient, attacked).flatten(1).gather(1, order)
        taken = torch.zeros_like(room).scatter_(1, order, room.cumsum(1) - room)
        return gradient.sign() * (stride - taken.view_as(gradient)).clamp_min(0)

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        change = attacked - images
        amount, room = change.abs(), _room(change, images)
        cut = _threshold(amount.flatten(1), room.flatten(1), eps)
        kept = torch.minimum((amount - _per_image(cut)).clamp_min(0), room)
        # What is left over where the threshold is far larger than the norm, in float32.
        surplus = _per_image(eps / _positive(self.size(kept))).clamp_max(1)
        return _moved(images, surplus * change.sign() * kept)

    def size(self, perturbation: Tensor) -> Tensor:
        return perturbation.abs().flatten(1).sum(1)

    def reach(self, gradient: Tensor, images: Tensor, gain: Tensor) -> Tensor:
        slope, gain = _scaled(gradient, gain)
        steepest, order = slope.flatten(1).sort(1, descending=True)
        room = _room(gradient, images).flatten(1).gather(1, order)
        gained = (steepest * room).cumsum(1) - steepest * room
        wanted = ((gain[:, None] - gained) / _positive(steepest)).clamp_min(0)
        step = torch.zeros_like(room).scatter_(1, order, torch.minimum(wanted, room))
        return gradient.sign() * step.view_as(gradient)


_AT_THE_END = 1e-6
_RESOLUTION = 2e-7
_PASSES = 60

LINF = Linf()

BALLS: dict[str, NormBall] = {ball.name: ball for ball in (LINF, L2(), L1())}


def _room(direction: Tensor, images: Tensor) -> Tensor:
    """How far each value may move in this direction before it leaves the box."""
    return torch.where(direction > 0, 1 - images, images)


def to_the_end(gradient: Tensor, attacked: Tensor) -> Tensor:
    """The step to the end of the box along which a linear function with this gradient grows."""
    return gradient.sign() * _room(gradient, attacked)


def kept_worth(attacked: Tensor, images: Tensor, inside: Tensor) -> Tensor:
    """What keeping a pixel, moved ``inside`` the box, saves of the squared distance: [B, H, W]."""
    return ((attacked - images) ** 2 - (attacked - inside) ** 2).sum(1)


def movable(direction: Tensor, images: Tensor) -> Tensor:
    """Where a value is not yet, up to rounding, at the end of the box in this direction."""
    return _room(direction, images) > _AT_THE_END


def _moved(images: Tensor, step: Tensor) -> Tensor:
    """In the box, and rounded towards the images: steps on the grid of floats do not add up."""
    moved = (images + step).clamp(0, 1)
    too_far = (moved - images).abs() > step.abs()
    return torch.where(too_far, torch.nextafter(moved, images), moved)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _positive(values: Tensor) -> Tensor:
    """A divisor: zeros, whose numerators are zero as well, replaced."""
    return values.clamp_min(torch.finfo(values.dtype).tiny)


def _scaled(gradient: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of at most 1, whose squares do not underflow, and the gain in the same unit."""
    scale = _positive(gradient.abs().flatten(1).amax(1))
    return gradient.abs() / _per_image(scale), gain / scale


def _level(rates: Tensor, limits: Tensor, total: Tensor) -> Tensor:
    """The t [B, 1, 1, 1] with sum min(t * rates, limits) = total; huge where limits fall short.

    The sum is concave and piecewise linear in t, so Newton's steps from below never pass the
    solution and end on it.
    """
    rates, limits = rates.flatten(1), limits.flatten(1)
    level = torch.zeros_like(total)
    while True:
        full = level[:, None] * rates >= limits
        rest = total - torch.where(full, limits, 0).sum(1)
        rate = torch.where(full, 0, rates).sum(1)
        # Bounded, so that a rate of 0 at a huge level still yields 0.
        larger = (rest / rate).clamp_max(torch.finfo(rates.dtype).max)
        if not (larger > level).any():
            return _per_image(level)
        level = torch.where(larger > level, larger, level)


def _threshold(amounts: Tensor, room: Tensor, eps: float) -> Tensor:
    """The c >= 0 [B] with sum min((amounts - c)+, room) = eps; 0 where the sum is smaller at 0.

    Newton's steps on a falling, piecewise linear function, kept inside a bracket by bisection.
    """
    low = torch.zeros_like(amounts[:, 0])
    high = amounts.amax(1)
    cut = low
    for _ in range(_PASSES):
        left = amounts - cut[:, None]
        kept = torch.minimum(left.clamp_min(0), room)
        excess = kept.sum(1) - eps
        newton = cut + excess / ((left > 0) & (left < room)).sum(1)
        found = (newton - cut).abs() <= _RESOLUTION * cut
        settled = found | (excess.abs() <= _RESOLUTION * eps) | ((excess <= 0) & (cut == 0))
        if settled.all():
            break
        low = torch.where(excess > 0, cut, low)
        high = torch.where(excess > 0, high, cut)
        inside = (newton > low) & (newton < high)
        cut = torch.where(settled, cut, torch.where(inside, newton, (low + high) / 2))
    return cut
