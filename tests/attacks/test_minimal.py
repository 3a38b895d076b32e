import math

import pytest
import torch
from adv_lib.attacks.fast_adaptive_boundary import fab
from torch import Tensor, nn

from attack_batch import LABELS, generator
from detectors import Linear
from patchguard.attacks.balls import BALLS
from patchguard.attacks.minimal import MinimalEps
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.detector import Detection, Detector

NORM = pytest.mark.parametrize("norm", BALLS)


class Curved(Detector):
    """A smooth score that is far from linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(8, 1, 3, padding=1),
        )
        for parameter in self.parameters():
            parameter.data *= 2

    def forward(self, images: Tensor) -> Detection:
        maps = self.layers(4 * images - 2)[:, 0]
        return Detection(maps.flatten(1).logsumexp(1), maps)


def closed_form(linear: Linear, image: Tensor, label: bool, threshold: float, norm: str) -> float:
    """By bisection on the closed-form worst score."""
    low, high = 0.0, 200.0
    for _ in range(30):
        eps = (low + high) / 2
        if label:
            crossed = float(linear.lowest_score(image[None], eps, norm)) <= threshold
        else:
            crossed = float(linear.highest_score(image[None], eps, norm)) > threshold
        low, high = (low, eps) if crossed else (eps, high)
    return high if high < 200 else math.inf


@NORM
@pytest.mark.parametrize("threshold", [-5.0, 0.5, 20.0, 200.0])
def test_equals_the_closed_form_on_a_linear_detector(
    linear: Linear, images: Tensor, norm: str, threshold: float
) -> None:
    attack = MinimalEps(ball=BALLS[norm], steps=3)
    eps, _ = attack(linear, images, LABELS, threshold=threshold)
    expected = [
        closed_form(linear, image, bool(label), threshold, norm)
        for image, label in zip(images, LABELS, strict=True)
    ]
    torch.testing.assert_close(eps, torch.tensor(expected), rtol=1e-4, atol=1e-6)


@NORM
def test_the_images_have_crossed_and_lie_at_that_distance(images: Tensor, norm: str) -> None:
    detector, ball = Curved().eval(), BALLS[norm]
    threshold = float(detector(images).score.detach().median())
    attack = MinimalEps(ball=ball, steps=10, restarts=2)
    eps, crossed = attack(detector, images, LABELS, threshold=threshold, generator=generator())
    alarm = detector(crossed).score > threshold
    assert eps.isfinite().all()
    assert (alarm != LABELS).all()
    assert crossed.min() >= 0
    assert crossed.max() <= 1
    torch.testing.assert_close(ball.size(crossed - images), eps)
    wrong = (detector(images).score > threshold) != LABELS
    assert torch.equal(eps == 0, wrong)


@NORM
def test_no_attack_crosses_well_inside_the_minimal_eps(images: Tensor, norm: str) -> None:
    detector = Curved().eval().requires_grad_(False)
    threshold = float(detector(images).score.detach().mean())
    attack = MinimalEps(ball=BALLS[norm], steps=30)
    eps, _ = attack(detector, images, LABELS, threshold=threshold)
    for index in eps.nonzero().flatten().tolist():
        one = slice(index, index + 1)
        strong = PGD(image_score, ball=BALLS[norm], steps=100)
        (attacked,) = strong(
            detector,
            images[one],
            LABELS[one],
            torch.zeros(1, 8, 8),
            eps=[0.93 * float(eps[index])],
            generator=generator(),
        )
        assert (detector(attacked).score > threshold) == LABELS[one]


@NORM
def test_no_larger_than_adv_libs_fab_on_the_same_two_logits(images: Tensor, norm: str) -> None:
    detector = Curved().eval().requires_grad_(False)
    normal = torch.zeros(len(images), dtype=torch.long)
    threshold = float(detector(images).score.max()) + 0.5

    class TwoLogits(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = detector(images).score
            return torch.stack([torch.full_like(score, threshold), score], 1)

    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    theirs = fab(TwoLogits(), images, normal, order, n_iter=30)
    size = BALLS[norm].size(theirs - images)
    assert (detector(theirs).score >= threshold - 1e-5).all()
    attack = MinimalEps(ball=BALLS[norm], steps=30)
    ours, _ = attack(detector, images, normal.bool(), threshold=threshold)
    assert (ours <= 1.001 * size).all()


def test_more_restarts_are_never_worse(images: Tensor) -> None:
    detector = Curved().eval().requires_grad_(False)
    threshold = float(detector(images).score.detach().mean())
    once, often = (
        MinimalEps(steps=5, restarts=restarts)(
            detector, images, LABELS, threshold=threshold, generator=generator()
        )[0]
        for restarts in (1, 3)
    )
    assert (often <= once * (1 + 1e-3)).all()


def test_never_crossed_is_infinity_and_the_image_itself(linear: Linear, images: Tensor) -> None:
    eps, crossed = MinimalEps(steps=3, restarts=2)(
        linear, images, torch.zeros(6, dtype=torch.bool), threshold=1e6, generator=generator()
    )
    assert eps.isinf().all()
    assert torch.equal(crossed, images)
