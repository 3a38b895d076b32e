"""S8 to S18: quiet where attacks work, and each fires where they do not."""

import numpy as np
import pytest
import torch
from torch import Tensor

from patchguard.detector import Detection, Detector
from patchguard.evaluation.canaries import (
    BatchDependent,
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
    assert [check for check in found if check.status not in ("PASS", "SKIP")] == []
    assert [check.id for check in found if check.status == "SKIP"] == ["S13"]


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


@pytest.mark.parametrize("id_", sorted(ATTACK_IDS - {"S13"}))
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


def attacked(name: str, shift: float, eps: str = "4/255") -> Attacked:
    """Results that move each score by ``shift`` towards the other class."""
    clean = CLEAN
    towards = np.where(TEST.labels, -shift, shift).astype(np.float32)
    return Attacked(name, "linf", eps, Scored(clean.scores + towards, clean.maps), 0.0)


with torch.no_grad():
    CLEAN = Scored(*(part.numpy() for part in Linear(WEIGHT)(TEST.images)))
CLEAN_GAP = float(CLEAN.scores[TEST.labels].min() - CLEAN.scores[~TEST.labels].max())


@pytest.mark.parametrize(
    ("id_", "name"),
    [
        ("S15", "noise score"),
        ("S16", "square score"),
        ("S17", "transfer score"),
        ("S18", "universal score"),
    ],
)
def test_results_tell_whether_gradients_are_beaten(id_: str, name: str) -> None:
    weak, strong = 0.1 * CLEAN_GAP, 1.2 * CLEAN_GAP
    for gradients, other, status in ((strong, weak, "PASS"), (weak, strong, "FAIL")):
        results = [attacked("apgd score", gradients), attacked(name, other)]
        found = check(id_, Linear(WEIGHT), clean=CLEAN, attacked=results, effort="quick")
        assert found.status == status
    assert check(id_, Linear(WEIGHT), effort="quick").status == "SKIP"


def test_the_curve_over_eps_must_not_rise() -> None:
    def curve(*shifts: float) -> Check:
        radii = ["10/255", "2/255", "4/255"]
        results = [
            attacked("apgd score", shift, eps) for shift, eps in zip(shifts, radii, strict=True)
        ]
        worst = [
            Worst("linf", entry.eps, entry.scored.scores, ("apgd score",) * 16, TEST.images)
            for entry in results
        ]
        settings = {"clean": CLEAN, "attacked": results, "effort": "quick"}
        found = check("S13", Linear(WEIGHT), **settings)
        assert check("S13", Linear(WEIGHT), worst=worst, **settings).status == found.status
        return found

    assert curve(1.5 * CLEAN_GAP, 0, CLEAN_GAP).status == "PASS"
    assert curve(0, 1.5 * CLEAN_GAP, 1.5 * CLEAN_GAP).status == "FAIL"
