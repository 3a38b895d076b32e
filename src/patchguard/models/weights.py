"""Weights to start from: files, published checkpoints and finished runs of other image sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from patchguard.config import ModelConfig
from patchguard.errors import PatchGuardError
from patchguard.results.model_file import read_model
from patchguard.results.run_folder import WEIGHTS, file_digest, named_run, verify


def start_from_run(model: nn.Module, grid: int, config: ModelConfig, folder: Path) -> None:
    """Copy all weights of a finished run into a new detector, normalisation included.

    Position codes of another grid are interpolated bicubically. Dropout, how views are scored and
    the blur of the map are no weights: they stay those of the new detector.

    Args:
        model: the new detector, with ``backbone`` and ``discriminator``.
        grid: patches along a side of its images.
        config: its network's settings.
        folder: the run.

    Raises:
        PatchGuardError: no finished run, an altered file, or a network of another shape.
    """
    run = read_model(folder).config
    verify(folder, WEIGHTS)
    _check_shape(run, config, folder)
    state = _read(folder / WEIGHTS)
    backbone = cast(VisionTransformer, model.backbone)
    _resample(state, "backbone.pos_embed", grid, _coded_prefix(backbone))
    _resample(state, "discriminator.position", grid, 0)
    _match_place(state, model)
    _load(model, state, folder / WEIGHTS, config.backbone)


def _match_place(state: dict[str, Tensor], model: nn.Module) -> None:
    """The code of places of a run with windows, in or out of ``state`` as the new detector has it.

    Training begins with nothing in it.
    """
    name = "discriminator.place.code.weight"
    own = model.state_dict().get(name)
    if own is None:
        state.pop(name, None)
    else:
        state.setdefault(name, torch.zeros_like(own))


def start_digest(weights: str) -> str | None:
    """The sha256 of the file or run that ``model.weights`` names, or None where it names none."""
    if weights in ("none", "hub"):
        return None
    run = named_run(weights)
    return file_digest(run / WEIGHTS if run else Path(weights))


def load_backbone(backbone: VisionTransformer, path: Path, name: str) -> None:
    """Load a built-in backbone from a ``.safetensors`` file or a state dict saved by torch.

    Position codes of another grid are interpolated bicubically. A checkpoint of RobustBench is
    converted on the way, and its normalisation of the input becomes that of the backbone.

    Raises:
        PatchGuardError: not a file of weights, or weights of another network.
    """
    state = _read(path)
    if any(".proj.stem." in key for key in state):
        state = from_robustbench(state)
    normalisation = _pop_normalisation(state, path)
    _resample(state, "pos_embed", backbone.patch_embed.grid_size[0], _coded_prefix(backbone))
    _load(backbone, state, path, name)
    if normalisation:
        # Where timm keeps what a backbone expects of its input.
        backbone.pretrained_cfg = normalisation  # type: ignore[assignment]


def load_timm_backbone(backbone: VisionTransformer, path: Path, name: str) -> None:
    """Load a backbone of timm from a file in any format that timm converts.

    timm's own loader passes over weights that the file lacks, and would leave them random. What
    the file has besides, such as a classifier, is passed over here too.

    Raises:
        PatchGuardError: not a file of weights, or weights of another network.
    """
    state = _read(path)
    try:
        state = checkpoint_filter_fn(state, backbone, adapt_layer_scale=True)
    except Exception as error:  # tensors of unforeseen shapes
        raise PatchGuardError(f"model.weights {path} does not fit {name}") from error
    wanted = backbone.state_dict().keys()
    _load(backbone, {key: state[key] for key in state if key in wanted}, path, name)


def from_robustbench(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of ``vit_small_convstem`` for those of Singh2023Revisiting_ViT-S-ConvStem.

    The checkpoint (Singh, Croce, Hein, NeurIPS 2023) is timm's DeiT-S with ``patch_embed.proj``
    replaced by convolutions at ``patch_embed.proj.stem.{0,3,6,9,12}`` and channel-wise LayerNorms
    at ``{1,4,7,10}``, behind a normaliser with buffers [1, 3, 1, 1]. As published by its authors
    the names are ``base_model.normalize.{mean,std}`` and ``base_model.model.*``; RobustBench's own
    model has ``normalize.*`` and ``model.*``; a data-parallel run adds ``module.``. All are taken.
    The 1000-class head is dropped, ``normalize.mean`` and ``normalize.std`` are kept: they are
    reported to differ from ImageNet's in the fifth decimal.

    Written from the public descriptions of the network (the authors' code and RobustBench's) and
    checked against generated files of that format and against the 22 777 576 parameters, head
    included, that are reported of the published file; never against that file itself.
    """
    bare = {re.sub(r"^((module|base_model|model)\.)+", "", key): state[key] for key in state}
    return {
        key.replace("patch_embed.proj.stem.", "patch_embed.proj."): tensor
        for key, tensor in bare.items()
        if not key.startswith("head.")
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # unpickling and archives fail in many types
        raise PatchGuardError(
            f"model.weights {path} cannot be read: damaged, or not weights in .safetensors or "
            "torch's format"
        ) from error
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise PatchGuardError(f"model.weights {path} is not a state dict: names with tensors")
    return state


def _pop_normalisation(state: dict[str, Tensor], path: Path) -> dict[str, list[float]]:
    """Take the checkpoint's ``mean`` and ``std`` of the 3 channels out of it; empty without."""
    found = {
        part: state.pop(f"normalize.{part}").flatten().tolist()
        for part in ("mean", "std")
        if f"normalize.{part}" in state
    }
    if found and [len(values) for values in found.values()] != [3, 3]:
        raise PatchGuardError(
            f"model.weights {path}: normalize.mean and normalize.std are not 3 numbers each"
        )
    return found


def _check_shape(run: ModelConfig, wanted: ModelConfig, folder: Path) -> None:
    for name in ("backbone", "heads", "hidden"):
        there, here = getattr(run, name), getattr(wanted, name)
        if there != here:
            raise PatchGuardError(
                f"model.weights {folder}: its model.{name} is {there}, not {here}; "
                f"use model.{name}={there} or another run"
            )


def _coded_prefix(backbone: VisionTransformer) -> int:
    """How many of the backbone's position codes belong to class and register tokens."""
    return 0 if backbone.no_embed_class else backbone.num_prefix_tokens


def _resample(state: dict[str, Tensor], name: str, grid: int, prefix: int) -> None:
    """Bring the position codes [1, prefix + n², C] of that name to ``grid``² patches, in place.

    Codes of any other shape are left for the strict check to name.
    """
    codes = state.get(name)
    if codes is None or codes.ndim != 3:
        return
    patches = codes.shape[1] - prefix
    if patches > 0 and math.isqrt(patches) ** 2 == patches:
        state[name] = resample_abs_pos_embed(codes, [grid, grid], num_prefix_tokens=prefix)


def _load(module: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    expected = module.state_dict()
    common = expected.keys() & state.keys()
    complaints = {
        "missing": expected.keys() - common,
        "unexpected": state.keys() - common,
        "of another shape": {key for key in common if expected[key].shape != state[key].shape},
    }
    if any(complaints.values()):
        found = "; ".join(f"{what}: {_few(keys)}" for what, keys in complaints.items() if keys)
        raise PatchGuardError(f"model.weights {path} does not fit {name}: {found}")
    module.load_state_dict(state)


def _few(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest
