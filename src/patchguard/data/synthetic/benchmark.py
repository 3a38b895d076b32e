"""Render the categories and write them as MVTec-style trees."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchguard.data.synthetic.canvas import (
    Array,
    Mask,
    Rng,
    Scene,
    captured,
    draw_lamp,
    repainted,
)
from patchguard.data.synthetic.fabric import FABRIC
from patchguard.data.synthetic.plate import PLATE
from patchguard.data.synthetic.tablets import TABLETS
from patchguard.errors import PatchGuardError
from patchguard.files import sole_writer, write_whole

_SCENES: dict[str, Scene[Any]] = {"plate": PLATE, "fabric": FABRIC, "tablets": TABLETS}

CATEGORIES: tuple[str, ...] = tuple(_SCENES)

# Part of the settings beside a tree: raise it with every change to the pictures.
_RENDERING = 1
_SETTINGS = ".synthetic.json"
_FORMER_SETTINGS = "synthetic.json"


def defects(category: str) -> tuple[str, ...]:
    """Names of the kinds of defect a category has.

    Raises:
        PatchGuardError: for a category that is not in `CATEGORIES`.
    """
    return tuple(_scene(category).defects)


def render(category: str, defect: str | None, rng: Rng) -> tuple[Array, Mask]:
    """One picture `[256, 256, 3]` in [0, 1] and the mask `[256, 256]` of its defect.

    For generators in the same state, pictures with and without a defect are equal wherever the
    mask is False: same part, light and sensor noise. `None` gives a normal part and an empty mask.

    Raises:
        PatchGuardError: for a category or a defect that does not exist.
    """
    scene = _scene(category)
    if defect is not None and defect not in scene.defects:
        known = ", ".join(scene.defects)
        raise PatchGuardError(f"no defect {defect!r} in category {category!r}: choose from {known}")
    seeds = rng.integers(2**63, size=3)
    scene_rng, defect_rng, sensor_rng = (np.random.default_rng(seed) for seed in seeds)
    part, lamp = scene.draw(scene_rng), draw_lamp(scene_rng)
    image = lamp.shine(scene.surface(part))
    mask = np.zeros(image.shape[:2], bool)
    if defect is not None:
        defective = lamp.shine(scene.defects[defect](part, defect_rng))
        mask = repainted(defective, image)
        image = np.where(mask[..., None], defective, image)
    return captured(image, sensor_rng), mask


def write_benchmark(
    root: Path,
    *,
    categories: Sequence[str] = CATEGORIES,
    train: int = 120,
    test_good: int = 30,
    test_per_defect: int = 10,
    seed: int = 0,
) -> list[Path]:
    """Write `<root>/<category>/{train,test,ground_truth}` as in MVTec AD; return the categories.

    Each picture depends on the seed and its own path only. A category that is already there,
    complete and with the same settings, is left as it is.

    Raises:
        PatchGuardError: for an unknown category, where a folder or a file in it that this function
            did not write stands in the way, or while another process writes here.
    """
    pictures = {c: list(_pictures(c, train, test_good, test_per_defect)) for c in categories}
    trees = []
    with sole_writer(Path(root)):
        for category in categories:
            settings: dict[str, str | int] = {
                "rendering": _RENDERING,
                "category": category,
                "train": train,
                "test_good": test_good,
                "test_per_defect": test_per_defect,
                "seed": seed,
            }
            trees.append(_write_category(Path(root), category, pictures[category], settings))
    return trees


def _scene(category: str) -> Scene[Any]:
    if category not in _SCENES:
        known = ", ".join(CATEGORIES)
        raise PatchGuardError(f"no synthetic category {category!r}: choose from {known}")
    return _SCENES[category]


def _pictures(
    category: str, train: int, test_good: int, test_per_defect: int
) -> Iterator[tuple[str, str | None]]:
    """(path below the category without suffix, defect) of every picture."""
    yield from ((f"train/good/{i:03d}", None) for i in range(train))
    yield from ((f"test/good/{i:03d}", None) for i in range(test_good))
    for defect in defects(category):
        yield from ((f"test/{defect}/{i:03d}", defect) for i in range(test_per_defect))


def _write_category(
    root: Path,
    category: str,
    pictures: list[tuple[str, str | None]],
    settings: dict[str, str | int],
) -> Path:
    tree = root / category
    if _is_complete(tree, pictures, settings):
        return tree
    _check_own(tree)
    # Written aside and moved, so that an interruption leaves no half-written category.
    with tempfile.TemporaryDirectory(prefix=f".{category}-", dir=root) as aside:
        fresh = Path(aside) / category
        for path, defect in pictures:
            _write_picture(fresh, path, category, defect, int(settings["seed"]))
        write_whole(fresh / _SETTINGS, json.dumps(settings, indent=2) + "\n")
        if tree.exists():
            tree.rename(Path(aside) / "former")
        fresh.rename(tree)
    return tree


def _check_own(tree: Path) -> None:
    """Refuse to replace a folder in which anything is not of its own making."""
    if not tree.exists() and not tree.is_symlink():
        return
    try:
        written = _settings(tree)
        counts = [int(written[name]) for name in ("train", "test_good", "test_per_defect")]
        pictures = list(_pictures(written["category"], *counts))
    except (OSError, ValueError, KeyError, TypeError, PatchGuardError) as error:
        raise PatchGuardError(
            f"{tree} exists and is not a synthetic category: choose another folder"
        ) from error
    own = {f for path, defect in pictures for f in _files(tree, path, defect)}
    own |= {tree / _SETTINGS, tree / _FORMER_SETTINGS}
    foreign = next((path for path in _entries(tree) if path not in own), None)
    if foreign is not None or tree.is_symlink():
        raise PatchGuardError(
            f"{foreign or tree} is not a part of the synthetic category, which would be replaced: "
            "move it away or choose another folder"
        )


def _settings(tree: Path) -> Any:
    hidden = tree / _SETTINGS
    path = hidden if hidden.exists() else tree / _FORMER_SETTINGS
    return json.loads(path.read_text(encoding="utf-8"))


def _entries(tree: Path) -> Iterator[Path]:
    """Every file, and every link to anything, below a folder."""
    for folder, folders, files in os.walk(tree):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted((*links, *files)))


def _is_complete(
    tree: Path, pictures: list[tuple[str, str | None]], settings: dict[str, str | int]
) -> bool:
    try:
        written = _settings(tree)
    except (OSError, ValueError):
        return False
    files = (f for path, defect in pictures for f in _files(tree, path, defect))
    return bool(written == settings) and all(f.is_file() for f in files)


def _files(tree: Path, path: str, defect: str | None) -> list[Path]:
    """The picture's file and, for a defect, its mask's."""
    image = tree / f"{path}.png"
    if defect is None:
        return [image]
    return [image, tree / "ground_truth" / defect / f"{image.stem}_mask.png"]


def _write_picture(tree: Path, path: str, category: str, defect: str | None, seed: int) -> None:
    rng = np.random.default_rng([seed, *f"{category}/{path}".encode()])
    image, mask = render(category, defect, rng)
    arrays = [np.round(image * 255).astype(np.uint8), mask.astype(np.uint8) * 255]
    for file, array in zip(_files(tree, path, defect), arrays, strict=False):
        content = io.BytesIO()
        # Sensor noise never repeats: looking for repetitions costs time and saves nothing.
        Image.fromarray(array).save(
            content, format="PNG", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY
        )
        write_whole(file, content.getvalue())
