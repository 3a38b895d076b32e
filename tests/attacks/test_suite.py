"""Suites as data: every built-in one is sound, and what is wrong with another is said in a line."""

import numpy as np
import pytest
import torch

from patchguard.attacks.objectives.registry import ObjectiveContext
from patchguard.attacks.objectives.statistics import PixelStatistics
from patchguard.attacks.suite import build, members
from patchguard.config import SUITES, ThreatConfig, load_suite, parse_size
from patchguard.detector import Detector
from patchguard.errors import PatchGuardError

BUILT_IN = sorted(path.stem for path in SUITES.glob("*.yaml"))


def context() -> ObjectiveContext:
    maps = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    coverage = torch.zeros(4, 8, 8)
    coverage[2:, :3, :3] = 1
    return ObjectiveContext(
        PixelStatistics.of(maps, coverage),
        maps,
        coverage,
        np.array([False, False, True, True]),
        torch.randn(5, 3),
    )


def test_the_five_suites_are_there() -> None:
    assert BUILT_IN == ["full", "legacy", "multi-norm", "quick", "standard"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_attack_of_a_built_in_suite_can_be_built(name: str) -> None:
    for threat in load_suite(name).threats:
        for member in members(threat):
            attack = build(member, threat.norm, context(), {"twin": Detector()})
            assert attack.ball.name == threat.norm
            assert member.passes > 0


def test_sizes_are_sorted_by_value_not_by_text() -> None:
    threat = ThreatConfig(eps=["16/255", "2/255", "8/255"], attacks=[])
    assert threat.eps == ["2/255", "8/255", "16/255"]
    assert threat.sizes == [2 / 255, 8 / 255, 16 / 255]


@pytest.mark.parametrize(
    ("norm", "text"),
    [("linf", "2"), ("l2", "-1"), ("l2", "far"), ("l0", "2.5"), ("patch", "1.5"), ("l1", "inf/2")],
)
def test_a_size_that_makes_no_sense_is_refused(norm: str, text: str) -> None:
    with pytest.raises(PatchGuardError, match="eps"):
        parse_size(norm, text)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"attack": "fgsm"}, "no attack 'fgsm'; known: apgd"),
        ({"attack": "pgd", "objective": "scores"}, "no objective 'scores'"),
        ({"attack": "pgd", "step": 3}, "no setting of pgd 'step'"),
        ({"attack": "pgd", "starts": ["zero"]}, "no start 'zero'"),
    ],
)
def test_an_entry_that_is_wrong_is_named(entry: dict[str, object], complaint: str) -> None:
    with pytest.raises(PatchGuardError, match=complaint):
        members(ThreatConfig(eps=["1/255"], attacks=[entry]))


def test_two_attacks_of_one_name_are_refused() -> None:
    with pytest.raises(PatchGuardError, match="two attacks are called 'pgd score'"):
        members(ThreatConfig(eps=["1/255"], attacks=[{"attack": "pgd"}, {"attack": "pgd"}]))


def test_an_attack_bound_to_one_norm_is_refused_in_another() -> None:
    (square,) = members(ThreatConfig(eps=["50"], norm="l0", attacks=[{"attack": "square"}]))
    with pytest.raises(PatchGuardError, match="attacks in linf, not in l0"):
        build(square, "l0", context(), {})
