from itertools import pairwise

import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.attack import uniform
from patchguard.attacks.objectives import PixelMap, image_score, legacy, patch_labels
from patchguard.attacks.pgd import NFGSM, PGD
from patchguard.config import ModelConfig
from patchguard.detector import Inspection
from patchguard.models.patchguard import PatchGuard

EPS = [1 / 255, 4 / 255, 16 / 255]


@pytest.fixture
def linear() -> Linear:
    return Linear(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images (some pixels on the box), labels and masks."""
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images[:, :, 0] = 0.0
    images[:, :, 1] = 1.0
    labels = torch.tensor([True, False] * 3)
    masks = torch.zeros(6, 8, 8)
    masks[labels, 2:4, 3:6] = 1.0
    return images, labels, masks


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_reaches_the_closed_form_worst_score_of_a_linear_detector(
    linear: Linear, batch: tuple[Tensor, Tensor, Tensor], start: float
) -> None:
    images, labels, masks = batch
    attack = PGD(image_score, steps=10, start=start)
    for eps, attacked in zip(EPS, attack(linear, images, labels, masks, eps=EPS), strict=True):
        score = linear(attacked).score
        torch.testing.assert_close(
            score[labels], linear.lowest_score(images, eps)[labels], atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            score[~labels], linear.highest_score(images, eps)[~labels], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("keep_best", [True, False])
def test_attacked_images_stay_in_the_ball_and_the_box(
    linear: Linear, batch: tuple[Tensor, Tensor, Tensor], keep_best: bool
) -> None:
    images, labels, masks = batch
    attack = PGD(image_score, steps=3, starts=[uniform] * 2, keep_best=keep_best)
    for eps, attacked in zip(EPS, attack(linear, images, labels, masks, eps=EPS), strict=True):
        assert (attacked - images).abs().max() <= eps * (1 + 1e-6)
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        assert not attacked.requires_grad


class Wave(Linear):
    """A score that oscillates along the gradient, so that long steps overshoot."""

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]
        plain = super().forward(images)
        return plain._replace(score=torch.sin(5 * plain.score))


def test_the_best_iterate_is_kept_and_never_falls_along_an_eps_sweep(
    linear: Linear, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, masks = batch
    wave = Wave(linear.weight.detach())

    def values(attacked: Tensor) -> Tensor:
        return image_score(wave.inspect(attacked), labels, masks)

    generator = torch.Generator().manual_seed(0)
    swept = PGD(image_score, steps=7)(wave, images, labels, masks, eps=EPS, generator=generator)
    last = PGD(image_score, steps=7, keep_best=False)(
        wave, images, labels, masks, eps=EPS, generator=generator.manual_seed(0)
    )
    assert (values(swept[0]) >= values(last[0])).all()
    assert (values(swept[0]) > values(last[0])).any()
    assert (values(swept[0]) >= values(images)).all()
    for smaller, larger in pairwise(swept):
        assert (values(larger) >= values(smaller)).all()


def test_more_restarts_are_never_weaker(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    images, labels, masks = batch
    wave = Wave(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(3)))

    def strength(restarts: int) -> Tensor:
        attack = PGD(image_score, steps=3, starts=[uniform] * restarts)
        generator = torch.Generator().manual_seed(0)
        attacked = attack(wave, images, labels, masks, eps=EPS[:1], generator=generator)[0]
        return image_score(wave.inspect(attacked), labels, masks)

    assert (strength(4) >= strength(1)).all()


def test_the_attack_is_deterministic_in_its_generator(
    linear: Linear, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, masks = batch
    attack = PGD(image_score, steps=1, step_size=0.1, keep_best=False)
    first, second, other = (
        attack(
            linear,
            images,
            labels,
            masks,
            eps=EPS,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


def test_nfgsm_noise_leaves_the_ball_but_not_the_box(
    linear: Linear, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, masks = batch
    attack = NFGSM(image_score, steps=1, step_size=1.0, start=2.0, keep_best=False)
    (attacked,) = attack(linear, images, labels, masks, eps=[8 / 255])
    change = (attacked - images).abs().max()
    assert 8 / 255 < change <= 24 / 255 * (1 + 1e-6)
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_the_map_objective_is_the_linear_surrogate_of_pooled_auroc(
    linear: Linear, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, masks = batch
    objective = PixelMap(float(masks.mean()))
    maps = linear(images).anomaly_map
    pooled = maps[masks == 0].mean() - maps[masks == 1].mean()
    torch.testing.assert_close(objective(linear.inspect(images), labels, masks).mean(), pooled)


def test_the_map_attack_raises_normal_pixels_and_lowers_anomalous_ones(
    linear: Linear, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, masks = batch
    attack = PGD(PixelMap(float(masks.mean())), steps=10)
    (attacked,) = attack(linear, images, labels, masks, eps=[4 / 255])
    change = linear(attacked).anomaly_map - linear(images).anomaly_map
    assert (change[masks == 0] >= 0).all()
    assert (change[masks == 1] <= 0).all()
    assert change[masks == 1].min() < 0 < change[masks == 0].max()


@pytest.fixture
def model() -> PatchGuard:
    torch.manual_seed(0)
    return PatchGuard(ModelConfig(), image_size=32)


def test_mode_and_gradients_of_the_detector_are_restored(model: PatchGuard) -> None:
    model.train()
    model.backbone.blocks[0].eval()
    model.discriminator.head.weight.requires_grad_(False)
    images = torch.rand(2, 3, 32, 32)
    before = {name: module.training for name, module in model.named_modules()}
    PGD(image_score, steps=1)(
        model, images, torch.tensor([True, False]), torch.zeros(2, 32, 32), eps=[1 / 255]
    )
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not model.discriminator.head.weight.requires_grad
    assert model.discriminator.head.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("eval_mode", [True, False])
def test_dropout_is_off_inside_the_attack_unless_asked_for(
    model: PatchGuard, eval_mode: bool
) -> None:
    modes = []

    def objective(seen: Inspection, labels: Tensor, masks: Tensor, progress: float) -> Tensor:
        modes.append(model.training)
        return image_score(seen, labels, masks)

    model.train()
    PGD(objective, steps=1, eval_mode=eval_mode)(
        model, torch.rand(1, 3, 32, 32), torch.tensor([True]), torch.zeros(1, 32, 32), eps=[0.01]
    )
    assert set(modes) == {not eval_mode}


def test_legacy_is_the_mean_of_normal_minus_the_mean_of_anomalous_patches(
    model: PatchGuard,
) -> None:
    images = torch.rand(2, 3, 32, 32)
    masks = torch.zeros(2, 32, 32)
    masks[1, 0, 0] = 0.01  # one touched pixel makes its 16 px patch anomalous
    logits = model.eval().patch_logits(images).flatten(1)
    expected = torch.stack([logits[0].mean(), logits[1, 1:].mean() - logits[1, 0]])
    found = legacy(model.inspect(images), torch.tensor([False, True]), masks)
    torch.testing.assert_close(found, expected)


def test_a_patch_is_anomalous_where_any_of_its_pixels_is() -> None:
    masks = torch.zeros(1, 32, 32)
    masks[0, 15, 16] = 1
    assert patch_labels(masks, 2).tolist() == [[[0, 1], [0, 0]]]
