"""From patch tokens to patch logits to an image score and a pixel map."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Position code, one transformer block, one logit per patch (PatchGuard, CVPR 2025).

    Args:
        tokens: N, how many patches there are.
        dim: C, the width of their tokens.
        heads: of the block's attention.
        hidden: width of the block's MLP.
        dropout: in the block.
        position_std: standard deviation of the random position code that training starts from.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        position_std: float,
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(position_std * torch.randn(1, tokens, dim))
        self.block = Block(
            dim,
            heads,
            mlp_ratio=hidden / dim,
            qkv_bias=True,
            proj_drop=dropout,
            attn_drop=dropout,
        )
        self.head = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Patch logits [B, N] of patch tokens [B, N, C]."""
        logits: Tensor = self.head(self.block(tokens + self.position))
        return logits.squeeze(-1)


def top_k_mean(logits: Tensor, k: int) -> Tensor:
    """Mean of the k largest of the patch logits [B, N]: the image score [B]."""
    return logits.topk(min(k, logits.shape[1]), dim=1).values.mean(1)


class MapHead(nn.Module):
    """Patch logits [B, h, w] to a smooth pixel map [B, H, W]: bilinear, then Gaussian blur.

    Both are linear and separable, so the whole head is one small matrix per axis. The blur's
    borders are symmetric (scipy's ``reflect``).
    """

    def __init__(self, grid: int, size: int, sigma: float, radius: int) -> None:
        super().__init__()
        bilinear = nn.functional.interpolate(
            torch.eye(grid, dtype=torch.float64)[None], size=size, mode="linear"
        )[0].T
        blurred = gaussian_filter1d(bilinear.numpy(), sigma, axis=0, radius=radius, mode="reflect")
        matrix = torch.from_numpy(np.ascontiguousarray(blurred, dtype=np.float32))
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        matrix = cast(Tensor, self.matrix)
        return matrix @ logits.to(matrix.dtype) @ matrix.T
