"""Which ground-truth masks belong to which image, by their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from patchguard.data.samples import GOOD
from patchguard.errors import PatchGuardError

_MASK = "_mask"
_NUMBERED = re.compile(r"(.+)[_-]\d+")
_NUMBERED_MASK = re.compile(r"(.+)_mask[_-]?\d+")


def masks_by_image(
    root: Path, masks: Iterable[Path], images: Collection[Path]
) -> dict[Path, list[Path]]:
    """The mask files of each image.

    Args:
        root: of the data set.
        masks: files below its folder ``ground_truth``; those of normal images are left out.
        images: of its folder ``test``, as ``<kind>/<name>`` without a suffix.

    Raises:
        PatchGuardError: a mask belongs to no image, or differs from another in its suffix alone.
    """
    found: dict[Path, list[Path]] = {}
    seen: dict[Path, Path] = {}
    for path in masks:
        key = path.relative_to(root / "ground_truth").with_suffix("")
        if key.parts[0] == GOOD:
            continue
        if key in seen:
            raise PatchGuardError(f"{path}: second mask beside {seen[key].name}; remove one")
        seen[key] = path
        image = next((name for name in _names(key, images) if name in images), None)
        if image is None:
            raise PatchGuardError(
                f"{path}: mask of no image in {root / 'test'}; rename or remove it"
            )
        found.setdefault(image, []).append(path)
    return found


def _names(mask: Path, images: Collection[Path]) -> Iterator[Path]:
    """The names that the image of a mask may have, most likely first."""
    yield mask.with_name(mask.name.removesuffix(_MASK) or mask.name)
    yield mask
    numbered_mask = _NUMBERED_MASK.fullmatch(mask.name)
    if numbered_mask:
        yield mask.with_name(numbered_mask[1])
    numbered = _NUMBERED.fullmatch(mask.name)
    # Where images are numbered in the same way, a number says which image and not which mask.
    if numbered and not any(_alike(image, mask.parent, numbered[1]) for image in images):
        yield mask.with_name(numbered[1])
    if len(mask.parts) > 2:
        folder = mask.parent
        yield folder
        yield folder.with_name(folder.name.removesuffix(_MASK) or folder.name)


def _alike(image: Path, folder: Path, stem: str) -> bool:
    found = _NUMBERED.fullmatch(image.name)
    return image.parent == folder and found is not None and found[1] == stem
