"""Perturbations of normal images that go on from epoch to epoch."""

import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.attack import Problem
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.training.persistent import Perturbations

EPS = 0.1
NEITHER = torch.tensor([[False, False]])


def started(known: Perturbations, index: Tensor, flips: Tensor, images: Tensor) -> Tensor:
    """The change of the images at the start of an attack on them."""
    detector = Linear(torch.ones(3, 4, 4))
    labels, masks = torch.zeros(len(images)), torch.zeros(len(images), 4, 4)
    generator = torch.Generator().manual_seed(0)
    problem = Problem(detector, images, labels, masks, image_score, image_score, generator)
    return known.start(index, flips)(PGD(image_score), problem, EPS) - images


def test_an_attack_goes_on_from_where_it_left_an_image_however_it_is_flipped() -> None:
    known, images = Perturbations(3, 4), torch.full((2, 3, 4, 4), 0.5)
    change = torch.zeros(1, 3, 4, 4)
    change[0, :, 0, 1] = 0.0625
    known.keep(torch.tensor([2]), torch.tensor([[True, False]]), change)
    begun = started(known, torch.tensor([2]), torch.tensor([[False, True]]), images)
    expected = torch.zeros(3, 4, 4)
    expected[:, 3, 2] = 0.0625
    torch.testing.assert_close(begun[0], expected)
    assert begun[1].unique().numel() > 10  # a pseudo-anomaly starts at random


def test_what_is_remembered_is_brought_into_a_smaller_ball() -> None:
    known, images = Perturbations(1, 4), torch.full((1, 3, 4, 4), 0.5)
    known.keep(torch.tensor([0]), NEITHER, torch.full((1, 3, 4, 4), 0.5))
    begun = started(known, torch.tensor([0]), NEITHER, images)
    torch.testing.assert_close(begun, torch.full((1, 3, 4, 4), EPS))


def test_an_image_starts_at_random_the_first_time() -> None:
    begun = started(Perturbations(2, 4), torch.tensor([1]), NEITHER, torch.full((1, 3, 4, 4), 0.5))
    assert begun.unique().numel() > 10


def test_a_resumed_run_remembers() -> None:
    known, resumed = Perturbations(2, 4), Perturbations(2, 4)
    known.keep(torch.tensor([1]), NEITHER, torch.full((1, 3, 4, 4), 0.0625))
    resumed.load_state_dict(known.state_dict())
    images = torch.full((1, 3, 4, 4), 0.5)
    for each in (known, resumed):
        begun = started(each, torch.tensor([1]), NEITHER, images)
        torch.testing.assert_close(begun, torch.full((1, 3, 4, 4), 0.0625))
