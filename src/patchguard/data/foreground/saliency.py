"""The foreground as what a network trained on natural images looks at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchguard.arrays import BoolArray, FloatArray
from patchguard.data.foreground.shape import clean_mask, otsu_threshold, resize_mask
from patchguard.data.images import Pixels, resize_map
from patchguard.errors import PatchGuardError

if TYPE_CHECKING:
    import torch
    from torch import nn

MaskFunction = Callable[[Pixels], BoolArray]

GRADCAM_MODEL = "resnet18.a1_in1k"
ATTENTION_MODEL = "vit_small_patch16_224.dino"

_SIZE = 224
_KEPT_ATTENTION = 0.6
_CLOSING_RADIUS = 4
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def gradcam_masks(weights: Path | None) -> MaskFunction:
    """Masks from Grad-CAM (Selvaraju et al., ICCV 2017) of an ImageNet ResNet-18, as in the paper.

    The top class, at the last stage, thresholded by Otsu: the paper does not say how.

    Args:
        weights: local weight file of :data:`GRADCAM_MODEL`; the hub when None.

    Raises:
        PatchGuardError: the weights cannot be had or do not fit.
    """
    model = _load_model(GRADCAM_MODEL, weights)

    def mask(image: Pixels) -> BoolArray:
        cam = resize_map(_gradcam(model, _to_batch(image)), (_SIZE, _SIZE))
        return _to_mask(cam > otsu_threshold(cam), image)

    return mask


def attention_masks(weights: Path | None) -> MaskFunction:
    """Masks from the class token's attention in the last block of a DINO ViT-S/16.

    The most attended pixels that together hold 60 % of the attention to patches, averaged over
    heads (Caron et al., ICCV 2021, take 60 % for each head).

    Args:
        weights: local weight file of :data:`ATTENTION_MODEL`; the hub when None.

    Raises:
        PatchGuardError: the weights cannot be had or do not fit.
    """
    model = _load_model(ATTENTION_MODEL, weights)
    # The fused kernel never holds the attention matrix that the hook reads.
    model.blocks[-1].attn.fused_attn = False

    def mask(image: Pixels) -> BoolArray:
        attention = resize_map(_class_attention(model, _to_batch(image)), (_SIZE, _SIZE))
        return _to_mask(attention >= mass_threshold(attention, _KEPT_ATTENTION), image)

    return mask


def _load_model(name: str, weights: Path | None) -> Any:
    import timm

    if weights is None:
        try:
            return timm.create_model(name, pretrained=True).eval()
        except Exception as error:  # the hub client raises whatever its transport does
            raise PatchGuardError(
                f"the weights of {name} cannot be downloaded ({_one_line(error)}); "
                "give a local .safetensors or .pth file as foreground.weights, "
                "or choose another foreground.method"
            ) from error
    model = timm.create_model(name, pretrained=False)
    _load_weights(model, name, weights)
    return model.eval()


def _load_weights(model: nn.Module, name: str, weights: Path) -> None:
    from timm.models import load_state_dict

    try:
        model.load_state_dict(load_state_dict(str(weights), device="cpu", weights_only=True))
    except Exception as error:  # unpickling and state-dict errors are of many types
        raise PatchGuardError(
            f"{weights}: not a weight file of timm's {name}; correct foreground.weights"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _to_batch(image: Pixels) -> torch.Tensor:
    """A normalised batch `[1, 3, 224, 224]`."""
    import torch

    normalised = (image.resized((_SIZE, _SIZE)) - _IMAGENET_MEAN) / _IMAGENET_STD
    return torch.from_numpy(normalised).permute(2, 0, 1)[None]


def _gradcam(model: Any, batch: torch.Tensor) -> FloatArray:
    """Class activation map `[h, w]`, not negative, of the class with the largest logit."""
    import torch

    with torch.enable_grad():
        features = model.forward_features(batch.requires_grad_())
        (gradient,) = torch.autograd.grad(model.forward_head(features).max(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    cam: FloatArray = (weights * features).sum(dim=1).relu()[0].detach().numpy()
    return cam


def _class_attention(model: Any, batch: torch.Tensor) -> FloatArray:
    """Attention `[h, w]` of the class token to the patches, averaged over heads."""
    import torch

    captured: list[torch.Tensor] = []
    hook = model.blocks[-1].attn.attn_drop.register_forward_hook(
        lambda module, inputs, output: captured.append(output)
    )
    with torch.no_grad(), hook:
        model(batch)
    to_patches = captured[0][0, :, 0, model.num_prefix_tokens :].mean(dim=0)
    attention: FloatArray = to_patches.reshape(model.patch_embed.grid_size).numpy()
    return attention


def mass_threshold(values: FloatArray, share: float) -> float:
    """The value above which the largest values hold ``share`` of the sum."""
    descending = np.sort(values, axis=None)[::-1]
    mass = np.cumsum(descending, dtype=np.float64)
    return float(descending[np.searchsorted(mass, share * mass[-1])])


def _to_mask(salient: BoolArray, image: Pixels) -> BoolArray:
    return resize_mask(clean_mask(salient, closing=_CLOSING_RADIUS), image.shape)
