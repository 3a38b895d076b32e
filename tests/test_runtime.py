"""Scores are judged in full precision, and nothing of that is left behind."""

from collections.abc import Iterator
from threading import Barrier, Thread

import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.config import EvaluationConfig
from patchguard.detector import Detection
from patchguard.evaluation.protocol import Surroundings, evaluate_detector
from patchguard.evaluation.scoring import score_images
from patchguard.evaluation.test_set import TestSet
from patchguard.runtime import full_precision

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
