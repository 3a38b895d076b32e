from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.attack import Attack
from patchguard.attacks.objectives import image_score
from patchguard.attacks.queries import NES, RandomNoise, SimBA
from patchguard.errors import PatchGuardError

LABELS = torch.tensor([True, False, True, False])
MASKS = torch.zeros(4, 8, 8)
EPS = 4 / 255

Make = Callable[[], Attack]
ATTACKS: dict[str, Make] = {
    "simba pixel": lambda: SimBA(image_score, basis="pixel", queries=100),
    "simba dct": lambda: SimBA(image_score, basis="dct", queries=100),
    "nes": lambda: NES(image_score, steps=10, samples=40, sigma=0.02),
    "noise": lambda: RandomNoise(image_score, draws=20),
}
each = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)


@pytest.fixture
def linear() -> Linear:
    return Linear(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def images() -> Tensor:
    """Some pixels on the box."""
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images[:, :, 0] = 0.0
    images[:, :, 1] = 1.0
    return images


def reached(linear: Linear, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
    """Change of the score as a fraction of the largest there is, towards each image's worst."""
    clean = linear(images).score
    moved = linear(attacked).score - clean
    lowest = linear.lowest_score(images, eps) - clean
    highest = linear.highest_score(images, eps) - clean
    return torch.where(LABELS, moved / lowest, moved / highest)


class Rounded(Linear):
    """A score in steps, of images at 8 bits, without a gradient; refuses what is no image."""

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]
        assert images.min() >= 0
        assert images.max() <= 1
        detection = super().forward((images * 255).round() / 255)
        return detection._replace(score=detection.score.detach())


@each
def test_improves_every_image_and_stays_in_the_ball_and_the_box(
    make: Make, linear: Linear, images: Tensor
) -> None:
    sweep = [EPS, 4 * EPS]
    generator = torch.Generator().manual_seed(0)
    swept = make()(linear, images, LABELS, MASKS, eps=sweep, generator=generator)
    for eps, attacked in zip(sweep, swept, strict=True):
        share = reached(linear, attacked, images, eps)
        assert (share > 0).all()
        assert (share <= 1 + 1e-4).all()
        assert (attacked - images).abs().max() <= eps * (1 + 1e-6)
        assert attacked.min() >= 0
        assert attacked.max() <= 1


@each
def test_is_deterministic_in_its_generator(make: Make, linear: Linear, images: Tensor) -> None:
    first, second, other = (
        make()(
            linear,
            images,
            LABELS,
            MASKS,
            eps=[EPS],
            generator=torch.Generator().manual_seed(seed),
        )[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@each
def test_works_without_gradients(make: Make, images: Tensor) -> None:
    rounded = Rounded(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(0)
    (attacked,) = make()(rounded, images, LABELS, MASKS, eps=[8 / 255], generator=generator)
    assert (reached(rounded, attacked, images, 8 / 255) > 0.05).all()


def test_simba_over_all_pixels_reaches_the_closed_form(linear: Linear, images: Tensor) -> None:
    attack = SimBA(image_score, basis="pixel", queries=1 + 2 * 3 * 8 * 8)
    (attacked,) = attack(linear, images, LABELS, MASKS, eps=[EPS])
    torch.testing.assert_close(
        reached(linear, attacked, images, EPS), torch.ones(4), atol=1e-4, rtol=0
    )


def test_simba_finds_a_smooth_worst_case_among_few_frequencies(images: Tensor) -> None:
    smooth = Linear(torch.cos(torch.pi / 8 * (torch.arange(8) + 0.5)).expand(3, 8, 8))
    attack = SimBA(image_score, basis="dct", frequencies=2, step=1.0, queries=25)
    (attacked,) = attack(smooth, images.clamp(0.1, 0.9), LABELS, MASKS, eps=[EPS])
    assert (reached(smooth, attacked, images.clamp(0.1, 0.9), EPS) > 0.5).all()


def test_nes_comes_near_the_closed_form(linear: Linear, images: Tensor) -> None:
    attack = NES(image_score, steps=100, samples=50)
    (attacked,) = attack(linear, images, LABELS, MASKS, eps=[EPS])
    assert (reached(linear, attacked, images, EPS) > 0.85).all()


def test_nes_estimates_the_gradient_of_a_step_function_with_a_large_sigma(images: Tensor) -> None:
    rounded = Rounded(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))
    attack = NES(image_score, steps=20, samples=40, sigma=0.02)
    (attacked,) = attack(rounded, images, LABELS, MASKS, eps=[8 / 255])
    assert (reached(rounded, attacked, images, 8 / 255) > 0.5).all()


@pytest.mark.parametrize("samples", [0, 1, 5])
def test_nes_needs_pairs_of_samples(samples: int) -> None:
    with pytest.raises(PatchGuardError, match="even"):
        NES(image_score, samples=samples)


def test_noise_draws_corners_too(images: Tensor) -> None:
    ones = Linear(torch.ones(3, 8, 8))
    grey = torch.full_like(images, 0.5)
    attack = RandomNoise(image_score, draws=200)
    generator = torch.Generator().manual_seed(0)
    (attacked,) = attack(ones, grey, LABELS, MASKS, eps=[EPS], generator=generator)
    torch.testing.assert_close((attacked - grey).abs().flatten(1).amin(1), torch.full((4,), EPS))
