"""Suites as data: every built-in one is sound, and what is wrong with another is said in a line."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard import config
from patchguard.attacks.objectives.registry import ObjectiveContext
from patchguard.attacks.objectives.statistics import PixelStatistics
from patchguard.attacks.suite import Member, build, members
from patchguard.config import SUITES, EvaluationConfig, ThreatConfig, load_suite, parse_size
from patchguard.detector import Detector, Inspection
from patchguard.errors import PatchGuardError
from patchguard.evaluation.protocol import suite_of

BUILT_IN = sorted(path.stem for path in SUITES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SUITES", SUITES)


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
    threat = ThreatConfig(eps=["16/255", "2/255", "8/255"], attacks=[{"attack": "pgd"}])
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
        ({"attack": ["pgd"]}, "no attack \\['pgd'\\]"),
        ({"attack": "pgd", "objective": "scores"}, "no objective 'scores'"),
        (
            {"attack": "pgd", "step": 3},
            "pgd: no setting 'step'; known: name, objective, rounds, start, s",
        ),
        ({"attack": "pgd", "starts": ["zero"]}, "no start 'zero'"),
        ({"attack": "pgd", "starts": "odi"}, "pgd: starts is 'odi'; it must be a list"),
        ({"attack": "pgd", "starts": [["odi"]]}, "pgd: starts is .*text"),
        ({"attack": "pgd", 3: 4}, "pgd: no setting 3"),
        (
            {"attack": "pgd", "objective": 3},
            "pgd: objective is 3; it must be text .*or a mapping",
        ),
        ({"attack": "pgd", "objective": {"k": 3}}, "no objective None"),
        ({"attack": "pgd", "objective": {"name": ["score"]}}, "no objective"),
        (
            {"attack": "pgd", "objective": {"name": "score", "k": 3}},
            "score: no setting 'k'; known: none",
        ),
        ({"attack": "pgd", "objective": {"name": "top_k", "k": "3"}}, "k is '3'"),
        (
            {"attack": "pgd", "objective": {"name": "top_k", 3: 3}},
            "top_k: no setting 3; known: k, share",
        ),
        ({"attack": "pgd", "name": 3}, "pgd: name is 3; it must be text"),
        ({"attack": "pgd", "steps": "ten"}, "pgd: steps is 'ten'; it must be a whole number"),
        ({"attack": "pgd", "steps": 2.5}, "pgd: steps is 2.5; it must be a whole number"),
        ({"attack": "pgd", "steps": True}, "pgd: steps is True; it must be a whole number"),
        ({"attack": "pgd", "steps": 0}, "pgd: steps is 0; it must be at least 1"),
        ({"attack": "pgd", "step_size": math.inf}, "pgd: step_size is inf; it must be finite"),
        ({"attack": "pgd", "step_size": "1"}, "pgd: step_size is '1'; it must be a number"),
        ({"attack": "pgd", "start": -1}, "pgd: start is -1; it must be at least 0"),
        ({"attack": "pgd", "rounds": "two"}, "pgd: rounds is 'two'"),
        ({"attack": "pgd", "rounds": 0}, "pgd: rounds is 0"),
        ({"attack": "pgd", "source": "twin"}, "pgd: no setting 'source'"),
        ({"attack": "square", "queries": -1}, "square: queries is -1"),
        ({"attack": "noise", "draws": 0}, "noise: draws is 0"),
        ({"attack": "noise", "starts": ["image"]}, "noise: no setting 'starts'"),
        ({"attack": "nes", "samples": 3}, "nes: samples is 3; it must be a multiple of 2"),
        (
            {"attack": "simba", "basis": "haar"},
            "simba: basis is 'haar'; .*'pixel' or 'dct'",
        ),
        ({"attack": "universal", "shared": 1}, "universal: shared is 1; it must be true or false"),
        ({"attack": "apgd", "radii": 2}, "apgd: radii is 2; it must be a Sequence"),
        ({"attack": "apgd", "radii": [2, "1"]}, "apgd: radii is .*number"),
        ({"attack": "apgd", "radii": [2, 1.5]}, "a list that ends with 1"),
        ({"attack": "apgd", "radii": [0.5, 1]}, "apgd: radii is .*at least 1"),
        ({"attack": "transfer"}, "transfer needs a `source`"),
        ({"attack": "transfer", "source": 3}, "transfer: source is 3"),
        ({"attack": "legacy", "objective": "score"}, "legacy: no setting 'objective'"),
        ({"attack": "legacy", "starts": ["odi"]}, "legacy: no setting 'starts'"),
        ({"attack": "legacy", "start": 1.0}, "legacy: no setting 'start'"),
        ({"attack": "legacy", "step_size": 1.0}, "legacy: no setting 'step_size'"),
        ({"attack": "legacy", "rounds": 2}, "legacy: no setting 'rounds'"),
        ({"attack": "legacy", "name": "pgd"}, "name of attack legacy cannot be 'pgd'"),
        ({"attack": "pgd", "name": "legacy"}, "name of attack pgd cannot be 'legacy'"),
        ({"attack": "patch"}, "patch score attacks in patch, not in linf"),
    ],
)
def test_an_entry_that_is_wrong_is_named(entry: dict[str, object], complaint: str) -> None:
    with pytest.raises(PatchGuardError, match=complaint) as raised:
        members(ThreatConfig(eps=["1/255"], attacks=[entry]))
    assert str(raised.value).startswith(("suite: ", "objective "))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("{steps: ten}", "steps is 'ten'; it must be a whole number"),
        ("{restarts: 0}", "restarts is 0; it must be at least 1"),
        ("{ball: l2}", "no setting 'ball'; known: restarts, steps"),
    ],
)
def test_settings_of_minimal_eps_are_checked_before_anything_runs(
    settings: str, complaint: str, tmp_path: Path
) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        f"threats: [{{eps: [1/255], attacks: [{{attack: pgd}}]}}]\nminimal_eps: {settings}"
    )
    with pytest.raises(PatchGuardError, match=f"^suite: minimal_eps: {complaint}$"):
        suite_of(EvaluationConfig(suite=str(suite)))


def test_two_attacks_of_one_name_are_refused() -> None:
    with pytest.raises(PatchGuardError, match="two attacks are called 'pgd score'"):
        members(ThreatConfig(eps=["1/255"], attacks=[{"attack": "pgd"}, {"attack": "pgd"}]))


def test_an_attack_bound_to_one_norm_is_refused_in_another() -> None:
    with pytest.raises(PatchGuardError, match="attacks in linf, not in l0"):
        members(ThreatConfig(eps=["50"], norm="l0", attacks=[{"attack": "square"}]))


def test_a_source_that_is_not_there_is_named() -> None:
    (member,) = entries("linf", attack="transfer", source="twin")
    with pytest.raises(PatchGuardError, match="no source 'twin'"):
        build(member, "linf", context(), {})


def entries(norm: str, **entry: object) -> list[Member]:
    eps = {"l0": "5", "patch": "0.1"}.get(norm, "1/255")
    return members(ThreatConfig(eps=[eps], norm=norm, attacks=[entry]))  # type: ignore[arg-type]


def test_rounds_cost_each_its_passes() -> None:
    once, twice = (
        entries("linf", attack="apgd", objective="rank", rounds=rounds)[0] for rounds in (1, 2)
    )
    assert twice.passes == 2 * once.passes


class Curved(Linear):
    """Logits of 4 x 4 patches that rise and fall along the gradient."""

    def inspect(self, images: Tensor) -> Inspection:
        score, anomaly_map = self(images)
        logits = torch.sin(50 * torch.nn.functional.avg_pool2d(anomaly_map[:, None], 4)[:, 0])
        return Inspection(score, anomaly_map, logits)


def test_legacy_is_the_published_protocol() -> None:
    """From the image, sign steps of 2.5 eps / steps, projected, last iterate, combined loss."""
    steps, radii = 10, [4 / 256, 16 / 256]
    curved = Curved(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))
    # On a grid of 1/256, so that no sum is rounded.
    images = torch.randint(257, (4, 3, 8, 8), generator=torch.Generator().manual_seed(1)) / 256
    labels, masks = torch.tensor([True, False, True, False]), torch.zeros(4, 8, 8)
    masks[0, 1, 2] = masks[2, 5:, 5:] = 1
    anomalous = torch.zeros(4, 2, 2)
    anomalous[0, 0, 0] = anomalous[2, 1, 1] = 1

    def loss(attacked: Tensor) -> Tensor:
        logits = curved.inspect(attacked).patch_logits
        assert logits is not None
        parts = zip(logits, anomalous, strict=True)
        return torch.stack(
            [one[of == 0].mean() - (one[of == 1].mean() if of.any() else 0) for one, of in parts]
        )

    (member,) = entries("linf", attack="legacy", steps=steps)
    swept = build(member, "linf", context(), {})(curved, images, labels, masks, eps=radii)
    for eps, found in zip(radii, swept, strict=True):
        attacked, values = images, []
        for _ in range(steps):
            point = attacked.clone().requires_grad_()
            value = loss(point)
            (gradient,) = torch.autograd.grad(value.sum(), point)
            moved = attacked + 2.5 * eps / steps * gradient.sign()
            # The ball gives 2^-24 of its radius away to rounding.
            reach = eps - 2.0**-24
            attacked = torch.minimum(torch.maximum(moved, images - reach), images + reach)
            attacked = attacked.clamp(0, 1)
            values.append(value.detach())
        assert torch.equal(found, attacked)
    # Which is not the best one where steps are long.
    assert (loss(attacked) < torch.stack(values).amax(0) - 0.1).any()
