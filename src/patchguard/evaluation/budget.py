"""How many images an evaluation can attack in a given time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from patchguard.attacks.attack import attackable
from patchguard.attacks.minimal import MinimalEps
from patchguard.attacks.suite import members
from patchguard.config import Suite
from patchguard.detector import Detector, device_of
from patchguard.evaluation.store import digest
from patchguard.evaluation.test_set import TestSet
from patchguard.files import write_whole
from patchguard.runtime import full_precision

BUDGET = "budget.json"
FEWEST = 2
_OVERHEAD = 1.3
"""Checks, metrics and files take time besides the attacks: in the measured evaluations 1.1 to 1.3
times theirs."""


def passes_of(suite: Suite) -> float:
    """About how many passes forward and backward a suite makes for each image."""
    attacks = sum(
        member.passes * len(threat.sizes) for threat in suite.threats for member in members(threat)
    )
    searched = 0.0 if suite.minimal_eps is None else MinimalEps(**suite.minimal_eps).passes
    return attacks + searched


def seconds_per_pass(detector: Detector, images: Tensor) -> float:
    """What a pass forward and backward takes for one of these images [B, 3, H, W], on one worker.

    A worker on the CPU has one thread and one image at a time costs as much as several; on a GPU it
    is a share of as many as it holds. The second of two passes: the first one warms up.
    """
    device = device_of(detector)
    count = 1 if device.type == "cpu" else detector.at_once(*images.shape[-2:]) or len(images)
    batch = images[:count].to(device).requires_grad_()
    taken, threads = 0.0, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with full_precision(), attackable(detector):
            for _ in range(2):
                began = time.monotonic()
                score = detector(batch).score.sum()
                if score.requires_grad:
                    torch.autograd.grad(score, batch, allow_unused=True)
                float(score.detach())
                taken = time.monotonic() - began
    finally:
        torch.set_num_threads(threads)
    return taken / len(batch)


def affordable(
    detector: Detector, test: TestSet, suite: Suite, minutes: float, workers: int
) -> int:
    """How many test images can be attacked in that time: at least two, at most all.

    Args:
        detector: on the device to use.
        test: the images.
        suite: of attacks.
        minutes: for everything.
        workers: that attack at once.
    """
    each = passes_of(suite) * seconds_per_pass(detector, test.images) * _OVERHEAD
    count = int(60 * minutes * workers / max(each, 1e-9))
    return min(len(test.names), max(FEWEST, count))


def remembered(cache: Path, test: TestSet, suite: Suite, minutes: float) -> int | None:
    """The number of images that an evaluation in this cache was begun with, if it was."""
    try:
        content = json.loads((cache / BUDGET).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(content, dict) and content.get("decides") == _decides(test, suite, minutes)
    return int(content["images"]) if same else None


def remember(cache: Path, test: TestSet, suite: Suite, minutes: float, images: int) -> None:
    """Keep the number, so that the evaluation goes on with it on a slower day."""
    cache.mkdir(parents=True, exist_ok=True)
    content = {"decides": _decides(test, suite, minutes), "images": images}
    write_whole(cache / BUDGET, json.dumps(content) + "\n")


def _decides(test: TestSet, suite: Suite, minutes: float) -> str:
    return digest([list(test.names), repr(suite), minutes])
