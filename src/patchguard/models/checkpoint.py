"""A detector on disk: its description, safetensors and checksums. Nothing is unpickled."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from patchguard.errors import PatchGuardError
from patchguard.files import write_whole
from patchguard.models.patchguard import PatchGuard, ViewScore
from patchguard.results.model_file import (
    ModelFile,
    Preprocessing,
    Score,
    describe,
    read_model,
    write_model,
)
from patchguard.results.run_folder import CONFIG, MODEL, WEIGHTS, read_manifest, verify


def save_detector(
    model: PatchGuard, folder: Path, shape: tuple[int, int], full_scale: float | None = None
) -> None:
    """Write the description of a detector and its weights and buffers.

    Args:
        model: the detector.
        folder: of the run.
        shape: height and width to which images are resized for it.
        full_scale: see :class:`patchguard.data.preprocess.Preprocessor`.
    """
    scores = {view: Score(**asdict(score)) for view, score in model.scores.items()}
    images = Preprocessing(shape=shape, full_scale=full_scale, span=model.span)
    write_model(folder, describe(model.config, images, scores))
    state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    write_whole(folder / WEIGHTS, save(state))


def load_detector(folder: Path) -> PatchGuard:
    """The detector of a run folder in eval mode, on the CPU.

    Raises:
        PatchGuardError: a file is missing, truncated or altered.
    """
    return load_unverified(folder, verified_model(folder))


def verified_model(folder: Path) -> ModelFile:
    """The description of a finished detector, whose files are as they were written.

    Raises:
        PatchGuardError: a file is missing, truncated or altered.
    """
    verify(folder, WEIGHTS)
    verify(folder, MODEL if MODEL in read_manifest(folder) else CONFIG)
    return read_model(folder)


def load_unverified(folder: Path, model: ModelFile | None = None) -> PatchGuard:
    """The detector of a run folder without a look at the checksums.

    Raises:
        PatchGuardError: the weights cannot be read, or are of another network.
    """
    model = model or read_model(folder)
    scores = {view: ViewScore(**dict(score)) for view, score in model.scores.items()}
    detector = PatchGuard(model.config, scores, model.preprocessing.span)
    try:
        detector.load_state_dict(load((folder / WEIGHTS).read_bytes()))
    except FileNotFoundError as error:
        raise PatchGuardError(f"{folder / WEIGHTS} is missing; restore it or fit again") from error
    except (SafetensorError, RuntimeError) as error:
        raise PatchGuardError(f"{folder / WEIGHTS} does not fit {MODEL} beside it") from error
    return detector.eval()
