"""What a training run is made of: images to train on, images to calibrate on, foregrounds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from patchguard.config import DataConfig, ForegroundConfig
from patchguard.data.folder import FullScale, ImageFolder, require_labelled, scan
from patchguard.data.foreground import chosen_method, foreground_masks, masks_decided_by
from patchguard.data.images import read_pixels, resize_map
from patchguard.data.likeness import suited
from patchguard.data.samples import Sample
from patchguard.data.split import split_normals
from patchguard.data.stack import Stack, stacked
from patchguard.errors import PatchGuardError
from patchguard.reporter import Tell

SMALLEST_CALIBRATION_SHARE = 0.1
LARGEST_CALIBRATION_SHARE = 1 / 3

# Part of the names of kept images: raise it whenever the reading or resizing of images changes.
_KEPT_VERSION = 2


@dataclass(frozen=True)
class Normals:
    """Normal images at the detector's size with their foregrounds.

    Attributes:
        names: file names.
        images: float32 [N, S, S, 3] in [0, 1].
        foregrounds: bool [N, S, S].
    """

    names: tuple[str, ...]
    images: Stack
    foregrounds: Stack


@dataclass(frozen=True)
class PreparedImages:
    """A scanned folder, its normals split in two, and what was made of them.

    Attributes:
        folder: the scanned folder.
        train: normals to train on.
        held_out: normals for calibration and, without labelled defects, for the self-test.
        foreground: the method that was used.
        data: the settings, with the flips and the variation that suit the normals to train on.
        sha256: of the names and contents of all these normals, in order.
    """

    folder: ImageFolder
    train: Normals
    held_out: Normals
    foreground: str
    data: DataConfig
    sha256: str

    @property
    def summary(self) -> str:
        """One line for the user."""
        return (
            f"{len(self.train.names)} normal images to train on, {len(self.held_out.names)} held "
            f"out for calibration, {len(self.folder.skipped)} skipped; "
            f"foreground: {self.foreground}; varied by {self.changes}"
        )

    @property
    def changes(self) -> str:
        """What is done to the normals in training, as far as it is done."""
        varied = [f"{name} {most:g}" for name, most in asdict(self.data.variation).items() if most]
        flips = [f"{axis} flips" for axis in self.data.flips]
        return ", ".join(flips + varied) or "nothing"


def prepare(
    data: Path,
    config: DataConfig,
    *,
    full_scale: FullScale = None,
    groups: str | None = None,
    calibration_images: int,
    seed: int,
    strict: bool,
    tell: Tell,
) -> PreparedImages:
    """Scan a folder, hold out normals for calibration, and find the foregrounds.

    Args:
        data: an MVTec-style tree or a plain folder of normal images.
        config: size, foreground, and what may be done to normals in training.
        full_scale: see :func:`patchguard.data.folder.scan`.
        groups: which images belong together: see :func:`patchguard.data.split.grouped`.
        calibration_images: normals wanted for calibration; at least a tenth and at most a third
            of all normals are held out.
        seed: of the split.
        strict: fail at the first file that cannot be read, instead of leaving it out.
        tell: receives a line for each thing the user should know.

    Raises:
        PatchGuardError: see :func:`patchguard.data.folder.scan`; or fewer than 4 normal images.
    """
    folder = scan(data, strict=strict, full_scale=full_scale, groups=groups)
    tell_of(folder, tell)
    if os.path.lexists(data / "test"):
        require_labelled(folder)
    count = len(folder.train)
    if count < 4:
        raise PatchGuardError(f"{data}: {count} normal images are too few; give at least 4")
    share = max(1, calibration_images, round(SMALLEST_CALIBRATION_SHARE * count))
    held_out = min(share, int(LARGEST_CALIBRATION_SHARE * count))
    train, calibration = split_normals(folder.train, held_out, seed)
    # The calibration images must not take part in any choice, not even that of the method.
    method = chosen_method([sample.source for sample in train], config.foreground)
    foreground = replace(config.foreground, method=method)
    normals = _normals(train, foreground, config.image_size)
    return PreparedImages(
        folder,
        normals,
        _normals(calibration, foreground, config.image_size),
        method,
        suited(config, normals.images),
        _digest((*train, *calibration)),
    )


def tell_of(folder: ImageFolder, tell: Tell) -> None:
    """Say what was left out of a data set, and what is odd about it."""
    for path, reason in folder.skipped:
        tell(f"skipped {path}: {reason}")
    for remark in folder.remarks:
        tell(remark)


def _digest(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    # Once a file, though each of its pages is a sample.
    files = {sample.path for sample in samples}
    read = {path: hashlib.sha256(path.read_bytes()).digest() for path in files}
    for sample in samples:
        digest.update(os.fsencode(sample.path.name))
        digest.update(read[sample.path])
    return digest.hexdigest()


def _normals(samples: Sequence[Sample], foreground: ForegroundConfig, size: int) -> Normals:
    sources = [sample.source for sample in samples]
    read = [(source.frame, source.full_scale) for source in sources]
    decides = f"{_KEPT_VERSION} {_digest(samples)} {read} {size}"
    key = hashlib.sha256(decides.encode()).hexdigest()
    decides = f"{key} {masks_decided_by(sources, foreground)}"
    masks_key = hashlib.sha256(decides.encode()).hexdigest()
    images = (read_pixels(source).resized(size) for source in sources)
    masks = (
        resize_map(mask.astype(np.float32), (size, size)) > 0.5
        for mask in foreground_masks(sources, foreground)
    )
    shape = (len(sources), size, size)
    return Normals(
        names=tuple(sample.source.named(Path(sample.path.name)) for sample in samples),
        images=stacked(images, (*shape, 3), np.float32, f"{key}.images"),
        foregrounds=stacked(masks, shape, np.bool_, f"{masks_key}.foregrounds"),
    )
