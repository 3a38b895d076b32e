import pytest
import torch
from torch import Tensor

from attack_batch import LABELS, MASKS, attacked, gained, most, random_linear
from detectors import Linear, Wave
from patchguard.attacks.attack import uniform
from patchguard.attacks.objectives import PixelMap, image_score, legacy, patch_labels
from patchguard.attacks.pgd import NFGSM, PGD
from patchguard.config import ModelConfig
from patchguard.detector import Inspection
from patchguard.models.patchguard import PatchGuard

EPS = [1 / 255, 4 / 255, 16 / 255]


@pytest.fixture
def wave() -> Wave:
    return Wave(random_linear().weight.detach())


@pytest.fixture
def masks() -> Tensor:
    masks = torch.zeros(6, 8, 8)
    masks[LABELS, 2:4, 3:6] = 1.0
    return masks


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_reaches_the_closed_form_worst_score_of_a_linear_detector(
    linear: Linear, images: Tensor, start: float
) -> None:
    attack = PGD(image_score, steps=10, start=start)
    for eps, found in zip(EPS, attack(linear, images, LABELS, MASKS, eps=EPS), strict=True):
        torch.testing.assert_close(
            gained(linear, found, images), most(linear, images, eps), atol=1e-4, rtol=0
        )


def test_the_best_iterate_is_kept(wave: Wave, images: Tensor) -> None:
    best, last = (
        gained(
            wave, attacked(PGD(image_score, steps=7, keep_best=keep), wave, images, EPS[0]), images
        )
        for keep in (True, False)
    )
    assert (best >= last).all()
    assert (best > last).any()


def test_more_restarts_are_never_weaker(wave: Wave, images: Tensor) -> None:
    once, often = (
        attacked(PGD(image_score, steps=3, starts=[uniform] * restarts), wave, images, EPS[0])
        for restarts in (1, 4)
    )
    assert (gained(wave, often, images) >= gained(wave, once, images)).all()


def test_nfgsm_noise_leaves_the_ball_but_not_the_box(linear: Linear, images: Tensor) -> None:
    attack = NFGSM(image_score, steps=1, step_size=1.0, start=2.0, keep_best=False)
    found = attacked(attack, linear, images, 8 / 255)
    assert 8 / 255 < (found - images).abs().max() <= 24 / 255 * (1 + 1e-6)
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_map_objective_is_the_linear_surrogate_of_pooled_auroc(
    linear: Linear, images: Tensor, masks: Tensor
) -> None:
    objective = PixelMap(float(masks.mean()))
    maps = linear(images).anomaly_map
    pooled = maps[masks == 0].mean() - maps[masks == 1].mean()
    torch.testing.assert_close(objective(linear.inspect(images), LABELS, masks).mean(), pooled)


def test_the_map_attack_raises_normal_pixels_and_lowers_anomalous_ones(
    linear: Linear, images: Tensor, masks: Tensor
) -> None:
    attack = PGD(PixelMap(float(masks.mean())), steps=10)
    (found,) = attack(linear, images, LABELS, masks, eps=[4 / 255])
    change = linear(found).anomaly_map - linear(images).anomaly_map
    assert (change[masks == 0] >= 0).all()
    assert (change[masks == 1] <= 0).all()
    assert change[masks == 1].min() < 0 < change[masks == 0].max()


@pytest.fixture
def model() -> PatchGuard:
    torch.manual_seed(0)
    return PatchGuard(ModelConfig(window=32, views=["whole"]))


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
    seen = model.eval().inspect(images)
    assert seen.patch_logits is not None
    logits = seen.patch_logits.flatten(1)
    expected = torch.stack([logits[0].mean(), logits[1, 1:].mean() - logits[1, 0]])
    found = legacy(seen, torch.tensor([False, True]), masks)
    torch.testing.assert_close(found, expected)


def test_a_patch_is_anomalous_where_any_of_its_pixels_is() -> None:
    masks = torch.zeros(1, 32, 32)
    masks[0, 15, 16] = 1
    assert patch_labels(masks, (2, 2)).tolist() == [[[0, 1], [0, 0]]]
    assert patch_labels(masks[:, :16], (1, 2)).tolist() == [[[0, 1]]]
