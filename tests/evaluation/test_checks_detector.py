"""S1 to S7: quiet on sound detectors, and each fires on the flaw it looks for."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchguard.config import ModelConfig
from patchguard.detector import Detection, Detector
from patchguard.evaluation.canaries import (
    BatchDependent,
    Constant,
    Detached,
    Jpeg,
    LeftInTraining,
    Linear,
    Misleading,
    Quantised,
    Random,
    Rugged,
    Saturated,
    specimens,
    weights,
)
from patchguard.evaluation.checks import Check, CheckContext, run_checks
from patchguard.models.patchguard import PatchGuard

WEIGHT = weights()
TEST = specimens(WEIGHT)


class Smooth(Detector):
    """A small convolutional net in the manner of PatchGuard: patch logits, top-k mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4), nn.GELU(), nn.Dropout(0.2), nn.Conv2d(8, 1, 1)
        )

    def forward(self, images: Tensor) -> Detection:
        logits = self.net(images)
        score = logits.flatten(1).topk(3, dim=1).values.mean(1)
        return Detection(score, nn.functional.interpolate(logits, images.shape[-2:])[:, 0])


def tiny_patchguard() -> PatchGuard:
    torch.manual_seed(0)
    return PatchGuard(ModelConfig(hidden=64, window=16, views=["whole"]))


SOUND = [lambda: Linear(WEIGHT), Smooth, tiny_patchguard]


def check(id_: str, detector: Detector, **settings: object) -> Check:
    (found,) = run_checks(CheckContext(detector, TEST, **settings), only={id_})  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("make", SOUND)
@pytest.mark.parametrize("id_", [f"S{number}" for number in range(2, 8)])
def test_a_sound_detector_passes(make, id_: str) -> None:
    found = check(id_, make().eval())
    assert found.status == "PASS", found


def deployed(detector: Detector, shift: float = 0.0):
    def score(image: np.ndarray) -> float:
        levels = np.rint(255 * image).astype(np.uint8)
        images = torch.from_numpy(levels.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        with torch.no_grad():
            return float(detector(images).score) + shift

    return score


def test_parity_compares_the_attacked_with_the_deployed_detector() -> None:
    linear = Linear(WEIGHT)
    assert check("S1", linear).status == "SKIP"
    assert check("S1", linear, deployed=deployed(linear)).status == "PASS"
    assert check("S1", linear, deployed=deployed(linear, shift=0.1)).status == "FAIL"
    assert check("S1", linear, deployed=lambda image: float("nan")).status == "FAIL"


@pytest.mark.parametrize("kind", [Saturated, Quantised, Jpeg, Detached, Constant, Misleading])
def test_wrong_gradients_are_found(kind: type[Linear]) -> None:
    assert check("S2", kind(WEIGHT)).status == "FAIL"


class HalfDetached(Linear):
    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        hidden = super().forward(images.detach()).score
        return Detection(0.9 * score + 0.1 * hidden, anomaly_map)


class DetachedMap(Linear):
    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        return Detection(score, anomaly_map.detach())


@pytest.mark.parametrize("kind", [HalfDetached, DetachedMap])
def test_gradients_that_miss_a_part_are_found(kind: type[Linear]) -> None:
    assert check("S2", kind(WEIGHT)).status == "FAIL"


class Creased(Linear):
    """The slope is three times the linear one or its opposite, by turns shorter than 1e-6."""

    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        period = 1e-5 * self.weight.abs().sum()
        turned = (score / period) % 1
        return Detection(score + 2 * period * torch.minimum(turned, 1 - turned), anomaly_map)


def test_kinks_near_a_point_are_no_wrong_gradients() -> None:
    assert check("S2", Creased(WEIGHT)).status == "PASS"


class SingleOnly(Linear):
    def forward(self, images: Tensor) -> Detection:
        assert images.dtype == torch.float32
        return super().forward(images)


def test_a_detector_that_knows_only_single_precision_is_judged_in_that() -> None:
    found = check("S2", SingleOnly(WEIGHT))
    assert found.status == "PASS"
    assert found.limit == 0.05


def test_training_mode_fails_and_chance_warns() -> None:
    assert check("S3", LeftInTraining(WEIGHT)).status == "FAIL"
    assert check("S3", Smooth().train()).status == "FAIL"
    assert check("S3", LeftInTraining(WEIGHT).eval()).status == "PASS"
    assert check("S3", Random(WEIGHT).eval()).status == "WARN"


class OwnMode(Linear):
    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        return Detection(score + self.training * score.cos(), anomaly_map)


def test_a_mode_that_only_the_detector_knows_of_is_found_by_what_it_does() -> None:
    assert check("S3", OwnMode(WEIGHT).train()).status == "FAIL"
    assert check("S3", Linear(WEIGHT).train()).status == "PASS"


class Normalised(Linear):
    """Batch norm between image and score, left in training mode or not."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Detection:
        return super().forward(self.norm(images))


def test_dependence_on_the_batch_is_found() -> None:
    assert check("S4", BatchDependent(WEIGHT)).status == "FAIL"
    assert check("S4", Normalised(WEIGHT).train()).status == "FAIL"
    assert check("S4", Normalised(WEIGHT).eval()).status == "PASS"
    assert check("S4", Random(WEIGHT)).status == "SKIP"


def test_checks_leave_mode_buffers_and_random_state_alone() -> None:
    detector = Normalised(WEIGHT).train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    torch.manual_seed(5)
    run_checks(CheckContext(detector, TEST))
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert all(module.training for module in detector.modules())
    assert all(torch.equal(detector.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", [Saturated, Constant])
def test_crowded_ends_of_the_range_are_found(kind: type[Linear]) -> None:
    assert check("S5", kind(WEIGHT)).status == "FAIL"


@pytest.mark.parametrize("kind", [Saturated, Quantised, Constant, Jpeg, Detached])
def test_images_without_gradient_are_found(kind: type[Linear]) -> None:
    assert check("S6", kind(WEIGHT)).status == "FAIL"


@pytest.mark.parametrize("kind", [Rugged, Misleading])
def test_a_gradient_that_turns_round_nearby_is_found(kind: type[Linear]) -> None:
    assert check("S6", kind(WEIGHT)).status == "WARN"


def test_a_score_that_noise_moves_is_found() -> None:
    assert check("S7", Rugged(WEIGHT)).status == "WARN"


class Broken(Linear):
    def forward(self, images: Tensor) -> Detection:
        raise RuntimeError("out of\n  order")


def test_a_detector_that_raises_fails_its_checks_with_the_reason() -> None:
    found = check("S3", Broken(WEIGHT))
    assert found.status == "FAIL"
    assert "out of order" in found.meaning
    assert found.value is None
