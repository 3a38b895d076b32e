from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attack_batch import attacked, gained, most, random_linear
from detectors import Linear
from patchguard.attacks.attack import Attack
from patchguard.attacks.objectives import image_score
from patchguard.attacks.queries import NES, RandomNoise, SimBA

EPS = 4 / 255

Make = Callable[[], Attack]
ATTACKS: dict[str, Make] = {
    "simba pixel": lambda: SimBA(image_score, basis="pixel", queries=100),
    "simba dct": lambda: SimBA(image_score, basis="dct", queries=100),
    "nes": lambda: NES(image_score, steps=10, samples=40, sigma=0.02),
    "noise": lambda: RandomNoise(image_score, draws=20),
}
each = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)


def reached(linear: Linear, found: Tensor, images: Tensor, eps: float) -> Tensor:
    """The gain as a fraction of the largest there is."""
    return gained(linear, found, images) / most(linear, images, eps)


class Rounded(Linear):
    """A score in steps, of images at 8 bits, without a gradient; refuses what is no image."""

    def forward(self, images: Tensor):
        assert images.min() >= 0
        assert images.max() <= 1
        detection = super().forward((images * 255).round() / 255)
        return detection._replace(score=detection.score.detach())


@each
def test_improves_every_image_up_to_the_closed_form(
    make: Make, linear: Linear, images: Tensor
) -> None:
    for eps in (EPS, 4 * EPS):
        share = reached(linear, attacked(make(), linear, images, eps), images, eps)
        assert (share > 0).all()
        assert (share <= 1 + 1e-4).all()


@each
def test_works_without_gradients(make: Make, images: Tensor) -> None:
    rounded = Rounded(random_linear().weight.detach())
    found = attacked(make(), rounded, images, 8 / 255)
    assert (reached(rounded, found, images, 8 / 255) > 0.05).all()


def test_simba_over_all_pixels_reaches_the_closed_form(linear: Linear, images: Tensor) -> None:
    attack = SimBA(image_score, basis="pixel", queries=1 + 2 * 3 * 8 * 8)
    found = attacked(attack, linear, images, EPS)
    torch.testing.assert_close(
        gained(linear, found, images), most(linear, images, EPS), atol=1e-4, rtol=0
    )


def test_simba_finds_a_smooth_worst_case_among_few_frequencies(images: Tensor) -> None:
    smooth = Linear(torch.cos(torch.pi / 8 * (torch.arange(8) + 0.5)).expand(3, 8, 8))
    attack = SimBA(image_score, basis="dct", frequencies=2, step=1.0, queries=25)
    inner = images.clamp(0.1, 0.9)
    assert (reached(smooth, attacked(attack, smooth, inner, EPS), inner, EPS) > 0.5).all()


def test_nes_comes_near_the_closed_form(linear: Linear, images: Tensor) -> None:
    attack = NES(image_score, steps=100, samples=50)
    found = attacked(attack, linear, images, EPS)
    assert (reached(linear, found, images, EPS) > 0.85).all()


def test_nes_estimates_the_gradient_of_a_step_function_with_a_large_sigma(images: Tensor) -> None:
    rounded = Rounded(random_linear().weight.detach())
    attack = NES(image_score, steps=20, samples=40, sigma=0.02)
    found = attacked(attack, rounded, images, 8 / 255)
    assert (reached(rounded, found, images, 8 / 255) > 0.5).all()


def test_noise_draws_corners_too(images: Tensor) -> None:
    ones, grey = Linear(torch.ones(3, 8, 8)), torch.full_like(images, 0.5)
    found = attacked(RandomNoise(image_score, draws=200), ones, grey, EPS)
    at_corner = (found - grey).abs().flatten(1).amin(1) > EPS * (1 - 1e-5)
    assert at_corner.sum() >= 5
