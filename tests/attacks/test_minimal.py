import math

import pytest
import torch
from torch import Tensor

from attack_batch import LABELS, generator
from detectors import Curved, Linear
from patchguard.attacks.balls import BALLS
from patchguard.attacks.minimal import MinimalEps
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD

NORM = pytest.mark.parametrize("norm", BALLS)


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
