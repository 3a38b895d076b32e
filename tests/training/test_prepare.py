"""Images that are kept on disk between trainings are found again only where they are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchguard.config import DataConfig, ForegroundConfig, ModelConfig
from patchguard.data import stack
from patchguard.data.stack import MappedArray, Stack
from patchguard.training.prepare import PreparedImages, prepare


@pytest.fixture(autouse=True)
def small_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stack, "IN_MEMORY", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prepared(data: Path, foreground: ForegroundConfig, seed: int = 0) -> PreparedImages:
    return prepare(
        data,
        DataConfig(foreground=foreground),
        ModelConfig(window=16, views=["whole"]),
        calibration_images=3,
        seed=seed,
        strict=False,
        tell=lambda line: None,
    )


def shown(images: Stack) -> set[bytes]:
    assert isinstance(images, MappedArray)
    return {image.tobytes() for image in images}


def test_pages_that_another_split_trains_on_are_other_images(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    first, *others = map(Image.fromarray, values)
    (tmp_path / "data").mkdir()
    first.save(tmp_path / "data/pages.tif", save_all=True, append_images=others)
    for seed in range(2):
        found = prepared(tmp_path / "data", ForegroundConfig(method="full"), seed)
        pages = [int(name.split()[2]) - 1 for name in found.train.names]
        expected = {(values[page] / np.float32(255)).tobytes() for page in pages}
        assert shown(found.train.images) == expected
        assert not shown(found.train.images) & shown(found.held_out.images)


def test_foregrounds_whose_files_were_changed_are_read_again(tmp_path: Path) -> None:
    data, masks = tmp_path / "data", tmp_path / "masks"
    data.mkdir()
    masks.mkdir()
    for rows in (4, 12):
        for number in range(6):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(data / f"{number}.png")
            mask = np.zeros((16, 16), np.uint8)
            mask[:rows] = 255
            Image.fromarray(mask).save(masks / f"{number}.png")
        found = prepared(data, ForegroundConfig(method="files", masks=str(masks)))
        assert np.mean(list(found.train.foregrounds)) == rows / 16
