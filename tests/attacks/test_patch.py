from typing import Any

import pytest
import torch
from torch import Tensor

from attack_batch import LABELS, attacked, gained, gains, random_images, random_linear
from detectors import Linear, Ripples
from patchguard.attacks.attack import Attack, Problem, at_image
from patchguard.attacks.objectives import image_score
from patchguard.attacks.patch import PATCH_BALL, LocalPatch
from patchguard.detector import Inspection

MASKS = torch.zeros(6, 12, 10)
SIDES = [2, 3, 5]
EPS = [side**2 / 120 for side in SIDES]


@pytest.fixture
def linear() -> Linear:
    return random_linear(12, 10)


@pytest.fixture
def images() -> Tensor:
    return random_images(12, 10)


def best_square(linear: Linear, images: Tensor, side: int) -> Tensor:
    """Largest gain [B] with a square of this side, by trying every place."""
    places = gains(linear, images).unfold(1, side, 1).unfold(2, side, 1)
    return places.sum((3, 4)).flatten(1).amax(1)


def test_finds_the_best_place_and_content_on_a_linear_detector(
    linear: Linear, images: Tensor
) -> None:
    attack = LocalPatch(image_score, steps=2, probes=1)
    swept = attack(linear, images, LABELS, MASKS, eps=EPS)
    for side, found in zip(SIDES, swept, strict=True):
        best = best_square(linear, images, side)
        torch.testing.assert_close(gained(linear, found, images), best, atol=1e-4, rtol=0)


def test_more_candidates_and_steps_are_stronger_where_the_gradient_misleads(
    images: Tensor,
) -> None:
    ripples = Ripples(3 * random_linear(12, 10, seed=2).weight.detach())

    def strength(**settings: Any) -> float:
        found = attacked(LocalPatch(image_score, **settings), ripples, images, EPS[1])
        return float(gained(ripples, found, images).mean())

    weak = strength(places=1, random_places=0, probes=1, steps=1)
    assert strength() > 1.1 * weak


def test_a_start_grows_to_where_there_is_most_to_gain() -> None:
    """Of the squares around the one pixel that the start changes, the one with the most weight."""
    weight = torch.zeros(3, 12, 10)
    weight[:, 5, 4:7] = weight[:, 4:7, 6] = 1
    weight[:, 10, 9] = 100
    grey = torch.full((6, 3, 12, 10), 0.5)

    def pixel(attack: Attack, problem: Problem, eps: float) -> Tensor:
        start = grey.clone()
        start[:, :, 5, 4] = torch.where(LABELS, 0.4, 0.6)[:, None]
        return start

    attack = LocalPatch(image_score, starts=[pixel], places=0, random_places=0, probes=1, steps=10)
    found = attacked(attack, Linear(weight), grey, 9 / 120)
    expected = torch.zeros(6, 12, 10, dtype=torch.bool)
    expected[:, 4:7, 4:7] = weight.sum(0)[4:7, 4:7] > 0
    assert torch.equal((found != grey).any(1), expected)


def test_a_start_that_changes_nothing_is_no_candidate(linear: Linear, images: Tensor) -> None:
    steps = []

    def objective(seen: Inspection, labels: Tensor, masks: Tensor, progress: float) -> Tensor:
        steps.append(progress)
        return image_score(seen, labels, masks)

    attack = LocalPatch(
        objective,
        judge=image_score,
        starts=[at_image],
        places=1,
        random_places=0,
        probes=1,
        steps=2,
    )
    found = attacked(attack, linear, images, EPS[0])
    assert steps == [0, 0, 0, 0.5]  # at the image, at the one place, and to the end
    assert (gained(linear, found, images) > 0).all()


def test_the_projection_keeps_the_square_that_changed_most() -> None:
    images = torch.full((1, 3, 6, 6), 0.5)
    moved = images.clone()
    moved[:, :, 0, 0] = 0.9
    moved[:, :, 3:5, 2:4] = 0.8
    nearest = PATCH_BALL.project(moved, images, 4 / 36)
    expected = images.clone()
    expected[:, :, 3:5, 2:4] = 0.8
    assert torch.equal(nearest, expected)
    assert torch.equal(PATCH_BALL.project(moved, images, 1.0), moved)
    assert torch.equal(PATCH_BALL.project(moved, images, 0.0), images)


def test_the_size_is_the_area_of_the_square_around_all_that_changes() -> None:
    change = torch.zeros(3, 3, 6, 5)
    change[1, 0, 1, 2] = 0.1
    change[2, 0, 1, 2] = change[2, 1, 4, 3] = -0.1
    torch.testing.assert_close(PATCH_BALL.size(change), torch.tensor([0, 1 / 30, 16 / 30]))
    images = torch.rand(50, 3, 6, 5)
    drawn = PATCH_BALL.random(images, 9 / 30, torch.Generator().manual_seed(0))
    torch.testing.assert_close(PATCH_BALL.size(drawn - images), torch.full((50,), 9 / 30))
    places = (drawn != images).any(1).flatten(1).float().argmax(1)
    assert len(places.unique()) > 5


def test_an_area_of_less_than_a_pixel_changes_nothing(linear: Linear, images: Tensor) -> None:
    found = attacked(LocalPatch(image_score, steps=1), linear, images, 0.5 / 120)
    assert torch.equal(found, images)
