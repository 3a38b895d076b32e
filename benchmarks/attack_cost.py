"""What a suite costs: passes per image, and wall time against a plain PGD loop of as many passes.

    python benchmarks/attack_cost.py RUN DATA [--suites quick standard] [--images 24] [--repeats 2]

The plain loop is the one that a user would write: gradient of the score, signed step, clipping;
no bookkeeping, no restarts, nothing kept. It makes as many forward-and-backward passes and as many
forward passes as the evaluation did, on the same images in batches of the same size. Metrics,
bootstrap intervals and files count as time of the evaluation. Each suite is timed without and with
its search for minimal eps, whose exact projections cost time of their own. Evaluation and loop take
turns, and the ratio is that of their sums: the speed of a shared machine drifts.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import patchguard
from patchguard.config import EvaluationConfig
from patchguard.data.folder import scan_test
from patchguard.detector import Detection, Detector, Inspection
from patchguard.evaluation.protocol import DetectorFacts, evaluate_detector
from patchguard.evaluation.test_set import TestSet, labelled_images
from patchguard.results.model_file import read_model


class Counting(Detector):
    """A detector that counts images through it, with and without a gradient to come."""

    def __init__(self, detector: Detector, counts: dict[str, int]) -> None:
        super().__init__()
        self.detector = detector
        self.counts = counts

    def __deepcopy__(self, memo: dict[int, object]) -> Counting:
        return Counting(self.detector, self.counts)

    def inspect(self, images: Tensor) -> Inspection:
        self._count(images)
        return self.detector.inspect(images)

    def forward(self, images: Tensor) -> Detection:
        self._count(images)
        return self.detector(images)

    def _count(self, images: Tensor) -> None:
        self.counts["gradient" if images.requires_grad else "forward"] += len(images)


def evaluation_seconds(
    detector: Detector,
    test: TestSet,
    config: EvaluationConfig,
    counts: dict[str, int],
    threshold: float | None,
) -> float:
    """Time of a whole evaluation without self-checks; fills ``counts``."""
    known = DetectorFacts(threshold=threshold, checks=False)
    began = time.perf_counter()
    evaluate_detector(Counting(detector, counts), test, config, known=known)
    return time.perf_counter() - began


def loop_seconds(
    detector: Detector, images: Tensor, counts: dict[str, int], batch_size: int
) -> float:
    """Time of a plain PGD loop with that many passes."""
    began = time.perf_counter()
    size = -(-len(images) // -(-len(images) // batch_size))
    batches = torch.split(images, size)
    done, eps = {"gradient": 0, "forward": 0}, 8 / 255
    for parameter in detector.parameters():
        parameter.requires_grad_(False)
    while done["gradient"] < counts["gradient"]:
        for batch in batches:
            attacked = batch.clone()
            for _ in range(10):
                attacked.requires_grad_()
                (gradient,) = torch.autograd.grad(detector(attacked).score.sum(), attacked)
                moved = attacked.detach() + eps / 4 * gradient.sign()
                attacked = torch.clamp(moved, batch - eps, batch + eps).clamp(0, 1)
                done["gradient"] += len(batch)
    with torch.no_grad():
        while done["forward"] < counts["forward"]:
            for batch in batches:
                detector(batch)
                done["forward"] += len(batch)
    seconds = time.perf_counter() - began
    # The loop ends on whole rounds: take off what it did too much.
    return seconds * sum(counts.values()) / sum(done.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--suites", nargs="+", default=["quick"])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector = patchguard.load(arguments.run)
    tree = scan_test(arguments.data)
    height, width = read_model(arguments.run).preprocessing.shape
    test = labelled_images(tree.test, (height, width), tree.has_masks)
    test = test.subset(arguments.images)
    print(
        f"{arguments.data.name}, {len(test.names)} images of {height} x {width} px, batches of "
        f"{arguments.batch_size}, {arguments.threads} threads, seed 0, torch {version('torch')}, "
        f"Python {platform.python_version()}"
    )
    for suite in arguments.suites:
        config = EvaluationConfig(suite=suite, batch_size=arguments.batch_size)
        for what, threshold in (("attacks", None), ("with minimal eps", 0.0)):
            ours = loop = 0.0
            for _ in range(arguments.repeats):
                counts = {"gradient": 0, "forward": 0}
                ours += evaluation_seconds(detector, test, config, counts, threshold)
                loop += loop_seconds(detector, test.images, counts, arguments.batch_size)
            per_image = {kind: count / len(test.names) for kind, count in counts.items()}
            print(
                f"{suite:10} {what:17} forward+backward {per_image['gradient']:7.0f}  forward "
                f"{per_image['forward']:6.0f} per image   suite {ours:6.1f} s   loop {loop:6.1f} s "
                f"  ratio {ours / loop:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
