import torch
from torch import Tensor

from attack_batch import LABELS, MASKS, attacked, gained, gains, random_linear
from detectors import Linear, Ripples
from patchguard.attacks.attack import at_image, uniform
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.sparse import L0_BALL, PGDL0, SigmaZero

PIXELS = [1, 5, 20]


def best_pixels(linear: Linear, images: Tensor, pixels: int) -> Tensor:
    """Largest gain [B] with this many pixels of any colour."""
    return gains(linear, images).flatten(1).topk(pixels).values.sum(1)


def test_pgd_reaches_the_best_pixels_of_a_linear_detector(linear: Linear, images: Tensor) -> None:
    for start in (uniform, at_image):
        attack = PGDL0(image_score, steps=3, starts=[start])
        swept = attack(linear, images, LABELS, MASKS, eps=PIXELS)
        for pixels, found in zip(PIXELS, swept, strict=True):
            best = best_pixels(linear, images, pixels)
            torch.testing.assert_close(gained(linear, found, images), best, atol=1e-4, rtol=0)


def test_sigma_zero_comes_near_the_best_pixels_of_a_linear_detector(
    linear: Linear, images: Tensor
) -> None:
    for pixels in PIXELS[1:]:
        found = attacked(SigmaZero(image_score, steps=100), linear, images, pixels)
        share = gained(linear, found, images) / best_pixels(linear, images, pixels)
        assert (share > 0.9).all()
        assert (share <= 1 + 1e-5).all()


def test_later_steps_improve_on_the_linear_guess(images: Tensor) -> None:
    ripples = Ripples(3 * random_linear(seed=2).weight.detach())
    guess, climbed = (
        gained(
            ripples,
            attacked(PGDL0(image_score, steps=steps, starts=[at_image]), ripples, images, 10),
            images,
        )
        for steps in (1, 50)
    )
    assert (climbed > 1.2 * guess).all()


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
    found = attacked(attack, linear, images, 5)
    torch.testing.assert_close(gained(linear, found, images), best_pixels(linear, images, 5))
