"""Images that are kept on disk between trainings are found again only where they are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from patchguard.config import DataConfig, ForegroundConfig, ModelConfig
from patchguard.data import stack
from patchguard.data.images import ImageSource
from patchguard.data.stack import MappedArray, Stack
from patchguard.models.windows import windows_over
from patchguard.training.prepare import MOST_WINDOWS, PreparedImages, prepare, working_shape


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


def saved(folder: Path, sizes: list[tuple[int, int]]) -> list[ImageSource]:
    """Images of these heights and widths."""
    paths = [folder / f"{height}-{width}-{n}.png" for n, (height, width) in enumerate(sizes)]
    for path, (height, width) in zip(paths, sizes, strict=True):
        Image.new("RGB", (width, height)).save(path)
    return [ImageSource(path) for path in paths]


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


def of_normals(folder: Path, count: int) -> PreparedImages:
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    for number, image in enumerate(values):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return prepared(folder, ForegroundConfig(method="full"))


def test_normals_that_choose_the_score_neither_train_nor_calibrate(tmp_path: Path) -> None:
    found = of_normals(tmp_path / "data", 43)
    parts = [set(part.names) for part in (found.train, found.tuning, found.held_out)]
    assert [len(part) for part in parts] == [35, 4, 4]
    assert len(set.union(*parts)) == 43
    assert "35 normal images to train on, 4 to choose the score on, 4 held out" in found.summary


def test_of_few_normals_all_that_do_not_calibrate_train(tmp_path: Path) -> None:
    found = of_normals(tmp_path / "data", 12)
    assert found.tuning is found.train
    assert [len(part.names) for part in (found.train, found.held_out)] == [9, 3]
    assert "the same to choose the score on" in found.summary


@pytest.mark.parametrize(
    ("resolution", "sizes", "expected"),
    [
        ("native", [(80, 60)] * 3, (80, 60)),
        ("native", [(80, 60), (80, 60), (400, 300)], (80, 60)),
        (40, [(80, 60)] * 3, (40, 30)),
        (160, [(80, 60)] * 3, (160, 120)),
        ("native", [(8, 6)] * 3, (32, 24)),
        ("native", [(800, 600)] * 3, (800, 600)),
    ],
)
def test_images_are_worked_on_at_the_size_and_the_aspect_ratio_that_most_have(
    tmp_path: Path,
    resolution: int | Literal["auto", "native"],
    sizes: list[tuple[int, int]],
    expected: tuple[int, int],
) -> None:
    sources = saved(tmp_path, sizes)
    model = ModelConfig(window=32)
    assert working_shape(sources, DataConfig(resolution=resolution), model) == expected


def test_auto_is_as_much_of_the_native_resolution_as_can_be_worked_on(tmp_path: Path) -> None:
    small = saved(tmp_path, [(100, 100)] * 2)
    large = saved(tmp_path, [(999, 999)] * 2)
    model = ModelConfig(window=32, stride=0.6)
    assert working_shape(small, DataConfig(), model) == (100, 100)
    height, width = working_shape(large, DataConfig(), model)
    assert height == width < 999
    assert windows_over((height, width), 32, 16, 1) <= MOST_WINDOWS
    assert windows_over((height + 16, width + 16), 32, 16, 1) > MOST_WINDOWS


def test_the_whole_alone_is_worked_on_at_the_size_of_its_window(tmp_path: Path) -> None:
    sources = saved(tmp_path, [(80, 60)] * 3)
    model = ModelConfig(window=48, views=["whole"])
    assert working_shape(sources, DataConfig(resolution="native"), model) == (48, 48)
