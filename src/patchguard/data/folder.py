"""Folders of images: MVTec-style trees and plain folders of normal images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from patchguard.data.images import SUFFIXES, read_image, read_mask
from patchguard.errors import PatchGuardError

GOOD = "good"
_TREE_PARTS = frozenset({"train", "test", "ground_truth"})


@dataclass(frozen=True)
class Sample:
    """One image file.

    Args:
        kind: ``"good"`` for a normal image, else the name of its defect.
        mask: file of its ground truth, where there is one; a normal image has none.
    """

    path: Path
    kind: str
    mask: Path | None = None

    @property
    def anomalous(self) -> bool:
        return self.kind != GOOD


@dataclass(frozen=True)
class ImageFolder:
    """The readable images of a data set, sorted by path.

    Args:
        train: normal images.
        test: normal and anomalous images; empty for a plain folder.
        skipped: files left out, each with the reason.
    """

    root: Path
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    skipped: tuple[tuple[Path, str], ...]

    @property
    def has_test(self) -> bool:
        """The test set holds normal *and* anomalous images, as ranking metrics need."""
        return len({sample.anomalous for sample in self.test}) == 2

    @property
    def has_masks(self) -> bool:
        """There are anomalous test images and each has a mask, as pixel metrics need."""
        return any(sample.anomalous for sample in self.test) and not self.unmasked

    @property
    def unmasked(self) -> tuple[Sample, ...]:
        """Anomalous test images without a mask."""
        return tuple(s for s in self.test if s.anomalous and s.mask is None)


def scan(root: Path, *, strict: bool = False, minimum_side: int = 16) -> ImageFolder:
    """Find the images of a data set and decode every one of them.

    A folder with any of ``train``, ``test`` or ``ground_truth`` is an MVTec-style tree: normal
    images in ``train/good``, test images in ``test/<kind>`` (normal ones in ``test/good``), masks
    in ``ground_truth/<kind>``, named ``<image>_mask`` or ``<image>`` with any image suffix.
    ``test`` and ``ground_truth`` may be missing, and so may some masks. Other folders in ``train``
    and masks of ``good`` images are not read.

    Any other folder holds normal images: those directly inside or, if there are none, those of
    its subfolders. Hidden files and files of other types are ignored everywhere.

    Args:
        strict: raise at the first unreadable or too small file instead of skipping it.
        minimum_side: least height and width of an image in pixels.

    Raises:
        PatchGuardError: there is no such folder, no (readable) training image, a mask that
            belongs to no image or differs from its image in size, or a folder whose normal
            images cannot be told; with ``strict`` also as above.
    """
    _require_folder(root)
    if any((root / part).is_dir() for part in _TREE_PARTS):
        train, test = _tree(root)
    else:
        train, test = _plain(root), []
    skipped: list[tuple[Path, str]] = []
    readable_train = _readable(train, strict, minimum_side, skipped)
    if not readable_train:
        path, reason = skipped[0]
        raise PatchGuardError(
            f"{root}: none of the {len(train)} training images can be used; {path}: {reason}"
        )
    readable_test = _readable(test, strict, minimum_side, skipped)
    return ImageFolder(root, readable_train, readable_test, tuple(skipped))


def scan_test(root: Path, *, strict: bool = False, minimum_side: int = 16) -> ImageFolder:
    """The test part of an MVTec-style tree alone; ``train`` is neither needed nor read.

    Raises:
        PatchGuardError: no test folder, or as :func:`scan` for test images and masks.
    """
    _require_folder(root)
    if not (root / "test").is_dir():
        raise PatchGuardError(f"{root}: no folder 'test' with the labelled images")
    skipped: list[tuple[Path, str]] = []
    test = _readable(_test_samples(root), strict, minimum_side, skipped)
    return ImageFolder(root, (), test, tuple(skipped))


def list_images(path: Path) -> list[Path]:
    """The file itself, or every image below a folder, sorted; hidden files are ignored.

    Raises:
        PatchGuardError: there is no such file or folder, or no image in it.
    """
    if path.is_file():
        return [path]
    _require_folder(path)
    found = _images_below(path)
    if not found:
        raise PatchGuardError(f"{path}: no images in this folder ({_suffixes()})")
    return found


def split_normals(
    samples: Sequence[Sample], held_out: int, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Hold out some normal images, for calibration.

    The choice is made by a hash of the seed and each path relative to the common folder: it does
    not depend on the order of the samples, the place of the folder, the machine or any version.

    Returns:
        The remaining samples and the held-out ones, each sorted by path.

    Raises:
        PatchGuardError: one of the two would be empty.
    """
    if not 1 <= held_out < len(samples):
        raise PatchGuardError(
            f"cannot hold out {held_out} of {len(samples)} normal images: "
            "at least one must be held out and one remain"
        )
    common = os.path.commonpath([sample.path.parent for sample in samples])

    def rank(sample: Sample) -> str:
        name = sample.path.relative_to(common).as_posix()
        return hashlib.sha256(os.fsencode(f"{seed}/{name}")).hexdigest()

    ranked = sorted(samples, key=rank)
    return _sorted(ranked[held_out:]), _sorted(ranked[:held_out])


