"""Transfer: images crafted on one detector, judged on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import interpolate

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem, Start, at_image
from patchguard.attacks.pgd import PGD
from patchguard.constraints import Count
from patchguard.detector import Detection, Detector, Inspection


@dataclass(kw_only=True)
class Transfer(Attack):
    """An attack on a source detector, whose images are shown to the target once.

    The target is only ever called, never differentiated, and only to tell whether a crafted image
    or the image itself has the larger true value. A white-box attack must be stronger.
    Objective, judge and starts are those of the attack on the source; the judge then chooses on
    the target too.

    Args:
        source: takes images of the target's size; see :class:`Resized`.
        inner: makes the attack on the source from what all attacks have in common and ``steps``.
        steps: of the attack on the source.
    """

    source: Detector
    inner: Callable[..., Attack] = PGD
    steps: Count = 100

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        (crafted,) = self._on_the_source()(
            self.source,
            problem.images,
            problem.labels,
            problem.masks,
            eps=[eps],
            generator=problem.generator,
            each_step=problem.each_step,
        )
        best.update(crafted, problem.judged(crafted))
        return crafted

    def cost(self) -> float:
        return self._on_the_source().passes + FORWARD

    @property
    def restarts(self) -> Sequence[Start]:
        return (at_image,)

    def _on_the_source(self) -> Attack:
        return self.inner(
            self.objective,
            judge=self.judge,
            ball=self.ball,
            starts=self.starts,
            steps=self.steps,
            eval_mode=self.eval_mode,
        )


class Resized(Detector):
    """A detector of another image size: images are resized to it, its maps back to theirs.

    The resize is antialiased and part of the graph, so that an attack's ball is around the images
    that come in.

    Args:
        detector: one that takes images of ``shape``.
        shape: their height and width in pixels.
    """

    def __init__(self, detector: Detector, shape: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self.shape = shape

    def inspect(self, images: Tensor) -> Inspection:
        seen = self.detector.inspect(_resized(images, self.shape))
        maps = _resized(seen.anomaly_map[:, None], images.shape[-2:])[:, 0]
        return seen._replace(anomaly_map=maps)

    def forward(self, images: Tensor) -> Detection:
        seen = self.inspect(images)
        return Detection(seen.score, seen.anomaly_map)


def _resized(pictures: Tensor, size: tuple[int, ...]) -> Tensor:
    return interpolate(pictures, size=size, mode="bilinear", antialias=True)
