"""Images in memory, and in a file where memory would not hold them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from patchguard.data import stack
from patchguard.data.stack import MappedArray, stacked
from patchguard.errors import PatchGuardError
from patchguard.training.train import train
from trainings import MODEL, dataset, settings


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(stack, "IN_MEMORY", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def items() -> list[np.ndarray]:
    return [np.full((4, 4, 3), number, np.float32) for number in range(5)]


def test_what_fits_into_memory_stays_there() -> None:
    found = stacked(iter(items()), (5, 4, 4, 3), np.float32, "name")
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, items())


def test_what_does_not_fit_is_mapped_from_a_file_that_is_made_once(small_memory: Path) -> None:
    found = stacked(iter(items()), (5, 4, 4, 3), np.float32, "name")
    assert isinstance(found, MappedArray)
    assert found.path.is_relative_to(small_memory)
    again = stacked(iter(()), (5, 4, 4, 3), np.float32, "name")
    for mapped in (found, again, pickle.loads(pickle.dumps(found))):
        assert len(mapped) == 5
        np.testing.assert_array_equal(list(mapped), items())
        np.testing.assert_array_equal(mapped[1:3], items()[1:3])
    assert len(pickle.dumps(found)) < 1000
    assert [path.name for path in found.path.parent.iterdir()] == ["name.npy"]


def test_a_stop_while_filling_leaves_no_file(small_memory: Path) -> None:
    def broken() -> list[np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stacked((each for _ in range(1) for each in broken()), (5, 4, 4, 3), np.float32, "name")
    assert not list(small_memory.rglob("*.npy"))


def test_a_disk_that_is_too_small_is_told_before_it_is_filled(
    small_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 10}))
    with pytest.raises(PatchGuardError, match="point XDG_CACHE_HOME to a larger disk") as error:
        stacked(iter(items()), (5, 4, 4, 3), np.float32, "name")
    assert str(error.value).startswith(str(small_memory))


def test_a_training_is_the_same_from_a_file(small_memory: Path, tmp_path: Path) -> None:
    ends = []
    for number in range(2):
        data = dataset()
        if number:
            shape = data.images.shape
            data.images = stacked(iter(data.images), shape, np.float32, "images")
        done = train(data, MODEL, settings(steps=2), seed=0, folder=tmp_path / str(number))
        ends.append(done.detector.state_dict())
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
