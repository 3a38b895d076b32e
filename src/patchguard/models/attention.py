"""Attention maps of timm blocks, and the term that widens them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
    fused = [block.attn.fused_attn for block in blocks]  # type: ignore[union-attr]
    for block in blocks:
        block.attn.fused_attn = False  # type: ignore[union-attr]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
        for block, flag in zip(blocks, fused, strict=True):
            block.attn.fused_attn = flag  # type: ignore[union-attr]


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
