"""A detector on disk: safetensors, a readable config, and checksums. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save

from patchguard.config import FitConfig, from_plain
from patchguard.errors import PatchGuardError
from patchguard.files import write_whole
from patchguard.models.patchguard import PatchGuard
from patchguard.models.weights import run_folder

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CALIBRATION = "calibration.json"
METRICS = "metrics.json"
MANIFEST = "manifest.json"
RESUME = Path("training", "resume.ckpt")


def is_begun(folder: Path) -> bool:
    """Whether a run folder holds a detector, or a training that can be resumed."""
    return any((folder / name).exists() for name in (MANIFEST, WEIGHTS, RESUME))


def write_config(folder: Path, settings: FitConfig, provenance: dict[str, Any]) -> None:
    """Write ``config.yaml``: the settings, and the versions, device and image counts."""
    content = {**provenance, "settings": asdict(settings)}
    write_whole(folder / CONFIG, yaml.safe_dump(content, sort_keys=False))


def read_config(folder: Path) -> tuple[FitConfig, dict[str, Any]]:
    """The settings and provenance of a run folder.

    Raises:
        PatchGuardError: no such file, or not what :func:`write_config` writes.
    """
    path = folder / CONFIG
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return from_plain(FitConfig, content.pop("settings")), content
    except OSError as error:
        raise PatchGuardError(f"{folder} is not a run folder: it has no {CONFIG}") from error
    except (yaml.YAMLError, AttributeError, KeyError, UnicodeDecodeError) as error:
        raise PatchGuardError(f"{path} is damaged or not a PatchGuard config") from error
    except PatchGuardError as error:
        raise PatchGuardError(
            f"{path} holds settings that this version does not accept: use the version that "
            f"wrote it, or fit again ({error})"
        ) from error


def save_weights(model: PatchGuard, folder: Path) -> None:
    """Write the detector's weights and buffers."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(folder / WEIGHTS, save(state))


def load_detector(folder: Path) -> PatchGuard:
    """The detector of a run folder in eval mode, on the CPU.

    Raises:
        PatchGuardError: a file is missing, truncated or altered.
    """
    read_config(folder)
    for name in (CONFIG, WEIGHTS):
        verify(folder, name)
    return load_unverified(folder)


def load_unverified(folder: Path) -> PatchGuard:
    """The same without a look at the checksums.

    Raises:
        PatchGuardError: the weights cannot be read, or are of another network.
    """
    recipe = read_config(folder)[0].recipe
    model = PatchGuard(replace(recipe.model, weights="none"), recipe.data.image_size)
    try:
        model.load_state_dict(load((folder / WEIGHTS).read_bytes()))
    except FileNotFoundError as error:
        raise PatchGuardError(f"{folder / WEIGHTS} is missing; restore it or fit again") from error
    except (SafetensorError, RuntimeError) as error:
        raise PatchGuardError(f"{folder / WEIGHTS} does not fit {CONFIG} beside it") from error
    return model.eval()


def start_digest(weights: str) -> str | None:
    """The sha256 of the file or run that ``model.weights`` names, or None where it names none."""
    if weights in ("none", "hub"):
        return None
    run = run_folder(weights)
    return _digest(run / WEIGHTS if run else Path(weights))


def seal(folder: Path, *names: str) -> None:
    """Enter the sha256 of these parts of the checkpoint into ``manifest.json``."""
    digests = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    _write_manifest(folder, digests | {name: _digest(folder / name) for name in names})


def unseal(folder: Path, name: str) -> None:
    """Take a part that is about to be replaced out of ``manifest.json``."""
    digests = read_manifest(folder)
    if digests.pop(name, None):
        _write_manifest(folder, digests)


def is_sealed(folder: Path, name: str) -> bool:
    """Whether a part is there, finished and as it was written.

    Raises:
        PatchGuardError: ``manifest.json`` is damaged.
    """
    if not all((folder / each).exists() for each in (MANIFEST, name)):
        return False
    return read_manifest(folder).get(name) == _digest(folder / name)


def is_entered(folder: Path, name: str) -> bool:
    """Whether a part is there and was finished; :func:`verify` says whether it is unaltered."""
    try:
        return (folder / name).exists() and name in read_manifest(folder)
    except (OSError, PatchGuardError):
        return False


def read_manifest(folder: Path) -> dict[str, str]:
    """The sha256 of each finished part of a run.

    Raises:
        PatchGuardError: the file is damaged.
    """
    path = folder / MANIFEST
    try:
        digests: dict[str, str] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise PatchGuardError(
            f"{path} is damaged: patchguard fit DATA --out {folder} --resume makes it again, where "
            "weights and calibration are whole"
        ) from error
    return digests


def _write_manifest(folder: Path, digests: dict[str, str]) -> None:
    write_whole(folder / MANIFEST, json.dumps(digests, indent=2) + "\n")


def verify(folder: Path, name: str) -> None:
    """Compare a part of the checkpoint with its checksum.

    Raises:
        PatchGuardError: the part or the manifest is missing, or they disagree.
    """
    if not (folder / MANIFEST).exists():
        raise PatchGuardError(f"{folder} is unfinished: continue it with fit --resume")
    if not (folder / name).exists():
        raise PatchGuardError(f"{folder / name} is missing; restore it or {_again(name)}")
    expected = read_manifest(folder).get(name)
    if expected is None:
        raise PatchGuardError(f"{folder / MANIFEST} has no checksum of {name}: {_again(name)}")
    if _digest(folder / name) != expected:
        raise PatchGuardError(
            f"{folder / name} is truncated or altered: it does not match {MANIFEST}; "
            f"restore it or {_again(name)}"
        )


def _again(name: str) -> str:
    return "evaluate the run again" if name == METRICS else "fit again"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
