"""An evaluation of given minutes attacks as many images as they allow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import patchguard
from detectors import BRIGHT, Linear
from patchguard.config import EvaluationConfig, Suite, ThreatConfig, load_suite
from patchguard.detector import Detection, Detector
from patchguard.evaluation import budget
from patchguard.evaluation.budget import (
    affordable,
    passes_of,
    remember,
    remembered,
    seconds_per_pass,
)
from patchguard.evaluation.test_set import TestSet
from trainings import Listening


def suite(*eps: str, steps: int = 10) -> Suite:
    attack = {"attack": "pgd", "objective": "score", "steps": steps}
    return Suite(threats=[ThreatConfig(eps=list(eps), attacks=[attack])])


def images(count: int = 100) -> TestSet:
    kinds = tuple("good" if number % 2 else "scratch" for number in range(count))
    names = tuple(map(str, range(count)))
    return TestSet(names, kinds, torch.rand(count, 3, 8, 8), None)


@pytest.fixture
def a_second_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "seconds_per_pass", lambda *_: 1.0)


@pytest.fixture
def detector() -> Detector:
    return Linear(torch.ones(3, 8, 8))


@pytest.mark.usefixtures("a_second_a_pass")
def test_fewer_minutes_are_fewer_images(detector: Detector) -> None:
    counts = [affordable(detector, images(), suite("4/255"), minutes, 1) for minutes in (4, 8, 16)]
    assert 2 < counts[0] < counts[1] < counts[2] < 100
    assert counts[2] == pytest.approx(4 * counts[0], abs=4)
    twice = affordable(detector, images(), suite("4/255"), 4, 2)
    assert twice == pytest.approx(2 * counts[0], abs=1)


@pytest.mark.usefixtures("a_second_a_pass")
def test_at_least_two_images_are_attacked_and_at_most_all(detector: Detector) -> None:
    assert affordable(detector, images(), suite("4/255"), 1e-6, 1) == 2
    assert affordable(detector, images(), suite("4/255"), 1e6, 1) == 100
    assert affordable(detector, images(7), suite("4/255"), 1e6, 8) == 7


def test_a_suite_of_more_radii_steps_or_searches_is_dearer() -> None:
    once = passes_of(suite("4/255"))
    assert passes_of(suite("4/255", "8/255")) == pytest.approx(2 * once)
    assert passes_of(suite("4/255", steps=20)) > 1.5 * once
    searching = replace(suite("4/255"), minimal_eps={"steps": 10})
    assert passes_of(searching) > once
    assert passes_of(load_suite("full")) > passes_of(load_suite("quick")) > 0


class Counting(Detector):
    """Counts its passes forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 8, 8))
        self.passes: list[tuple[int, bool, bool]] = []

    def forward(self, images: Tensor) -> Detection:
        self.passes.append((len(images), images.requires_grad, self.training))
        return Detection((images * self.weight).sum((1, 2, 3)), images.mean(1))


def test_a_pass_is_measured_on_one_image_and_leaves_no_trace() -> None:
    detector = Counting().eval()
    assert seconds_per_pass(detector, images(5).images) > 0
    assert {each[:2] for each in detector.passes} == {(1, True)}
    assert detector.weight.grad is None and detector.weight.requires_grad


def test_a_detector_without_gradients_is_measured_too() -> None:
    class Flat(Detector):
        def forward(self, images: Tensor) -> Detection:
            score = images.detach().mean((1, 2, 3))
            return Detection(score, images.detach().mean(1))

    assert seconds_per_pass(Flat().eval(), images(2).images) > 0


def test_the_number_is_remembered_for_the_same_attacks_and_minutes(tmp_path: Path) -> None:
    cache = tmp_path / "attacks"
    assert remembered(cache, images(), suite("4/255"), 3) is None
    remember(cache, images(), suite("4/255"), 3, 17)
    assert remembered(cache, images(), suite("4/255"), 3) == 17
    assert remembered(cache, images(), suite("4/255"), 4) is None
    assert remembered(cache, images(), suite("8/255"), 3) is None
    assert remembered(cache, images(50), suite("4/255"), 3) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_damaged_memory_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / budget.BUDGET).write_text(text)
    assert remembered(tmp_path, images(), suite("4/255"), 3) is None


def evaluated(
    tree: Path, folder: Path, config: EvaluationConfig, reporter: Listening
) -> dict[str, Any]:
    source = folder / "mine.py"
    source.write_text(BRIGHT)
    patchguard.evaluate(
        f"{source}:make", tree, out=folder / "out", evaluation=config, reporter=reporter
    )
    found: dict[str, Any] = json.loads((folder / "out/metrics.json").read_text())
    return found


@pytest.mark.usefixtures("few_checks")
def test_an_evaluation_goes_on_with_the_images_that_it_was_begun_with(
    tree: Path, tmp_path: Path, tiny_evaluation: EvaluationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, reporter = replace(tiny_evaluation, minutes=1.0), Listening()
    threads = torch.get_num_threads()
    each = 60 * threads / (1.3 * passes_of(load_suite(config.suite)) * 6.5)
    monkeypatch.setattr(budget, "seconds_per_pass", lambda *_: each)
    found = evaluated(tree, tmp_path, config, reporter)
    assert found["protocol"]["images"] == {"normal": 3, "anomalous": 3}
    told = [line for line in reporter.told if "test images are attacked" in line]
    assert len(told) == 1 and told[0].startswith("6 of 12 test images are attacked")
    # On a slower day: as many.
    monkeypatch.setattr(budget, "seconds_per_pass", lambda *_: 100 * each)
    again = evaluated(tree, tmp_path, config, reporter)
    assert again["protocol"]["images"] == found["protocol"]["images"]
    # Other minutes are another evaluation.
    fewer = evaluated(tree, tmp_path, replace(config, minutes=0.5), reporter)
    assert fewer["protocol"]["images"] == {"normal": 1, "anomalous": 1}


@pytest.mark.usefixtures("few_checks")
def test_a_number_of_images_goes_before_minutes(
    tree: Path, tmp_path: Path, tiny_evaluation: EvaluationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "seconds_per_pass", lambda *_: 1e9)
    config = replace(tiny_evaluation, images=4, minutes=1.0)
    found = evaluated(tree, tmp_path, config, Listening())
    assert found["protocol"]["images"] == {"normal": 2, "anomalous": 2}
