"""The training loss: patch-wise cross-entropy, and attention kept wide."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from patchguard.attacks.objectives import patch_labels
from patchguard.detector import Inspection
from patchguard.models.attention import record_attention, uniformity_gap
from patchguard.models.patchguard import Placed


class PatchLoss:
    """Binary cross-entropy of the patch logits, summed over patches; also the inner objective.

    Args:
        anomalous_weight: weight of an anomalous patch relative to a normal one, of which there
            are far more.
        least_cover: patches of which an anomaly covers less than this share are left out.
    """

    def __init__(self, anomalous_weight: float, least_cover: float = 0.0) -> None:
        self.anomalous_weight = anomalous_weight
        self.least_cover = least_cover

    def of_logits(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss of each image, [B].

        Args:
            logits: patch logits [B, h, w].
            masks: [B, H, W]; a patch is anomalous where any of its pixels is, and left out where
                too few are.
        """
        target = patch_labels(masks, logits.shape[1:])
        loss = functional.binary_cross_entropy_with_logits(
            logits.float(),
            target,
            # Not new_tensor, for which the GPU would be waited for.
            pos_weight=logits.new_full((), self.anomalous_weight, dtype=torch.float32),
            reduction="none",
        )
        return (loss * self._counted(masks, target)).sum((1, 2))

    def _counted(self, masks: Tensor, target: Tensor) -> Tensor:
        """Where the patches [B, h, w] are normal, or anomalous enough."""
        height, width = target.shape[1:]
        covered = functional.adaptive_avg_pool2d((masks[:, None] > 0).float(), (height, width))
        return (target == 0) | (covered[:, 0] >= self.least_cover)

    def __call__(
        self, seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0
    ) -> Tensor:
        assert seen.patch_logits is not None
        return self.of_logits(seen.patch_logits, masks)


def training_loss(
    model: Placed,
    images: Tensor,
    masks: Tensor,
    patch_loss: PatchLoss,
    weights: dict[int, float],
) -> tuple[Tensor, Tensor]:
    """Mean patch loss and weighted attention term of one forward pass, two scalars.

    Args:
        model: in training mode.
        images: windows [B, 3, w, w] in [0, 1].
        masks: [B, w, w] bool.
        patch_loss: the loss of the logits.
        weights: weight of KL(uniform ‖ attention row) by block, counted from 1. With none, the
            pass uses fused attention throughout.
    """
    numbers = sorted(weights)
    blocks = [model.blocks[number - 1] for number in numbers]
    with record_attention(blocks) as maps:
        loss = patch_loss.of_logits(model.patch_logits(images), masks).mean()
    gaps = (
        weights[number] * uniformity_gap(rows) for number, rows in zip(numbers, maps, strict=True)
    )
    return loss, sum(gaps, start=loss.new_zeros(()))
