"""What each view of a detector sees: clean image AUROC by number of patches, by kind of defect.

    python benchmarks/views.py RUN DATA [--patches 1 3 8 20 40]

Reads the labelled test images of DATA and prints a line for each view and number of patches in the
mean of the score, and one for the score of the run as it is, its views joined. It is a way to
look at a finished detector. Nothing may be chosen by what it prints: test images are for
reporting.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import patchguard
from patchguard.data.folder import scan_test
from patchguard.evaluation.metrics import auroc_by_kind, image_metrics
from patchguard.evaluation.scoring import score_images
from patchguard.evaluation.test_set import TestSet, labelled_images
from patchguard.models.discriminator import top_mean
from patchguard.models.patchguard import PatchGuard
from patchguard.pipelines.evaluate import versions
from patchguard.results.model_file import read_model

AT_ONCE = 4


@torch.no_grad()
def logits(detector: PatchGuard, images: Tensor) -> dict[str, Tensor]:
    """Of each view, the patch logits [N, h, w] of images [N, 3, H, W]."""
    found = [detector.views(batch) for batch in torch.split(images, AT_ONCE)]
    return {view: torch.cat([seen[view].logits for seen in found]) for view in found[0]}


def line(name: str, scores: Tensor, test: TestSet) -> str:
    """One line of the table."""
    values = scores.double().numpy()
    kinds = auroc_by_kind(values, test.kinds)
    by_kind = ", ".join(f"{kind} {auroc:.2f}" for kind, auroc in kinds.items())
    return f"{name:24} {image_metrics(values, test.labels).auroc:.3f}   {by_kind}"


def lines(detector: PatchGuard, test: TestSet, patches: list[int]) -> Iterator[str]:
    """The table."""
    for view, found in logits(detector, test.images).items():
        for count in patches:
            if count <= found[0].numel():
                yield line(f"{view}, top {count}", top_mean(found, count), test)
    scores = torch.from_numpy(score_images(detector, test.images, AT_ONCE).scores)
    chosen = ", ".join(f"{view} {score.patches}" for view, score in detector.scores.items())
    yield line(f"as it is ({chosen})", scores, test)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--patches", type=int, nargs="+", default=[1, 3, 8, 20, 40])
    arguments = parser.parse_args()
    detector, shape = patchguard.load(arguments.run), read_model(arguments.run).preprocessing.shape
    test = labelled_images(scan_test(arguments.data).test, shape, with_masks=False)
    anomalous = int(test.labels.sum())
    print(
        f"{arguments.data.name}, {len(test.names) - anomalous} normal and {anomalous} anomalous "
        f"test images at {shape[0]} x {shape[1]} px, clean, {versions()}"
    )
    for told in lines(detector, test, arguments.patches):
        print(told, flush=True)


if __name__ == "__main__":
    main()