def _sorted(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.path.as_posix()))


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise PatchGuardError(f"{path}: does not exist")
    if not path.is_dir():
        raise PatchGuardError(f"{path}: not a folder")


def _images_below(folder: Path) -> list[Path]:
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    return sorted(found, key=Path.as_posix)


def _plain(root: Path) -> list[Sample]:
    found = list_images(root)
    inside = [path for path in found if path.parent == root]
    if not inside:
        _require_normals(root, found)
    return [Sample(path, GOOD) for path in inside or found]


def _require_normals(root: Path, found: list[Path]) -> None:
    """Refuse subfolders that hold more than normal images."""
    folders = [path.relative_to(root).parent.parts for path in found]
    trees = [parts for parts in folders if _TREE_PARTS.intersection(parts)]
    if trees:
        raise PatchGuardError(f"{root}: holds whole data sets; name one, such as {trees[0][0]}")
    good = [GOOD in parts for parts in folders]
    if any(good) and not all(good):
        other = folders[good.index(False)][-1]
        raise PatchGuardError(
            f"{root}: holds '{GOOD}' and '{other}' images; name the folder of normal images"
        )


def _tree(root: Path) -> tuple[list[Sample], list[Sample]]:
    normals = root / "train" / GOOD
    train = [Sample(path, GOOD) for path in _images_below(normals)] if normals.is_dir() else []
    if not train:
        raise PatchGuardError(f"{normals}: no images; the normal training images belong there")
    return train, _test_samples(root)


def _test_samples(root: Path) -> list[Sample]:
    masks = _masks(root / "ground_truth")
    samples = []
    for path in _images_below(root / "test"):
        key = path.relative_to(root / "test").with_suffix("")
        if len(key.parts) == 1:
            raise PatchGuardError(
                f"{path}: no kind; move it to test/{GOOD} or to test/<name of the defect>"
            )
        kind = key.parts[0]
        named = (key.with_name(f"{key.name}_mask"), key)
        mask = next((masks[name] for name in named if name in masks), None)
        samples.append(Sample(path, kind, mask))
    matched = {sample.mask for sample in samples}
    orphan = next((mask for mask in masks.values() if mask not in matched), None)
    if orphan is not None:
        raise PatchGuardError(f"{orphan}: mask of no image in {root / 'test'}; rename or remove it")
    return samples


def _masks(folder: Path) -> dict[Path, Path]:
    """Mask files by ``<kind>/<name>`` without suffix."""
    masks: dict[Path, Path] = {}
    for path in _images_below(folder):
        key = path.relative_to(folder).with_suffix("")
        if key.parts[0] == GOOD:
            continue
        if key in masks:
            raise PatchGuardError(f"{path}: second mask beside {masks[key].name}; remove one")
        masks[key] = path
    return masks


def _readable(
    samples: list[Sample], strict: bool, minimum_side: int, skipped: list[tuple[Path, str]]
) -> tuple[Sample, ...]:
    """Samples whose files decode; the others are appended to ``skipped``."""
    readable = []
    # Threads, since nearly all the time goes into decoders, which release the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = pool.map(_fault, samples, repeat(minimum_side))
        for sample, fault in zip(samples, faults, strict=True):
            if fault is None:
                readable.append(sample)
            elif strict:
                raise PatchGuardError(f"{fault[0]}: {fault[1]}")
            else:
                skipped.append(fault)
    return tuple(readable)


def _fault(sample: Sample, minimum_side: int) -> tuple[Path, str] | None:
    """The first file of a sample that cannot be used, and why."""
    path = sample.path
    try:
        height, width = read_image(path).shape[:2]
        if min(height, width) < minimum_side:
            return path, f"{width}x{height} pixels; both sides need at least {minimum_side}"
        if sample.mask is None:
            return None
        path = sample.mask
        mask_height, mask_width = read_mask(path).shape
    except PatchGuardError as error:
        return path, str(error).removeprefix(f"{path}: ")
    if (mask_height, mask_width) != (height, width):
        raise PatchGuardError(
            f"{path}: mask of {mask_width}x{mask_height} pixels for an image of "
            f"{width}x{height}; export it at the size of {sample.path}"
        )
    return None
