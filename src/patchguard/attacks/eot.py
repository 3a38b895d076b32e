"""Expectation over transformation (Athalye et al. 2018), for detectors that draw at random."""

from __future__ import annotations

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from patchguard.detector import Detection, Detector, Inspection


class Averaged(Detector):
    """The mean of several looks at the same images, each with fresh randomness.

    Every attack on it is the EOT version of that attack. It costs ``samples`` forward passes, and
    as many again for a gradient, since each look is recomputed rather than remembered: memory is
    that of one look.

    Args:
        detector: one whose outputs are random.
        samples: looks at each image.
    """

    def __init__(self, detector: Detector, samples: int = 20) -> None:
        super().__init__()
        self.detector = detector
        self.samples = samples

    def inspect(self, images: Tensor) -> Inspection:
        total = self._look(images)
        for _ in range(self.samples - 1):
            look = self._look(images)
            total = Inspection._make(map(_sum, total, look))
        return Inspection._make(None if part is None else part / self.samples for part in total)

    def forward(self, images: Tensor) -> Detection:
        seen = self.inspect(images)
        return Detection(seen.score, seen.anomaly_map)

    def _look(self, images: Tensor) -> Inspection:
        look: Inspection = checkpoint(self.detector.inspect, images, use_reentrant=False)
        return look


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    return None if total is None or part is None else total + part
