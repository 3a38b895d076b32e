from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.balls import BALLS
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.universal import UniversalPerturbation
from patchguard.evaluation.metrics import image_metrics

EPS = [2 / 255, 4 / 255]
LABELS = torch.tensor([True] * 14 + [False] * 18)
MASKS = torch.zeros(32, 8, 8)


class Curved(Linear):
    """A score whose gradient differs from image to image."""

    def forward(self, images: Tensor):
        plain = super().forward(images)
        return plain._replace(score=torch.sin(2 * plain.anomaly_map).sum((1, 2)))


@pytest.fixture
def curved() -> Curved:
    return Curved(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def images(curved: Curved) -> Tensor:
    """Anomalous images score higher on the whole; some pixels lie on the box."""
    generator = torch.Generator().manual_seed(1)
    images = 0.5 + 0.1 * torch.randn(32, 3, 8, 8, generator=generator)
    images[LABELS] += 0.06 * curved.weight.detach()
    images[:, :, 0] = 0.0
    return images.clamp(0, 1)


def auroc(detector: Linear, images: Tensor) -> float:
    return image_metrics(detector(images).score.detach().numpy(), LABELS.numpy()).auroc


def test_is_weaker_than_an_attack_per_image_and_stronger_than_none(
    curved: Curved, images: Tensor
) -> None:
    universal = UniversalPerturbation(image_score, steps=10)
    found = universal(curved, images, LABELS, MASKS, eps=EPS)
    per_image = PGD(image_score, steps=20)(curved, images, LABELS, MASKS, eps=EPS)
    clean = auroc(curved, images)
    for shared, own in zip(found, per_image, strict=True):
        assert clean > auroc(curved, shared) > auroc(curved, own)
    assert all(auroc(curved, large) < auroc(curved, small) for small, large in pairwise(found))


def test_each_half_of_a_class_has_one_perturbation(curved: Curved, images: Tensor) -> None:
    inner = images.clamp(0.2, 0.8)  # where no perturbation meets the box
    (attacked,) = UniversalPerturbation(image_score, steps=2)(
        curved, inner, LABELS, MASKS, eps=EPS[1:]
    )
    change = attacked - inner
    assert change.abs().max() <= EPS[1] * (1 + 1e-5)
    for label, sizes in ((True, [7, 7]), (False, [9, 9])):
        rounded = (change[label == LABELS] * 1e5).round().flatten(1)
        _, counts = rounded.unique(dim=0, return_counts=True)
        assert counts.tolist() == sizes


def test_what_is_fitted_on_some_images_is_added_to_others(images: Tensor) -> None:
    linear = Linear(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))
    made_from = torch.arange(32) % 2 == 0
    perturbation = UniversalPerturbation(image_score, steps=10).fit(
        linear, images[made_from], LABELS[made_from], MASKS[made_from], eps=EPS[1]
    )
    others, labels = images[~made_from], LABELS[~made_from]
    score = linear(perturbation.added(others, labels)).score
    worst = torch.where(
        labels, linear.lowest_score(others, EPS[1]), linear.highest_score(others, EPS[1])
    )
    # One perturbation is worst for all images of a linear score, but for values off the box.
    torch.testing.assert_close(score, worst, atol=1e-3, rtol=0)


def test_a_shared_one_is_the_same_for_both_classes(curved: Curved, images: Tensor) -> None:
    attack = UniversalPerturbation(image_score, steps=10, shared=True)
    normal, anomalous = attack.fit(curved, images, LABELS, MASKS, eps=EPS[1]).deltas
    assert torch.equal(normal, anomalous)
    assert normal.abs().max() > 0.5 * EPS[1]


def test_other_balls_bound_the_perturbation_itself(curved: Curved, images: Tensor) -> None:
    attack = UniversalPerturbation(image_score, steps=10, ball=BALLS["l2"])
    perturbation = attack.fit(curved, images, LABELS, MASKS, eps=0.5)
    torch.testing.assert_close(BALLS["l2"].size(perturbation.deltas), torch.full((2,), 0.5))


def test_a_lonely_image_of_a_class_is_left_as_it_is(curved: Curved, images: Tensor) -> None:
    chosen = np.r_[0, 20:25]
    (attacked,) = UniversalPerturbation(image_score, steps=2)(
        curved, images[chosen], LABELS[chosen], MASKS[chosen], eps=EPS[:1]
    )
    assert torch.equal(attacked[0], images[0])
    assert (attacked[1:] != images[chosen][1:]).flatten(1).any(1).all()
