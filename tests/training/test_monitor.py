"""Catastrophic overfitting: seen where it is, not where it is not, and acted upon."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.attack import Attack, at_image
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import NFGSM, PGD
from patchguard.config import InnerAttackConfig
from patchguard.detector import Detection, Detector
from patchguard.errors import Interrupted
from patchguard.runtime import Runtime
from patchguard.stopping import signals_stop
from patchguard.training import loop
from patchguard.training.batches import Batch
from patchguard.training.module import AdversarialTraining, Measured
from patchguard.training.monitor import Reading, look
from patchguard.training.train import train
from trainings import MODEL, Listening, dataset, settings

EPS = 8 / 255


class Bent(Detector):
    """What a network that overfits to a single step of eps does: it is flat at its end."""

    def forward(self, images: Tensor) -> Detection:
        turns = (images.mean((1, 2, 3)) - 0.5) / EPS
        score = 1.1 - torch.cos(2 * torch.pi * turns)
        return Detection(score, score[:, None, None].expand(-1, *images.shape[2:]))


def reading(detector: Detector, images: Tensor) -> Reading:
    count, _, height, width = images.shape
    normal = torch.zeros(count, dtype=torch.bool)
    single: Attack = PGD(image_score, steps=1, step_size=1.0, starts=[at_image], keep_best=False)
    batch = (images, normal, torch.zeros(count, height, width))
    generator = torch.Generator().manual_seed(0)
    return look(detector, single, image_score, batch, EPS, generator)


def test_a_loss_bent_so_that_one_step_finds_nothing_is_seen() -> None:
    found = reading(Bent(), torch.full((3, 3, 8, 8), 0.5 + 0.1 * EPS))
    assert found.gap > 5
    assert found.overfits


def test_a_linear_detector_is_no_suspect() -> None:
    detector = Linear(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)))
    found = reading(detector, torch.full((3, 3, 8, 8), 0.5))
    assert found.gap == pytest.approx(1, abs=1e-3)
    assert found.cosine == pytest.approx(1)
    assert not found.overfits


class Steep(Detector):
    """Near the image there is next to nothing to find, at the end of the ball all at once."""

    def forward(self, images: Tensor) -> Detection:
        score = 10 * ((images.mean((1, 2, 3)) - 0.5) / EPS) ** 4
        return Detection(score, score[:, None, None].expand(-1, *images.shape[2:]))


def seen_by_nfgsm(detector: Detector, images: Tensor) -> Reading:
    count, _, height, width = images.shape
    noisy = NFGSM(image_score, steps=1, step_size=1.0, start=2.0, keep_best=False)
    normal = torch.zeros(count, dtype=torch.bool)
    batch = (images, normal, torch.zeros(count, height, width))
    return look(detector, noisy, image_score, batch, EPS, torch.Generator().manual_seed(0))


def test_what_a_single_step_finds_outside_the_ball_does_not_count() -> None:
    found = seen_by_nfgsm(Steep(), torch.full((3, 3, 16, 16), 0.5))
    assert found.found == pytest.approx(10, rel=0.01)
    assert found.trained < 0.2 * found.found
    assert found.overfits


def test_an_honest_loss_grows_half_as_much_under_projected_n_fgsm() -> None:
    detector = Linear(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)))
    images = torch.full((3, 3, 16, 16), 0.5)
    clean = float(detector(images).score.detach().mean())
    found = seen_by_nfgsm(detector, images)
    assert (found.trained - clean) / (found.found - clean) == pytest.approx(0.5, abs=0.1)
    assert not found.overfits


def looks(monkeypatch: pytest.MonkeyPatch, gap: float) -> list[int]:
    """Replaces what a look finds; returns a list that grows with each look."""
    seen: list[int] = []

    def found(*_: Any) -> Reading:
        seen.append(len(seen))
        return Reading(found=gap, trained=1.0, cosine=0.0)

    monkeypatch.setattr(loop, "look", found)
    return seen


def test_single_step_training_becomes_pgd_2_where_it_overfits_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = looks(monkeypatch, gap=3.0)
    steps: list[int] = []
    attacked = AdversarialTraining.attacked

    def counted(self: AdversarialTraining, *arguments: Any) -> Tensor:
        steps.append(self.attack.steps)
        return attacked(self, *arguments)

    monkeypatch.setattr(AdversarialTraining, "attacked", counted)
    reporter = Listening()
    runtime = Runtime.on("cpu", reporter)
    config = settings(attack=InnerAttackConfig(ramp=0.0, monitor=2))
    done = train(dataset(), MODEL, config, seed=0, folder=tmp_path, runtime=runtime)
    assert done.switched_at == 2
    assert len(seen) == 1
    assert steps == [1, 1, 2, 2, 2, 2]
    assert "step 2" in reporter.told[0]
    assert "PGD-2" in reporter.told[0]
    again = train(dataset(), MODEL, config, seed=0, folder=tmp_path, runtime=runtime)
    assert again.switched_at == 2


def test_a_run_that_switched_and_was_interrupted_goes_on_with_pgd_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looks(monkeypatch, gap=3.0)
    config = settings(attack=InnerAttackConfig(ramp=0.0, monitor=2))
    forward = AdversarialTraining.forward
    steps: list[tuple[int, int]] = []

    def stopped(self: AdversarialTraining, batch: Batch) -> tuple[Tensor, Measured]:
        steps.append((self.step, self.attack.steps))
        if len(steps) == 4:
            signal.raise_signal(signal.SIGINT)
        return forward(self, batch)

    monkeypatch.setattr(AdversarialTraining, "forward", stopped)
    with signals_stop(), pytest.raises(Interrupted):
        train(dataset(), MODEL, config, seed=0, folder=tmp_path)
    train(dataset(), MODEL, config, seed=0, folder=tmp_path)
    assert steps == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]


def test_honest_single_step_training_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = looks(monkeypatch, gap=1.2)
    config = settings(attack=InnerAttackConfig(ramp=0.0, monitor=2))
    reporter = Listening()
    runtime = Runtime.on("cpu", reporter)
    done = train(dataset(), MODEL, config, seed=0, folder=tmp_path, runtime=runtime)
    assert done.switched_at is None
    assert not reporter.told
    assert len(seen) == 3


def test_looking_changes_nothing_in_the_training(tmp_path: Path) -> None:
    watched, alone = (
        train(
            dataset(),
            MODEL,
            settings(attack=InnerAttackConfig(ramp=0.0, monitor=every)),
            seed=0,
            folder=tmp_path / str(every),
        ).detector
        for every in (2, 0)
    )
    for first, second in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(first, second)
