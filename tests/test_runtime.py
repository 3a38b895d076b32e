"""The device is the one that was named; scores are judged in full precision."""

from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard import cli
from patchguard.config import EvaluationConfig
from patchguard.detector import Detection
from patchguard.errors import PatchGuardError
from patchguard.evaluation.protocol import Surroundings, evaluate_detector
from patchguard.evaluation.scoring import score_images
from patchguard.evaluation.test_set import TestSet
from patchguard.runtime import Runtime, full_precision, named_device

Setting = tuple[str, bool]


def setting() -> Setting:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    """TF32 wherever it is possible, as a user may set it."""
    before = setting()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


class Watched(Linear):
    """Notes how it is computed."""

    def __init__(self) -> None:
        super().__init__(torch.ones(3, 8, 8))
        self.seen: set[Setting] = set()

    def forward(self, images: Tensor) -> Detection:
        self.seen.add(setting())
        return super().forward(images)


def test_what_is_scored_is_scored_without_tf32() -> None:
    detector = Watched()
    score_images(detector, torch.rand(3, 3, 8, 8), 2)
    assert detector.seen == {("highest", False)}
    assert setting() == ("high", True)


def test_an_evaluation_leaves_the_precision_of_later_trainings_alone() -> None:
    detector = Watched()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    test = TestSet(("a", "b", "c", "d"), ("good", "good", "hole", "hole"), images, None)
    evaluate_detector(
        detector, test, EvaluationConfig(suite="quick"), known=Surroundings(checks=False)
    )
    assert detector.seen == {("highest", False)}
    assert setting() == ("high", True)


def test_it_comes_back_after_an_error_and_from_inside_itself() -> None:
    with pytest.raises(ValueError, match="no"), full_precision():
        with full_precision():
            pass
        assert setting() == ("highest", False)
        raise ValueError("no")
    assert setting() == ("high", True)


def test_a_thread_that_leaves_first_does_not_end_it_for_the_others() -> None:
    left, inside = Barrier(2), Barrier(2)
    seen: list[Setting] = []

    def longer() -> None:
        with full_precision():
            inside.wait(10)
            left.wait(10)
            seen.append(setting())

    thread = Thread(target=longer)
    with full_precision():
        thread.start()
        inside.wait(10)
    left.wait(10)
    thread.join()
    assert seen == [("highest", False)]
    assert setting() == ("high", True)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, apple: bool = False) -> None:
    """A machine with that many NVIDIA GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)


@pytest.mark.parametrize(
    ("name", "count", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
        ("mps", 0, "mps"),
    ],
)
def test_a_device_is_the_one_that_was_named(
    name: str, count: int, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count, apple=True)
    assert named_device(name) == torch.device(found)
    assert Runtime.on(name).described == f"{found}, {torch.get_num_threads()} threads"


@pytest.mark.parametrize(
    ("name", "count", "told"),
    [
        ("gpu", 2, "give one of cpu, cuda, cuda:1, mps and auto"),
        ("cpu:1", 2, "give one of cpu, cuda, cuda:1, mps and auto"),
        ("cuda:", 2, "give one of cpu, cuda, cuda:1, mps and auto"),
        ("cuda:-1", 2, "give one of cpu, cuda, cuda:1, mps and auto"),
        ("cuda", 0, "torch can use no NVIDIA GPU here"),
        ("cuda:2", 2, "the last GPU here is cuda:1"),
        ("mps", 2, "torch can use no Apple GPU here"),
    ],
)
def test_a_device_that_is_unknown_or_absent_is_one_line(
    name: str, count: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(PatchGuardError, match=rf"^--device {name}: {told}.*$"):
        named_device(name)


def test_attacks_have_all_gpus_unless_one_is_named_by_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, 2)
    assert Runtime.on("cuda").gpus == (torch.device("cuda:0"), torch.device("cuda:1"))
    assert Runtime.on("cuda:1").gpus == (torch.device("cuda:1"),)
    assert Runtime.on("cpu").gpus == ()


@pytest.mark.parametrize(
    "command",
    [
        ["fit", "DATA"],
        ["evaluate", "RUN", "DATA"],
        ["doctor", "RUN", "DATA"],
        ["predict", "RUN", "DATA"],
        ["study", "DATA"],
        ["demo", "--out", "DEMO"],
    ],
)
def test_commands_that_compute_take_a_device_and_refuse_an_absent_one_before_any_work(
    command: list[str],
    run: Path,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"DATA": str(tree), "RUN": str(run)}
    words = [places.get(word, word) for word in command]
    assert cli.main([*words, "--device", "cuda:99"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("patchguard: --device cuda:99: ")
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
