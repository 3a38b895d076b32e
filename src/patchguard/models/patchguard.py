"""PatchGuard: a Vision Transformer that scores every patch."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from patchguard.config import ModelConfig
from patchguard.detector import Detection, Detector, Inspection
from patchguard.errors import PatchGuardError
from patchguard.models.discriminator import Discriminator, MapHead, top_k_mean
from patchguard.models.vit import create_backbone, normalisation, patch_tokens
from patchguard.models.weights import start_from_run
from patchguard.results.run_folder import named_run


class PatchGuard(Detector):
    """Backbone → discriminator → patch logits → image score and pixel map.

    Args:
        config: the network's settings.
        image_size: side in pixels of the square images it takes.

    Raises:
        PatchGuardError: a backbone that does not exist, is no ViT, or does not suit the size;
            weights that cannot be had or are those of another network.
    """

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        run = named_run(config.weights)
        self.backbone = create_backbone(
            config.backbone, image_size, "none" if run else config.weights
        )
        if self.backbone.embed_dim % config.heads:
            raise PatchGuardError(
                f"model.heads {config.heads} does not divide {config.backbone}'s width "
                f"{self.backbone.embed_dim}"
            )
        mean, std = normalisation(self.backbone)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        grid = self.backbone.patch_embed.grid_size[0]
        self.discriminator = Discriminator(
            grid * grid,
            self.backbone.embed_dim,
            config.heads,
            config.hidden,
            config.dropout,
            config.position_std,
        )
        self.map_head = MapHead(grid, image_size, config.blur_sigma, config.blur_radius)
        self.grid = grid
        if run:
            start_from_run(self, grid, config, run)

    @property
    def blocks(self) -> list[nn.Module]:
        """The backbone's transformer blocks, first to last."""
        return list(self.backbone.blocks)

    def patch_logits(self, images: Tensor) -> Tensor:
        """Patch logits [B, h, w] of images [B, 3, H, W] in [0, 1].

        Raises:
            PatchGuardError: images of another size than the detector was built for.
        """
        return self._logits(self._tokens(images))

    def inspect(self, images: Tensor) -> Inspection:
        """The detection with its patch logits and, as features, the backbone's patch tokens."""
        tokens = self._tokens(images)
        logits = self._logits(tokens)
        return Inspection(*self._detection(logits), patch_logits=logits, features=tokens)

    def forward(self, images: Tensor) -> Detection:
        return self._detection(self.patch_logits(images))

    def _tokens(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size):
            height, width = images.shape[-2:]
            raise PatchGuardError(
                f"images of {height}x{width} px given to a detector of {self.image_size} px; "
                f"resize them to {self.image_size}x{self.image_size}"
            )
        normalised = (images - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        return patch_tokens(self.backbone, normalised)

    def _logits(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.discriminator(tokens)
        return logits.view(-1, self.grid, self.grid)

    def _detection(self, logits: Tensor) -> Detection:
        # Not in half precision under autocast.
        precise = torch.promote_types(logits.dtype, torch.float32)
        score = top_k_mean(logits.flatten(1).to(precise), self.config.top_k)
        return Detection(score, self.map_head(logits))
