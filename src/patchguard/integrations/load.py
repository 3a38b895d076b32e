"""A detector from what a user writes on the command line."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from patchguard.detector import Detector
from patchguard.errors import PatchGuardError
from patchguard.integrations.function import FunctionDetector, shape_of

FORMS = "a run folder, an anomalib checkpoint (model.ckpt) or file.py:function"


@dataclass(frozen=True)
class Loaded:
    """A detector and what a report says of it.

    Attributes:
        detector: in eval mode, on the CPU.
        shape: height and width in pixels of the images it takes.
        name: of the run folder, of anomalib's model, or of the user's file and function.
        kind: ``patchguard``, ``anomalib`` or ``python``.
        threshold: on its raw scores, from held-out normals; None where there is no calibration.
        sha256: hex digest of the file of weights; of a user's own detector, of the Python file
            followed by its tensors.
        full_scale: the value that counts as white in images of more than 8 bits; None for the
            largest that their format holds.
    """

    detector: Detector
    shape: tuple[int, int]
    name: str
    kind: str
    threshold: float | None
    sha256: str
    full_scale: float | None = None


def detector_named(spec: str, *, trust: bool = False) -> Loaded:
    """The detector that ``spec`` names.

    Args:
        spec: a PatchGuard run folder; a checkpoint ``.ckpt`` of anomalib; or ``file.py:function``,
            whose function takes no arguments and returns a detector or a callable (see
            :class:`FunctionDetector`) with an attribute ``image_size``, height and width in pixels
            or the side of a square. That file is executed.
        trust: unpickle checkpoints that could run code.

    Raises:
        PatchGuardError: nothing of that kind is there, or it cannot be loaded.
    """
    path, _, function = spec.rpartition(":")
    if path.endswith(".py"):
        return _from_python(Path(path), function)
    return _from_path(Path(spec), trust)


def _from_path(path: Path, trust: bool) -> Loaded:
    if path.is_dir():
        return _from_run(path)
    if not path.exists():
        raise PatchGuardError(f"{path}: does not exist; give {FORMS}")
    if path.suffix == ".ckpt":
        return _from_checkpoint(path, trust)
    if path.suffix == ".py":
        raise PatchGuardError(f"{path}: name the function that returns the detector: {path}:NAME")
    raise PatchGuardError(f"{path}: no detector; give {FORMS}")


def _from_run(folder: Path) -> Loaded:
    from patchguard.deploy.pipeline import load_pipeline
    from patchguard.results.run_folder import WEIGHTS

    pipeline = load_pipeline(folder, torch.device("cpu"))
    return Loaded(
        pipeline.detector,
        pipeline.preprocessor.shape,
        name=folder.resolve().name,
        kind="patchguard",
        threshold=pipeline.calibration.threshold,
        full_scale=pipeline.preprocessor.full_scale,
        sha256=_digest(folder / WEIGHTS).hexdigest(),
    )


def _from_checkpoint(path: Path, trust: bool) -> Loaded:
    from patchguard.integrations.anomalib import AnomalibDetector

    detector = AnomalibDetector.load(path, trust=trust)
    return Loaded(
        detector,
        detector.image_size,
        name=detector.name,
        kind="anomalib",
        threshold=None,
        sha256=_digest(path).hexdigest(),
    )


def _from_python(path: Path, function: str) -> Loaded:
    made = _made(path, function)
    try:
        shape = shape_of(getattr(made, "image_size", None))
    except PatchGuardError as error:
        raise PatchGuardError(
            f"{path}: what {function}() returns needs an attribute image_size: height and width in "
            "pixels of the images it takes, or the side of square ones"
        ) from error
    detector = made if isinstance(made, Detector) else FunctionDetector(made, image_size=shape)
    digest = _digest(path)
    for name, tensor in sorted(detector.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    name = f"{path.stem}-{function}"
    return Loaded(detector.eval(), shape, name, "python", None, digest.hexdigest())


def _made(path: Path, function: str) -> Any:
    """What the user's function returns; whatever their code raises becomes one line."""
    if not path.is_file():
        raise PatchGuardError(f"{path}: does not exist; give {FORMS}")
    try:
        factory = getattr(_executed(path), function, None)
        made = factory() if callable(factory) else None
    except PatchGuardError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split())
        raise PatchGuardError(f"{path}: {type(error).__name__}: {cause}") from error
    if not callable(factory):
        raise PatchGuardError(f"{path}: has no function {function!r}")
    if not callable(made):
        raise PatchGuardError(
            f"{path}: {function}() returned {type(made).__name__}; return a detector or a callable"
        )
    return made


def _executed(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"patchguard_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    # As when Python runs the file: modules beside it can be imported, then and later.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _digest(path: Path) -> hashlib._Hash:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
