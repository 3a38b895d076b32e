"""From patch tokens to patch logits to an image score."""

from __future__ import annotations

import math

import torch
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
        placed: whether it is told where in the image the tokens lie.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        position_std: float,
        placed: bool,
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(position_std * torch.randn(1, tokens, dim))
        self.place = PlaceCode(math.isqrt(tokens), dim) if placed else None
        self.block = Block(
            dim,
            heads,
            mlp_ratio=hidden / dim,
            qkv_bias=True,
            proj_drop=dropout,
            attn_drop=dropout,
        )
        self.head = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Patch logits [B, N] of patch tokens [B, N, C] of what lies at ``places`` [B, 4]."""
        tokens = tokens + self.position
        if self.place is not None:
            tokens = tokens + self.place(places)
        logits: Tensor = self.head(self.block(tokens))
        return logits.squeeze(-1)


class PlaceCode(nn.Module):
    """Where in the image each patch of a window lies, and how much of the image a window shows.

    A linear map of sines and cosines of the patch centres; nothing at the start of training.

    Args:
        grid: patches along a side of a window.
        dim: width of the code.
    """

    WAVES = (0.5, 1.0)
    """Periods of the sines in the image."""

    def __init__(self, grid: int, dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.code = nn.Linear(4 * len(self.WAVES) + 1, dim, bias=False)
        nn.init.zeros_(self.code.weight)

    def forward(self, places: Tensor) -> Tensor:
        """[B, N, C] of top, left, height and width [B, 4] as fractions of the image."""
        offsets = (torch.arange(self.grid, device=places.device) + 0.5) / self.grid
        centres = places[:, :2, None] + places[:, 2:, None] * offsets
        angles = torch.cat([2 * math.pi * wave * centres for wave in self.WAVES], 1)
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        down = waves[:, 0::2, :, None].expand(-1, -1, -1, self.grid)
        right = waves[:, 1::2, None, :].expand(-1, -1, self.grid, -1)
        shown = places[:, 2:].prod(1)[:, None, None, None].expand(-1, 1, self.grid, self.grid)
        features = torch.cat([down, right, shown], 1).flatten(2).transpose(1, 2)
        code: Tensor = self.code(features.to(self.code.weight.dtype))
        return code


def top_mean(logits: Tensor, patches: int) -> Tensor:
    """Mean [B] of that many patch logits [B, h, w], the largest."""
    flat = logits.flatten(1)
    return flat.topk(min(patches, flat.shape[1]), dim=1).values.mean(1)
