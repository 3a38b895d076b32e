"""What a training run is made of: images to train on, images to calibrate on, foregrounds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from patchguard.config import DataConfig, ForegroundConfig, ModelConfig
from patchguard.data.folder import FullScale, ImageFolder, require_labelled, scan
from patchguard.data.foreground import chosen_method, foreground_masks, masks_decided_by
from patchguard.data.images import ImageSource, read_pixels, resize_map
from patchguard.data.likeness import boxes_on, suited
from patchguard.data.samples import Sample
from patchguard.data.span import ranged
from patchguard.data.split import split_normals
from patchguard.data.stack import Stack, stacked
from patchguard.errors import PatchGuardError
from patchguard.models.windows import windows_over
from patchguard.reporter import Tell

SMALLEST_CALIBRATION_SHARE = 0.1
LARGEST_CALIBRATION_SHARE = 1 / 3
MOST_TUNING, FEWEST_TUNING, TUNING_ONE_OF = 16, 4, 8
"""How many normals decide how the score is made: one of eight of those that do not calibrate, at
most 16; below 4 those that are trained on serve."""

# Part of the names of kept images: raise it whenever the reading or resizing of images changes.
_KEPT_VERSION = 3


@dataclass(frozen=True)
class Normals:
    """Normal images at the working resolution with their foregrounds.

    Attributes:
        names: file names.
        images: float32 [N, H, W, 3] in [0, 1].
        foregrounds: bool [N, H, W].
    """

    names: tuple[str, ...]
    images: Stack
    foregrounds: Stack


@dataclass(frozen=True)
class PreparedImages:
    """A scanned folder, its normals split in three, and what was made of them.

    Attributes:
        folder: the scanned folder.
        train: normals to train on.
        tuning: normals that decide how the score is made: none that calibrates, and none that was
            trained on, unless there are too few.
        held_out: normals for calibration and, without labelled defects, for the self-test.
        foreground: the method that was used.
        data: the settings, with the flips, the variation and the range of values that suit the
            normals to train on, seen as a whole.
        in_windows: the same where they are seen in windows.
        sha256: of the names and contents of all these normals, in order.
        shape: height and width in pixels to which all images are brought.
    """

    folder: ImageFolder
    train: Normals
    tuning: Normals
    held_out: Normals
    foreground: str
    data: DataConfig
    in_windows: DataConfig
    sha256: str
    shape: tuple[int, int]

    @property
    def summary(self) -> str:
        """One line for the user."""
        return (
            f"{len(self.train.names)} normal images to train on, "
            f"{self.tuned_on} to choose the score on, {len(self.held_out.names)} held out for "
            f"calibration, {len(self.folder.skipped)} skipped; "
            f"foreground: {self.foreground}; {self.shape[0]} x {self.shape[1]} px; "
            f"varied by {self.changes}{self._stretched}"
        )

    @property
    def _stretched(self) -> str:
        span = self.data.anomalies.range
        if not span:
            return ""
        return f"; their values span {span[0]:g} to {span[1]:g} and are stretched to 0 to 1"

    @property
    def tuned_on(self) -> str:
        """How many normals the score is chosen on."""
        own = self.tuning is not self.train
        return f"{len(self.tuning.names)}" if own else "the same"

    @property
    def changes(self) -> str:
        """What is done to the normals in training, as far as it is done."""
        whole, windows = _changes(self.data), _changes(self.in_windows)
        return whole if whole == windows else f"{windows} (as a whole by {whole})"


def prepare(
    data: Path,
    config: DataConfig,
    model: ModelConfig,
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
        model: how the network looks at them.
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
    shape = working_shape([sample.source for sample in train], config, model)
    digest = _digest((*train, *calibration))
    if "windows" in model.views:
        tell(
            f"each image is seen in {_windows_of(shape, model)} windows; a prediction costs that "
            "many looks, an attack as many times its steps"
        )
    train, tuning = _kept_for_tuning(train, model, seed)
    normals = _normals(train, foreground, shape)
    config = ranged(config, normals.images)
    return PreparedImages(
        folder,
        normals,
        _normals(tuning, foreground, shape) if tuning else normals,
        _normals(calibration, foreground, shape),
        method,
        suited(config, normals.images),
        suited(config, normals.images, boxes_on(normals.foregrounds, model.window)),
        digest,
        shape,
    )


def _kept_for_tuning(
    train: tuple[Sample, ...], model: ModelConfig, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Training normals, and those of them kept to choose the score on.

    None are kept where nothing is to be chosen, where they would be too few, or where large groups
    would take more than twice as many.
    """
    wanted = min(MOST_TUNING, len(train) // TUNING_ONE_OF)
    if wanted < FEWEST_TUNING or (len(model.views) == 1 and len(model.top) == 1):
        return train, ()
    try:
        rest, tuning = split_normals(train, wanted, seed)
    except PatchGuardError:  # all of one group
        return train, ()
    return (rest, tuning) if len(tuning) <= 2 * wanted else (train, ())


def _changes(config: DataConfig) -> str:
    varied = [f"{name} {most:g}" for name, most in asdict(config.variation).items() if most]
    flips = [f"{axis} flips" for axis in config.flips]
    return ", ".join(flips + varied) or "nothing"


MOST_WINDOWS = 64
"""That ``auto`` lets an image have: prediction and attacks cost in proportion."""
_STEP = 16
_LOOKED_AT = 32


def working_shape(
    sources: Sequence[ImageSource], config: DataConfig, model: ModelConfig
) -> tuple[int, int]:
    """The height and width in pixels at which a detector works on images like these.

    The aspect ratio is the median one. The longer side is at least a window's; it is not above what
    the images have, unless that is smaller or ``config.resolution`` says so.

    Args:
        sources: normal images to train on; some from all over them are looked at.
        config: of it the resolution counts.
        model: of it the window and the views.
    """
    if "windows" not in model.views:
        return model.window, model.window
    chosen = np.linspace(0, len(sources) - 1, min(len(sources), _LOOKED_AT)).round().astype(int)
    sizes = np.array([read_pixels(sources[index]).shape for index in chosen])
    longer = float(np.median(sizes.max(axis=1)))
    wide = float(np.exp(np.median(np.log(sizes[:, 1] / sizes[:, 0]))))
    aspect = (1 / max(1.0, wide), wide / max(1.0, wide))
    side = longer if isinstance(config.resolution, str) else config.resolution
    shape = _shaped(side, aspect, model.window)
    while config.resolution == "auto" and _windows_of(shape, model) > MOST_WINDOWS:
        side -= _STEP
        shape = _shaped(side, aspect, model.window)
    return shape


def _shaped(longer: float, aspect: tuple[float, float], window: int) -> tuple[int, int]:
    longer = max(longer, window)
    height, width = (round(longer * side) for side in aspect)
    return height, width


def _windows_of(shape: tuple[int, int], model: ModelConfig) -> int:
    """About how many windows cover an image: as with patches of 16 px."""
    stride = max(1, int(model.stride * model.window / _STEP))
    return windows_over(shape, model.window, _STEP, stride)


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


def _normals(
    samples: Sequence[Sample], foreground: ForegroundConfig, size: tuple[int, int]
) -> Normals:
    sources = [sample.source for sample in samples]
    read = [(source.frame, source.full_scale) for source in sources]
    decides = f"{_KEPT_VERSION} {_digest(samples)} {read} {size}"
    key = hashlib.sha256(decides.encode()).hexdigest()
    decides = f"{key} {masks_decided_by(sources, foreground)}"
    masks_key = hashlib.sha256(decides.encode()).hexdigest()
    images = (read_pixels(source).resized(size) for source in sources)
    masks = (
        resize_map(mask.astype(np.float32), size) > 0.5
        for mask in foreground_masks(sources, foreground)
    )
    shape = (len(sources), *size)
    return Normals(
        names=tuple(sample.source.named(Path(sample.path.name)) for sample in samples),
        images=stacked(images, (*shape, 3), np.float32, f"{key}.images"),
        foregrounds=stacked(masks, shape, np.bool_, f"{masks_key}.foregrounds"),
    )
