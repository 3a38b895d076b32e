"""Vision Transformer backbones: any of timm's, and our own with a convolutional stem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.norm import LayerNorm2d
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchguard.errors import PatchGuardError
from patchguard.models.weights import load_backbone, load_timm_backbone

MakeNorm = Callable[[int], nn.Module]
"""Makes a norm from the number of channels."""


def group_norm(channels: int) -> nn.Module:
    """A norm over all channels and positions together."""
    return nn.GroupNorm(1, channels)


class Refinement(nn.Module):
    """Adds to features [B, C, h, w] what a 3x3 convolution sees around them; nothing at first."""

    def __init__(self, channels: int, norm: MakeNorm) -> None:
        super().__init__()
        self.change = nn.Sequential(
            norm(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 1),
        )
        last = self.change[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor) -> Tensor:
        refined: Tensor = features + self.change(features)
        return refined


class ConvStem(nn.Module):
    """Patch embedding by stride-2 convolutions (Xiao et al. 2021; Singh et al. 2023).

    Stands in for timm's ``PatchEmbed``: [B, 3, H, W] to tokens [B, N, C]. The first convolution
    has C/8 channels and each further one twice as many, so that a stem of smaller patches is one
    of larger patches without its last convolution; a 1x1 convolution leads to C.

    Args:
        img_size: side of the square input in pixels.
        patch_size: a power of two up to 16, the product of the strides.
        embed_dim: C.
        in_chans: channels of the input.
        norm: makes the norm behind a convolution from its number of channels.
        refined: a :class:`Refinement` behind each convolution with a stride.
        first: stride of the first convolution, a power of two; the stages that it leaps over are
            left out.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        embed_dim: int,
        in_chans: int = 3,
        norm: MakeNorm = group_norm,
        refined: bool = False,
        first: int = 2,
        **_: Any,
    ) -> None:
        super().__init__()
        stages = range(int(log2(first)) - 1, int(log2(patch_size)))
        widths = [in_chans, *(embed_dim * 2**stage // 8 for stage in stages)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            stride = 2 if layers else first
            convolution = nn.Conv2d(before, after, 2 * stride - 1, stride, padding=stride - 1)
            layers += [convolution, norm(after), nn.GELU()]
            if refined:
                layers.append(Refinement(after, norm))
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
        self.local = norm is not group_norm
        self.patch_size = (patch_size, patch_size)
        self.img_size = (img_size, img_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        return self.patch_size[0] if as_scalar else self.patch_size


def patchguard_mini(image_size: int, patch_size: int = 16, first: int = 2) -> VisionTransformer:
    """Refined convolutional stem, width 128, 3 blocks of 4 heads, average-pooled (no class token).

    Small enough to be trained from random weights on a CPU.
    """
    return VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_layer=partial(ConvStem, refined=True, first=first),
        embed_dim=128,
        depth=3,
        num_heads=4,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )


def patchguard_swift(image_size: int) -> VisionTransformer:
    """:func:`patchguard_mini` whose stem begins with a stride of 4."""
    return patchguard_mini(image_size, first=4)


def patchguard_mini_8(image_size: int) -> VisionTransformer:
    """:func:`patchguard_mini` with patches of 8 px for small defects: four times the tokens."""
    return patchguard_mini(image_size, patch_size=8)


def vit_small_convstem(image_size: int) -> VisionTransformer:
    """ViT-S with a convolutional stem: width 384, 12 blocks of 6 heads, a class token.

    The network of Singh, Croce, Hein, "Revisiting adversarial training for ImageNet:
    architectures, training and generalization across threat models" (NeurIPS 2023), whose robust
    ImageNet weights :func:`patchguard.models.weights.from_robustbench` converts.
    """
    backbone = VisionTransformer(
        img_size=image_size,
        patch_size=16,
        embed_layer=partial(ConvStem, norm=LayerNorm2d),
        embed_dim=384,
        depth=12,
        num_heads=6,
        num_classes=0,
    )
    normalisation = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    backbone.pretrained_cfg = normalisation  # type: ignore[assignment]
    return backbone


BUILT_IN: dict[str, Callable[[int], VisionTransformer]] = {
    "patchguard_mini": patchguard_mini,
    "patchguard_mini_8": patchguard_mini_8,
    "patchguard_swift": patchguard_swift,
    "vit_small_convstem": vit_small_convstem,
}


def create_backbone(name: str, image_size: int, weights: str = "none") -> VisionTransformer:
    """A timm Vision Transformer without its classification head.

    Args:
        name: one of :data:`BUILT_IN`, or a name known to ``timm.create_model``.
        image_size: side of the square windows in pixels; a multiple of the patch size.
        weights: ``none`` (random), ``hub`` (downloaded by timm) or a local weight file.

    Raises:
        PatchGuardError: unknown name, not a Vision Transformer, a size that the patch size does
            not divide, or weights that cannot be had.
    """
    _check_weights(name, weights)
    built_in = name in BUILT_IN
    backbone = (
        BUILT_IN[name](image_size) if built_in else _from_timm(name, image_size, weights == "hub")
    )
    _check_size(backbone, image_size, name)
    if weights not in ("none", "hub"):
        load = load_backbone if built_in else load_timm_backbone
        load(backbone, Path(weights), name)
    return backbone


def embedded(backbone: VisionTransformer, images: Tensor) -> Tensor:
    """Patch embeddings [B, C, h, w] of normalised images [B, 3, H, W] of whole patches."""
    patch = patch_side(backbone)
    tokens: Tensor = backbone.patch_embed(images)
    height, width = images.shape[-2] // patch, images.shape[-1] // patch
    return tokens.transpose(1, 2).reshape(len(images), -1, height, width)


def patch_side(backbone: VisionTransformer) -> int:
    """Side in pixels of what becomes a token; of a network on a network, of both together."""
    stem = backbone.patch_embed
    side: int = stem.img_size[0] // stem.grid_size[0]
    return side


def encoded(backbone: VisionTransformer, embeddings: Tensor) -> Tensor:
    """Patch tokens [B, N, C] after the final norm, of the patch embeddings [B, C, g, g] of windows.

    What timm's ``forward_features`` does behind the patch embedding.
    """
    tokens = backbone._pos_embed(embeddings.flatten(2).transpose(1, 2))
    tokens = backbone.norm(backbone.blocks(backbone.norm_pre(backbone.patch_drop(tokens))))
    # timm moves the final norm of average-pooled models behind the pooling.
    normed: Tensor = backbone.fc_norm(tokens)
    return normed[:, backbone.num_prefix_tokens :]


def shares_stem(backbone: VisionTransformer) -> bool:
    """Whether a patch embedding depends on what is near the patch alone, not on the whole window.

    Then windows that overlap can share it.
    """
    stem = backbone.patch_embed
    return type(stem) is PatchEmbed or (isinstance(stem, ConvStem) and stem.local)


def normalisation(backbone: VisionTransformer) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation that the backbone expects, each [1, 3, 1, 1]."""
    config = getattr(backbone, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", (0.5,) * 3), config.get("std", (0.5,) * 3)
    return torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)


def _from_timm(name: str, image_size: int, pretrained: bool) -> VisionTransformer:
    if not timm.is_model(name.split(".")[0]):
        known, *others = BUILT_IN
        raise PatchGuardError(
            f"model.backbone {name!r} is neither {known} nor known to timm {timm.__version__} "
            f"(also built in: {', '.join(others)})"
        )
    try:
        backbone = timm.create_model(
            name, pretrained=pretrained, img_size=image_size, num_classes=0
        )
    except AssertionError as error:
        raise PatchGuardError(f"model.window {image_size}: {error}") from error
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
    if type(backbone.patch_embed) is PatchEmbed:
        # Windows that overlap share their patch embeddings, of an image of any size.
        backbone.patch_embed.strict_img_size = False
    return backbone


def _check_weights(name: str, weights: str) -> None:
    if weights == "hub" and name in BUILT_IN:
        raise PatchGuardError(
            f"{name} has no pretrained weights on the hub; give a file or a run folder with "
            "model.weights, or model.weights=none"
        )
    if weights not in ("none", "hub") and not Path(weights).is_file():
        raise PatchGuardError(
            f"model.weights {weights}: no such file or run folder (or use 'hub' or 'none')"
        )


def _check_size(backbone: VisionTransformer, image_size: int, name: str) -> None:
    patch = backbone.patch_embed.patch_size[0]
    if image_size % patch:
        lower, upper = image_size // patch * patch, (image_size // patch + 1) * patch
        raise PatchGuardError(
            f"model.window {image_size} is not a multiple of {name}'s patch size {patch}; "
            f"use {lower or upper} or {upper}"
        )
