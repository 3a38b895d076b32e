"""Vision Transformer backbones: any of timm's, and a small one with a convolutional stem."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchguard.errors import PatchGuardError


class ConvStem(nn.Module):
    """Patch embedding by four stride-2 convolutions (Xiao et al. 2021; Singh et al. 2023).

    Stands in for timm's ``PatchEmbed`` at patch size 16: [B, 3, H, W] to tokens [B, N, C].
    """

    patch_size = (16, 16)

    def __init__(self, img_size: int, embed_dim: int, in_chans: int = 3, **_: Any) -> None:
        super().__init__()
        widths = [in_chans, *(embed_dim // divisor for divisor in (8, 4, 2, 1))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(1, after), nn.GELU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))
        self.img_size = (img_size, img_size)
        self.grid_size = (img_size // 16, img_size // 16)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        return 16 if as_scalar else self.patch_size


BUILT_IN = "patchguard_mini"


def patchguard_mini(image_size: int) -> VisionTransformer:
    """The built-in backbone: convolutional stem, width 128, 4 blocks of 4 heads.

    It has no final norm: the discriminator's block normalises its input.
    """
    return VisionTransformer(
        img_size=image_size,
        patch_size=16,
        embed_layer=ConvStem,
        embed_dim=128,
        depth=4,
        num_heads=4,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        final_norm=False,
        fc_norm=False,
    )


def create_backbone(name: str, image_size: int, weights: str = "none") -> VisionTransformer:
    """A timm Vision Transformer without its classification head.

    Args:
        name: a name known to ``timm.create_model``; ``patchguard_mini`` is built in.
        image_size: side of the square input in pixels; a multiple of the patch size.
        weights: ``none`` (random), ``hub`` (downloaded by timm) or a local weight file.

    Raises:
        PatchGuardError: unknown name, not a Vision Transformer, a size that the patch size does
            not divide, or weights that cannot be had.
    """
    if name == BUILT_IN:
        if weights != "none":
            raise PatchGuardError(f"{BUILT_IN} has no pretrained weights; use model.weights=none")
        backbone = patchguard_mini(image_size)
    else:
        backbone = _from_timm(name, image_size, weights)
    _check_size(backbone, image_size, name)
    return backbone


def patch_tokens(backbone: VisionTransformer, images: Tensor) -> Tensor:
    """Patch tokens [B, N, C] after the final norm, of normalised images [B, 3, H, W]."""
    # timm moves the final norm of average-pooled models behind the pooling.
    tokens: Tensor = backbone.fc_norm(backbone.forward_features(images))
    return tokens[:, backbone.num_prefix_tokens :]


def normalisation(backbone: VisionTransformer) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation that the backbone expects, each [1, 3, 1, 1]."""
    config = getattr(backbone, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", (0.5,) * 3), config.get("std", (0.5,) * 3)
    return torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)


def _from_timm(name: str, image_size: int, weights: str) -> VisionTransformer:
    if not timm.is_model(name.split(".")[0]):
        raise PatchGuardError(
            f"model.backbone {name!r} is neither {BUILT_IN} nor known to timm {timm.__version__}"
        )
    overlay = _weight_overlay(weights)
    try:
        backbone = timm.create_model(
            name,
            pretrained=weights != "none",
            pretrained_cfg_overlay=overlay,
            img_size=image_size,
            num_classes=0,
        )
    except AssertionError as error:
        raise PatchGuardError(f"data.image_size {image_size}: {error}") from error
    except TypeError as error:
        raise PatchGuardError(f"model.backbone {name!r} is not a Vision Transformer") from error
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise PatchGuardError(
            f"weights of {name} could not be loaded ({reason}); "
            "give a local file with model.weights, or model.weights=none"
        ) from error
    if not isinstance(backbone, VisionTransformer):
        raise PatchGuardError(f"model.backbone {name!r} is not a Vision Transformer")
    return backbone


def _weight_overlay(weights: str) -> dict[str, str] | None:
    if weights in ("none", "hub"):
        return None
    if not Path(weights).is_file():
        raise PatchGuardError(f"model.weights {weights}: no such file (or use 'hub' or 'none')")
    return {"file": weights}


def _check_size(backbone: VisionTransformer, image_size: int, name: str) -> None:
    patch = backbone.patch_embed.patch_size[0]
    if image_size % patch:
        lower, upper = image_size // patch * patch, (image_size // patch + 1) * patch
        raise PatchGuardError(
            f"data.image_size {image_size} is not a multiple of {name}'s patch size {patch}; "
            f"use {lower or upper} or {upper}"
        )
