"""Attention maps of timm blocks, how wide they are, and the term that widens them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from patchguard.models.patchguard import Placed


@contextmanager
def record_attention(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect softmax attention [B, heads, N, N] of the given timm blocks, in forward order.

    Only inside this context, and only for these blocks, is fused attention switched off: the
    fused kernel never forms the matrix.
    """
    maps: list[Tensor] = []
    hooks = [
        block.attn.attn_drop.register_forward_pre_hook(  # type: ignore[union-attr]
            lambda _module, inputs: maps.append(inputs[0])
        )
        for block in blocks
    ]
    try:
        with unfused(blocks):
            yield maps
    finally:
        for hook in hooks:
            hook.remove()


def uniformity_gap(attention: Tensor) -> Tensor:
    """Mean over rows of KL(uniform ‖ row) in nats, a scalar ≥ 0, zero for uniform attention.

    Args:
        attention: softmax rows [..., N]. A row that attends to few tokens is far from uniform;
            PatchGuard's theory ties that to its sensitivity to a perturbed token.
    """
    rows = attention.float().clamp_min(torch.finfo(torch.float32).tiny)
    tokens = rows.shape[-1]
    log_tokens = torch.log(torch.tensor(float(tokens), device=rows.device))
    return (-rows.log().mean(-1) - log_tokens).mean()


def attention_degree(attention: Tensor) -> Tensor:
    """The effective number of tokens that each row attends to, [...], in [1, N].

    exp(entropy), the Hill number of order 1 (Hill 1973): k for a row that is uniform over k
    tokens whatever N is, and never more than the number of tokens with any weight. Unlike a
    count above a threshold it has no threshold to choose, and every token counts by its weight.

    Args:
        attention: softmax rows [..., N].
    """
    entropy: Tensor = torch.special.entr(attention.float()).sum(-1)
    return entropy.exp()


def attention_degrees(model: Placed, images: Tensor) -> Tensor:
    """Mean :func:`attention_degree` over rows and images, [blocks, heads], of the backbone.

    The model runs in eval mode and its mode is restored; no randomness is consumed.

    Args:
        model: on the device of the images.
        images: [B, 3, H, W] in [0, 1], all in one pass.
    """
    with measured(model), record_attention(model.blocks) as maps:
        model(images)
        return torch.stack([attention_degree(rows).mean((0, 2)) for rows in maps])


@contextmanager
def unfused(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Fused attention off: its kernels form no matrix and have no forward-mode derivative."""
    fused = [block.attn.fused_attn for block in blocks]  # type: ignore[union-attr]
    for block in blocks:
        block.attn.fused_attn = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        for block, flag in zip(blocks, fused, strict=True):
            block.attn.fused_attn = flag  # type: ignore[union-attr]


@contextmanager
def measured(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; the modes are restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
