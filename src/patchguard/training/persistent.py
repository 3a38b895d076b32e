"""Perturbations that outlive their step: a normal image is attacked from where it was left."""

from __future__ import annotations

import torch
from torch import Tensor

from patchguard.attacks.attack import Attack, Problem, Start, uniform


class Perturbations:
    """What the inner attack last did to each normal image (ATTA: Zheng et al., CVPR 2020).

    Over the epochs many single steps add up to one long attack. Pseudo-anomalies are new in every
    batch and start at random, as a normal image does the first time.

    Args:
        images: how many normal images there are.
        size: side of the images in pixels.
    """

    def __init__(self, images: int, size: int) -> None:
        self.changes = torch.zeros(images, 3, size, size, dtype=torch.float16)
        self.known = torch.zeros(images, dtype=torch.bool)

    def start(self, index: Tensor, flips: Tensor) -> Start:
        """Where to attack a batch that begins with these normals [B], flipped so [B, 2]."""

        def remembered(attack: Attack, problem: Problem, eps: float) -> Tensor:
            first = uniform(attack, problem, eps)
            normals = problem.images[: len(index)]
            left = normals + _flipped(self.changes[index.cpu()].to(normals), flips)
            inside = attack.ball.project(left, normals, eps)
            known = self.known[index.cpu()].to(normals.device)[:, None, None, None]
            first[: len(index)] = torch.where(known, inside, first[: len(index)])
            return first

        return remembered

    def keep(self, index: Tensor, flips: Tensor, changes: Tensor) -> None:
        """Remember the changes [B, 3, H, W] of these normals."""
        # One by one: a batch may hold an image twice, and then the last one counts.
        for image, change in zip(index.tolist(), _flipped(changes, flips), strict=True):
            self.changes[image] = change
            self.known[image] = True

    def state_dict(self) -> dict[str, Tensor]:
        return {"changes": self.changes, "known": self.known}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.changes, self.known = state["changes"], state["known"]


def _flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Each image [B, 3, H, W] flipped along the axes that are True in ``flips`` [B, 2]."""
    for axis in (0, 1):
        chosen = flips[:, axis, None, None, None].to(images.device)
        images = torch.where(chosen, images.flip(2 + axis), images)
    return images
