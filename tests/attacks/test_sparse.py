from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.attack import Attack, at_image
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.sparse import L0_BALL, PGDL0, SigmaZero, changed_pixels

LABELS = torch.tensor([True, False, True, False])
MASKS = torch.zeros(4, 8, 8)
PIXELS = [1, 5, 20]

Make = Callable[[], Attack]
ATTACKS: dict[str, Make] = {
    "pgd": lambda: PGDL0(image_score, steps=20),
    "sigma-zero": lambda: SigmaZero(image_score, steps=40),
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


def gains(linear: Linear, images: Tensor) -> Tensor:
    """What each pixel [B, H, W] can add to the true value."""
    uphill = torch.where(LABELS[:, None, None, None], -1, 1) * linear.weight.detach()
    return torch.where(uphill > 0, uphill * (1 - images), -uphill * images).sum(1)


def most(linear: Linear, images: Tensor, pixels: int) -> Tensor:
    """Largest gain [B] with this many pixels of any colour."""
    return gains(linear, images).flatten(1).topk(pixels).values.sum(1)


def gained(detector: Linear, attacked: Tensor, images: Tensor) -> Tensor:
    moved = detector(attacked).score - detector(images).score
    return torch.where(LABELS, -moved, moved).detach()


def test_pgd_reaches_the_best_pixels_of_a_linear_detector(linear: Linear, images: Tensor) -> None:
    for starts in (None, [at_image]):
        attack = PGDL0(image_score, steps=3, starts=starts)
        swept = attack(linear, images, LABELS, MASKS, eps=PIXELS)
        for pixels, attacked in zip(PIXELS, swept, strict=True):
            torch.testing.assert_close(
                gained(linear, attacked, images),
                most(linear, images, pixels),
                atol=1e-4,
                rtol=0,
            )


def test_sigma_zero_comes_near_the_best_pixels_of_a_linear_detector(
    linear: Linear, images: Tensor
) -> None:
    for pixels in PIXELS[1:]:
        attack = SigmaZero(image_score, steps=100)
        (attacked,) = attack(linear, images, LABELS, MASKS, eps=[pixels])
        share = gained(linear, attacked, images) / most(linear, images, pixels)
        assert (share > 0.9).all()
        assert (share <= 1 + 1e-5).all()


class Curved(Linear):
    """A score whose gradient at the image points to the wrong pixels."""

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]
        plain = super().forward(images)
        return plain._replace(score=torch.sin(plain.anomaly_map).sum((1, 2)))


@each
def test_keeps_the_budget_and_the_box_and_never_falls(make: Make, images: Tensor) -> None:
    curved = Curved(3 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2)))
    generator = torch.Generator().manual_seed(0)
    swept = make()(curved, images, LABELS, MASKS, eps=PIXELS, generator=generator)
    before = torch.zeros(4)
    for pixels, attacked in zip(PIXELS, swept, strict=True):
        assert (changed_pixels(attacked - images) <= pixels).all()
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        value = gained(curved, attacked, images)
        assert (value >= before).all()
        before = value
    assert (before > 0).all()


def test_later_steps_improve_on_the_linear_guess(images: Tensor) -> None:
    curved = Curved(3 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2)))
    guess, climbed = (
        PGDL0(image_score, steps=steps, starts=[at_image])(curved, images, LABELS, MASKS, eps=[10])[
            0
        ]
        for steps in (1, 50)
    )
    assert (gained(curved, climbed, images) > 1.2 * gained(curved, guess, images)).all()


def test_the_projection_is_the_nearest_image_with_so_few_changes() -> None:
    images = torch.full((1, 3, 1, 3), 0.5)
    # Past the box the second pixel is further away, but keeping it saves less.
    moved = images + torch.tensor([[0.4, 0.5, 0.1], [0.4, 0.0, 0.0], [0.4, 0.0, 0.0]])[:, None]
    nearest = L0_BALL.project(moved, images, 1)
    torch.testing.assert_close(nearest[..., 0], moved[..., 0])
    assert torch.equal(nearest[..., 1:], images[..., 1:])
    everything = L0_BALL.project(moved, images, 1000)
    torch.testing.assert_close(everything, moved.clamp(0, 1))


def test_the_ball_counts_pixels_not_values() -> None:
    change = torch.zeros(2, 3, 4, 4)
    change[0, :, 1, 2] = 0.1
    change[1, 0, 0, 0] = change[1, 2, 3, 3] = -0.5
    assert L0_BALL.size(change).tolist() == [1, 2]
    images = torch.rand(2, 3, 4, 4)
    drawn = L0_BALL.random(images, 5, torch.Generator().manual_seed(0))
    assert L0_BALL.size(drawn - images).tolist() == [5, 5]
    step = L0_BALL.step(
        torch.randn(2, 3, 4, 4), images, torch.tensor([2.0, 3.0])[:, None, None, None]
    )
    assert L0_BALL.size(step).tolist() == [2, 3]


def test_plain_pgd_runs_in_the_ball_too(linear: Linear, images: Tensor) -> None:
    attack = PGD(image_score, ball=L0_BALL, starts=[at_image], steps=1)
    (attacked,) = attack(linear, images, LABELS, MASKS, eps=[5])
    torch.testing.assert_close(gained(linear, attacked, images), most(linear, images, 5))
