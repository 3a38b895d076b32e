"""What lies where in a run folder, and whether it is whole.

``manifest.json`` holds the sha256 of every finished part; the part that it names last is what says
that a step is finished. The training's settings in ``config.yaml`` are provenance: they are needed
to resume, and never to predict.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from patchguard.config import FitConfig, from_plain
from patchguard.errors import PatchGuardError
from patchguard.files import write_whole

MODEL = "model.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CALIBRATION = "calibration.json"
METRICS = "metrics.json"
MANIFEST = "manifest.json"
RESUME = Path("training", "resume.ckpt")
DETECTOR = (MODEL, WEIGHTS, CALIBRATION)
"""What prediction needs."""


def is_begun(folder: Path) -> bool:
    """Whether a run folder holds a detector, or a training that can be resumed."""
    return any((folder / name).exists() for name in (MANIFEST, WEIGHTS, RESUME))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a detector that a run has made."""
    return (folder / MANIFEST).exists() or (folder / WEIGHTS).exists()


def named_run(weights: str) -> Path | None:
    """The folder that ``model.weights`` names, or None where it names no folder."""
    path = Path(weights)
    return path if weights not in ("none", "hub") and path.is_dir() else None


def write_config(folder: Path, settings: FitConfig, provenance: dict[str, Any]) -> None:
    """Write ``config.yaml``: the settings, and the versions, device and image counts."""
    content = {**provenance, "settings": asdict(settings)}
    write_whole(folder / CONFIG, yaml.safe_dump(content, sort_keys=False))


def read_config(folder: Path) -> tuple[FitConfig, dict[str, Any]]:
    """The settings and provenance of a run folder.

    Raises:
        PatchGuardError: no such file, not what :func:`write_config` writes, or settings that this
            version does not know.
    """
    provenance = read_plain_config(folder)
    try:
        return from_plain(FitConfig, _upgraded(provenance.pop("settings"))), provenance
    except PatchGuardError as error:
        raise PatchGuardError(
            f"{folder / CONFIG} holds settings that this version does not accept: use the version "
            f"that wrote it, or fit again ({error})"
        ) from error


def _upgraded(settings: dict[str, Any]) -> dict[str, Any]:
    """Former versions saw square images, each as a whole."""
    recipe = settings.get("recipe")
    if not isinstance(recipe, dict) or "image_size" not in recipe.get("data", {}):
        return settings
    data, model = dict(recipe["data"]), dict(recipe.get("model", {}))
    model |= {"window": data.pop("image_size"), "views": ["whole"]}
    model.pop("top_k", None)
    return {**settings, "recipe": {**recipe, "data": data, "model": model}}


def read_plain_config(folder: Path) -> dict[str, Any]:
    """What ``config.yaml`` holds, settings of other versions included.

    Raises:
        PatchGuardError: no such file, or not what :func:`write_config` writes.
    """
    path = folder / CONFIG
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "settings" in content:
            return content
    except OSError as error:
        raise PatchGuardError(f"{folder} is not a run folder: it has no {CONFIG}") from error
    except (yaml.YAMLError, TypeError, UnicodeDecodeError):
        pass
    raise PatchGuardError(f"{path} is damaged or not a PatchGuard config")


def seal(folder: Path, *names: str) -> None:
    """Enter the sha256 of these parts of the checkpoint into ``manifest.json``."""
    digests = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    _write_manifest(folder, digests | {name: file_digest(folder / name) for name in names})


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
    return read_manifest(folder).get(name) == file_digest(folder / name)


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


def manifest_digest(folder: Path) -> str:
    """What tells a finished detector, with its calibration, from any other."""
    digests = read_manifest(folder)
    parts = [f"{name} {digests.get(name)}" for name in (*DETECTOR, CONFIG)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def verify(folder: Path, name: str) -> None:
    """Compare a part of the checkpoint with its checksum.

    Raises:
        PatchGuardError: the part or the manifest is missing, or they disagree.
    """
    if not (folder / MANIFEST).exists():
        if not is_begun(folder) and not (folder / CONFIG).exists():
            raise PatchGuardError(f"{folder} is not a run folder: it has no {MANIFEST}")
        raise PatchGuardError(f"{folder} is unfinished: continue it with fit --resume")
    if not (folder / name).exists():
        raise PatchGuardError(f"{folder / name} is missing; restore it or {_again(name)}")
    expected = read_manifest(folder).get(name)
    if expected is None:
        raise PatchGuardError(f"{folder / MANIFEST} has no checksum of {name}: {_again(name)}")
    if file_digest(folder / name) != expected:
        raise PatchGuardError(
            f"{folder / name} is truncated or altered: it does not match {MANIFEST}; "
            f"restore it or {_again(name)}"
        )


def _again(name: str) -> str:
    return "evaluate the run again" if name == METRICS else "fit again"


def file_digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
