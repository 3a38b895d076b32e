import pytest
import torch
from torch import Tensor

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


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem_of(detector: Linear) -> Problem:
    images = torch.rand(4, 3, 8, 8, generator=generator(1))
    labels = torch.tensor([True, False] * 2)
    masks = torch.zeros(4, 8, 8)
    return Problem(detector, images, labels, masks, image_score, image_score)


@pytest.fixture(params=[Linear, Patches], ids=["map", "patch-logits"])
def problem(request: pytest.FixtureRequest) -> Problem:
    return problem_of(request.param(torch.randn(3, 8, 8, generator=generator())))


@START
@NORM
def test_starts_lie_in_the_ball_and_the_box(problem: Problem, start: Start, norm: str) -> None:
    attack = PGD(image_score, ball=BALLS[norm])
    point = start(attack, problem, 0.1, generator())
    assert (attack.ball.size(point - problem.images) <= 0.1 * (1 + 1e-6)).all()
    assert point.min() >= 0
    assert point.max() <= 1
    assert torch.equal(point, start(attack, problem, 0.1, generator()))


def patch_change(problem: Problem, start: Start, seed: int) -> Tensor:
    """Change of the mean map in each quarter of the images [B, 4]."""
    point = start(PGD(image_score), problem, 0.05, generator(seed))
    maps = problem.detector(point).anomaly_map - problem.detector(problem.images).anomaly_map
    return torch.nn.functional.avg_pool2d(maps.detach(), 4).flatten(1)


def test_odi_moves_the_patch_logits_further_than_noise_does() -> None:
    problem = problem_of(Patches(torch.randn(3, 8, 8, generator=generator())))
    diverse = patch_change(problem, ODI(), 2).abs().mean()
    assert diverse > 3 * patch_change(problem, STARTS["uniform"](), 2).abs().mean()


def test_odi_takes_another_direction_for_each_image_and_draw() -> None:
    problem = problem_of(Patches(torch.randn(3, 8, 8, generator=generator())))
    ways = [patch_change(problem, ODI(), seed).sign() for seed in (2, 3)]
    assert len({tuple(way.tolist()) for way in ways[0]}) > 1
    assert not torch.equal(*ways)


def test_odi_costs_as_many_gradients_as_steps(problem: Problem) -> None:
    passes = []
    problem.detector.register_forward_pre_hook(lambda *_: passes.append(1))
    ODI(steps=3)(PGD(image_score), problem, 0.1, generator())
    assert len(passes) == 3


def test_decontraster_flattens_the_image(problem: Problem) -> None:
    attack = PGD(image_score)
    flat = decontraster(attack, problem, 1.0, None)
    mean = problem.images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(flat, mean.expand_as(flat))
    nearer = decontraster(attack, problem, 0.1, None)
    expected = problem.images + (mean - problem.images).clamp(-0.1, 0.1)
    torch.testing.assert_close(nearer, expected)
