"""Transfer: images crafted on one detector, judged on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem, Start, at_image
from patchguard.attacks.balls import LINF, Ball
from patchguard.attacks.objectives import Objective
from patchguard.attacks.pgd import PGD
from patchguard.detector import Detection, Detector, Inspection


class Transfer(Attack):
    """An attack on a source detector, whose images are shown to the target once.

    The target is only ever called, never differentiated, and only to tell whether a crafted image
    or the image itself has the larger true value. A white-box attack must be stronger.

    Args:
        objective: what is climbed on the source.
        judge: by what the best image is chosen, on the source and then on the target; the
            objective itself when absent.
        ball: the threat model.
        starts: of the attack on the source.
        source: takes images of the target's size; see :class:`Resized`.
        inner: makes the attack on the source from the settings above and ``steps``.
        steps: of the attack on the source.
        eval_mode: attack and judge detectors in eval mode (dropout off).
    """

    def __init__(
        self,
        objective: Objective,
        *,
        judge: Objective | None = None,
        ball: Ball = LINF,
        starts: Sequence[Start] | None = None,
        source: Detector,
        inner: Callable[..., Attack] = PGD,
        steps: int = 100,
        eval_mode: bool = True,
    ) -> None:
        super().__init__(objective, judge=judge, ball=ball, starts=(at_image,), eval_mode=eval_mode)
        self.source = source
        self.inner = inner(
            objective, judge=judge, ball=ball, starts=starts, steps=steps, eval_mode=eval_mode
        )

    def search(
        self,
        problem: Problem,
        first: Tensor,
        eps: float,
        best: Best,
        generator: torch.Generator | None,
    ) -> Tensor:
        (crafted,) = self.inner(
            self.source,
            problem.images,
            problem.labels,
            problem.masks,
            eps=[eps],
            generator=generator,
        )
        best.update(crafted, problem.judged(crafted))
        return crafted

    def cost(self) -> float:
        return self.inner.passes + FORWARD


class Resized(Detector):
    """A detector of another image size: images are resized to it, its maps back to theirs.

    The resize is antialiased and part of the graph, so that an attack's ball is around the images
    that come in.

    Args:
        detector: one that takes square images of ``size``.
        size: their side in pixels.
    """

    def __init__(self, detector: Detector, size: int) -> None:
        super().__init__()
        self.detector = detector
        self.size = size

    def inspect(self, images: Tensor) -> Inspection:
        seen = self.detector.inspect(_resized(images, (self.size, self.size)))
        maps = _resized(seen.anomaly_map[:, None], images.shape[-2:])[:, 0]
        return seen._replace(anomaly_map=maps)

    def forward(self, images: Tensor) -> Detection:
        seen = self.inspect(images)
        return Detection(seen.score, seen.anomaly_map)


def _resized(pictures: Tensor, size: tuple[int, ...]) -> Tensor:
    return interpolate(pictures, size=size, mode="bilinear", antialias=True)
