"""S8 to S18: quiet where attacks work, and each fires where they do not."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from patchguard.attacks.apgd import APGD
from patchguard.attacks.attack import Attack
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.queries import RandomNoise
from patchguard.detector import Detection, Detector
from patchguard.evaluation.canaries import (
    BatchDependent,
    Brittle,
    Constant,
    Detached,
    Linear,
    Misleading,
    Quantised,
    Random,
    Rugged,
    Saturated,
    Wary,
    specimens,
    weights,
)
from patchguard.evaluation.checks import Check, CheckContext, run_checks
from patchguard.evaluation.outcome import Attacked, Scored, Worst

WEIGHT = weights()
TEST = specimens(WEIGHT)
ATTACK_IDS = {f"S{number}" for number in range(8, 19)}


class Bent(Linear):
    """A smooth nonlinear detector: the mean of the largest values of a bent linear map."""

    def forward(self, images: Tensor) -> Detection:
        anomaly_map = torch.nn.functional.gelu(super().forward(images).anomaly_map + 0.1)
        pooled = torch.nn.functional.avg_pool2d(anomaly_map[:, None], 4)
        return Detection(pooled.flatten(1).topk(4, dim=1).values.mean(1), anomaly_map)


def check(id_: str, detector: Detector, **settings: object) -> Check:
    settings = {"test": TEST, "effort": "full", **settings}
    (found,) = run_checks(CheckContext(detector, **settings), only={id_})  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("kind", [Linear, Bent])
def test_a_sound_detector_passes(kind: type[Linear]) -> None:
    context = CheckContext(kind(WEIGHT), TEST, eps=2 / 255, effort="full")
    found = run_checks(context, only=ATTACK_IDS)
    assert [check for check in found if check.status != "PASS"] == []


@pytest.mark.parametrize(
    ("id_", "kind", "status"),
    [
        ("S8", Rugged, "WARN"),
        ("S8", Random, "FAIL"),
        ("S8", BatchDependent, "FAIL"),
        ("S9", Misleading, "WARN"),
        ("S10", Misleading, "FAIL"),
        ("S10", Rugged, "FAIL"),
        ("S11", Rugged, "WARN"),
        ("S13", Brittle, "FAIL"),
        ("S14", Quantised, "FAIL"),
        ("S14", Saturated, "FAIL"),
        ("S14", Constant, "FAIL"),
        ("S15", Quantised, "FAIL"),
        ("S15", Saturated, "FAIL"),
        ("S16", Quantised, "FAIL"),
        ("S18", Saturated, "FAIL"),
    ],
)
def test_a_check_fires_on_its_canary(id_: str, kind: type[Linear], status: str) -> None:
    assert check(id_, kind(WEIGHT)).status == status


@pytest.mark.parametrize("id_", sorted(ATTACK_IDS))
def test_attacks_that_cannot_run_are_failures(id_: str) -> None:
    found = check(id_, Detached(WEIGHT))
    assert found.status == "FAIL"
    assert "cut off" in found.meaning


def test_a_detector_that_shies_at_long_steps_fails_the_sweep_of_step_sizes() -> None:
    faint = specimens(WEIGHT, contrast=0.015)
    assert check("S12", Linear(WEIGHT), test=faint, eps=1 / 255).status == "PASS"
    assert check("S12", Wary(WEIGHT), test=faint, eps=1 / 255).status == "WARN"


class DetachedMap(Linear):
    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        return Detection(score, torch.round(anomaly_map))


def test_an_attack_without_limit_must_turn_the_maps_round_too() -> None:
    found = check("S14", DetachedMap(WEIGHT))
    assert found.status == "FAIL"
    assert "localization" in found.meaning


def attacked(
    kind: str, shift: float, *, objective: str = "score", eps: str = "4/255", name: str = "mine"
) -> Attacked:
    """Results that move each score by ``shift`` towards the other class."""
    towards = np.where(TEST.labels, -shift, shift).astype(np.float32)
    scored = Scored(CLEAN.scores + towards, CLEAN.maps)
    return Attacked(name, "linf", eps, scored, 0.0, kind=kind, objective=objective)


with torch.no_grad():
    CLEAN = Scored(*(part.numpy() for part in Linear(WEIGHT)(TEST.images)))
CLEAN_GAP = float(CLEAN.scores[TEST.labels].min() - CLEAN.scores[~TEST.labels].max())


@pytest.mark.parametrize(
    ("id_", "kind"),
    [("S15", "noise"), ("S16", "square"), ("S17", "transfer"), ("S18", "universal")],
)
def test_results_tell_whether_gradients_are_beaten(id_: str, kind: str) -> None:
    weak, strong = 0.1 * CLEAN_GAP, 1.2 * CLEAN_GAP
    for gradients, other, status in ((strong, weak, "PASS"), (weak, strong, "FAIL")):
        results = [attacked("apgd", gradients), attacked(kind, other)]
        found = check(id_, Linear(WEIGHT), clean=CLEAN, attacked=results, effort="quick")
        assert found.status == status
    assert check(id_, Linear(WEIGHT), effort="quick").status == "SKIP"


def test_the_curve_of_an_attack_of_the_suite_must_not_rise() -> None:
    def curve(kind: str, objective: str, *shifts: float) -> Check:
        results = [
            attacked(kind, shift, eps=eps, objective=objective, name="the sweep")
            for shift, eps in zip(shifts, ["10/255", "2/255", "4/255"], strict=True)
        ]
        return check("S13", Linear(WEIGHT), clean=CLEAN, attacked=results, effort="quick")

    falling, rising = (1.5 * CLEAN_GAP, 0, CLEAN_GAP), (0, 1.5 * CLEAN_GAP, 1.5 * CLEAN_GAP)
    assert curve("apgd", "score", *falling).status == "PASS"
    found = curve("apgd", "score", *rising)
    assert found.status == "WARN"
    assert "the sweep" in found.meaning
    assert curve("apgd", "linear", *rising).status == "PASS"
    assert curve("legacy", "legacy", *rising).status == "PASS"


def suite_of(
    attack: Attack, detector: Detector, *, eps: int = 4, spared: Sequence[int] = ()
) -> Check:
    """What is said of a suite of this one attack, which leaves some images alone."""
    (images,) = attack(
        detector,
        TEST.images,
        torch.from_numpy(TEST.labels),
        TEST.coverage(),
        eps=[eps / 255],
        generator=torch.Generator().manual_seed(7),
    )
    images[list(spared)] = TEST.images[list(spared)]
    with torch.no_grad():
        scores = detector(images).score.numpy()
    worst = [Worst("linf", f"{eps}/255", scores, ("mine",) * len(scores), images)]
    return check("S9", detector, worst=worst, eps=eps / 255, effort="quick")


@pytest.mark.parametrize("kind", [Linear, Bent])
@pytest.mark.parametrize(
    ("attack", "status"),
    [
        (APGD(image_score, steps=50), "PASS"),
        (PGD(image_score, steps=1, step_size=0.5), "FAIL"),
        (RandomNoise(image_score, draws=1), "FAIL"),
    ],
)
def test_a_suite_must_get_as_far_as_the_own_attack_of_the_checks(
    kind: type[Linear], attack: Attack, status: str
) -> None:
    assert suite_of(attack, kind(WEIGHT)).status == status


@pytest.mark.parametrize(
    ("spared", "status"), [([0], "PASS"), ([0, 8], "WARN"), ([0, 7, 8, 15], "FAIL")]
)
def test_a_suite_may_miss_the_worst_of_few_images(spared: list[int], status: str) -> None:
    attack = APGD(image_score, steps=50)
    assert suite_of(attack, Linear(WEIGHT), eps=1, spared=spared).status == status


def test_a_worst_case_at_another_radius_is_not_compared() -> None:
    worst = [Worst("linf", "2/255", CLEAN.scores, ("clean",) * 16, TEST.images)]
    assert check("S9", Linear(WEIGHT), worst=worst).status == "PASS"
