from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attack_batch import LABELS, MASKS, generator, random_linear
from detectors import Linear
from patchguard.attacks.attack import Problem, Start
from patchguard.attacks.balls import BALLS
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.starts import ODI, STARTS, decontraster
from patchguard.detector import Inspection

START = pytest.mark.parametrize("start", [make() for make in STARTS.values()], ids=STARTS)
NORM = pytest.mark.parametrize("norm", BALLS)


class Patches(Linear):
    """A linear detector with the logits of 2 x 2 patches."""

    def inspect(self, images: Tensor) -> Inspection:
        score, anomaly_map = self(images)
        logits = torch.nn.functional.avg_pool2d(anomaly_map[:, None], 4)[:, 0]
        return Inspection(score, anomaly_map, logits)


def problem_of(detector: Linear, seed: int = 0) -> Problem:
    images = torch.rand(6, 3, 8, 8, generator=generator(1))
    return Problem(detector, images, LABELS, MASKS, image_score, image_score, generator(seed))


@pytest.fixture(params=[Linear, Patches], ids=["map", "patch-logits"])
def problem(request: pytest.FixtureRequest) -> Problem:
    return problem_of(request.param(random_linear().weight.detach()))


@START
@NORM
def test_starts_lie_in_the_ball_and_the_box(problem: Problem, start: Start, norm: str) -> None:
    attack = PGD(image_score, ball=BALLS[norm])
    point = start(attack, problem, 0.1)
    again = replace(problem, generator=generator())
    assert (attack.ball.size(point - problem.images) <= 0.1 * (1 + 1e-6)).all()
    assert point.min() >= 0
    assert point.max() <= 1
    assert torch.equal(point, start(attack, again, 0.1))


def patch_change(start: Start, seed: int) -> Tensor:
    """Change of the mean map in each quarter of the images [B, 4]."""
    problem = problem_of(Patches(random_linear().weight.detach()), seed)
    point = start(PGD(image_score), problem, 0.05)
    maps = problem.detector(point).anomaly_map - problem.detector(problem.images).anomaly_map
    return torch.nn.functional.avg_pool2d(maps.detach(), 4).flatten(1)


def test_odi_moves_the_patch_logits_further_than_noise_does() -> None:
    diverse = patch_change(ODI(), 2).abs().mean()
    assert diverse > 3 * patch_change(STARTS["uniform"](), 2).abs().mean()


def test_odi_takes_another_direction_for_each_image_and_draw() -> None:
    ways = [patch_change(ODI(), seed).sign() for seed in (2, 3)]
    assert len({tuple(way.tolist()) for way in ways[0]}) > 1
    assert not torch.equal(*ways)


def test_odi_costs_as_many_gradients_as_steps(problem: Problem) -> None:
    passes = []
    problem.detector.register_forward_pre_hook(lambda *_: passes.append(1))
    ODI(steps=3)(PGD(image_score), problem, 0.1)
    assert len(passes) == 3


def test_decontraster_flattens_the_image(problem: Problem) -> None:
    attack = PGD(image_score)
    flat = decontraster(attack, problem, 1.0)
    mean = problem.images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(flat, mean.expand_as(flat))
    nearer = decontraster(attack, problem, 0.1)
    expected = problem.images + (mean - problem.images).clamp(-0.1, 0.1)
    torch.testing.assert_close(nearer, expected)
