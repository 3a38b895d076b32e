"""The training loss: patch-wise cross-entropy, and attention kept wide."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from patchguard.attacks.objectives import patch_labels
from patchguard.detector import Detector
from patchguard.models.attention import record_attention, uniformity_gap
from patchguard.models.patchguard import PatchGuard


def patch_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy summed over the patches of each image, [B].

    Args:
        logits: patch logits [B, h, h].
        masks: [B, H, W] bool; a patch is anomalous where any of its pixels is.
    """
    target = patch_labels(masks, logits.shape[-1])
    loss = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return loss.sum((1, 2))


def patch_loss_objective(
    detector: Detector, images: Tensor, labels: Tensor, masks: Tensor
) -> Tensor:
    """The loss itself as the objective of the inner attack, [B]."""
    assert isinstance(detector, PatchGuard)
    return patch_loss(detector.patch_logits(images), masks)


def attention_loss(
    model: PatchGuard, images: Tensor, masks: Tensor, weights: dict[int, float]
) -> tuple[Tensor, Tensor]:
    """Mean patch loss and weighted attention term of one forward pass, two scalars.

    Args:
        model: in training mode.
        images: [B, 3, H, W] in [0, 1].
        masks: [B, H, W] bool.
        weights: weight of KL(uniform ‖ attention row) by block, counted from 1. With none, the
            pass uses fused attention throughout.
    """
    blocks = [model.blocks[number - 1] for number in weights]
    with record_attention(blocks) as maps:
        loss = patch_loss(model.patch_logits(images), masks).mean()
    gaps = (
        weight * uniformity_gap(rows) for weight, rows in zip(weights.values(), maps, strict=True)
    )
    return loss, sum(gaps, start=loss.new_zeros(()))
