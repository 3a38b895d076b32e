"""Suites as data: every built-in one is sound, and what is wrong with another is said in a line."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.objectives.registry import ObjectiveContext
from patchguard.attacks.objectives.statistics import PixelStatistics
from patchguard.attacks.suite import ATTACKS, Member, build, members
from patchguard.config import SUITES, ThreatConfig, load_suite, parse_size
from patchguard.detector import Detection, Detector, Inspection
from patchguard.errors import PatchGuardError

BUILT_IN = sorted(path.stem for path in SUITES.glob("*.yaml"))
BATCH = (
    torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
    torch.tensor([True, False] * 4),
    torch.zeros(8, 8, 8),
)


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
        ({"attack": "pgd", "step": 3}, "no setting of pgd 'step'"),
        ({"attack": "pgd", "starts": ["zero"]}, "no start 'zero'"),
        ({"attack": "pgd", "starts": "odi"}, "starts of pgd is 'odi'; it must be a list"),
        ({"attack": "pgd", "starts": [["odi"]]}, "starts of pgd"),
        ({"attack": "pgd", 3: 4}, "no setting of pgd 3"),
        ({"attack": "pgd", "objective": 3}, "objective of pgd is 3"),
        ({"attack": "pgd", "objective": {"k": 3}}, "no objective None"),
        ({"attack": "pgd", "objective": {"name": ["score"]}}, "no objective"),
        ({"attack": "pgd", "objective": {"name": "score", "k": 3}}, "option 'k' is unknown"),
        ({"attack": "pgd", "objective": {"name": "top_k", "k": "3"}}, "k is '3'"),
        ({"attack": "pgd", "objective": {"name": "top_k", 3: 3}}, "option 3 is unknown"),
        ({"attack": "pgd", "name": 3}, "name of pgd is 3; it must be a text"),
        ({"attack": "pgd", "steps": "ten"}, "steps of pgd is 'ten'; it must be a whole number"),
        ({"attack": "pgd", "steps": 2.5}, "steps of pgd is 2.5"),
        ({"attack": "pgd", "steps": True}, "steps of pgd is True"),
        ({"attack": "pgd", "steps": 0}, "steps of pgd is 0; it must be above 0"),
        ({"attack": "pgd", "step_size": math.inf}, "step_size of pgd is inf"),
        ({"attack": "pgd", "step_size": "1"}, "step_size of pgd is '1'; it must be a number"),
        ({"attack": "pgd", "start": -1}, "start of pgd is -1; it must be 0 or more"),
        ({"attack": "pgd", "rounds": "two"}, "rounds of pgd is 'two'"),
        ({"attack": "pgd", "rounds": 0}, "rounds of pgd is 0"),
        ({"attack": "pgd", "source": "twin"}, "no setting of pgd 'source'"),
        ({"attack": "square", "queries": -1}, "queries of square is -1"),
        ({"attack": "noise", "draws": 0}, "draws of noise is 0"),
        ({"attack": "noise", "starts": ["image"]}, "no setting of noise 'starts'"),
        ({"attack": "nes", "samples": 3}, "samples is 3; it must be even"),
        ({"attack": "simba", "basis": "haar"}, "basis of simba is 'haar'; it must be pixel or dct"),
        ({"attack": "universal", "shared": 1}, "shared of universal is 1; it must be true or fal"),
        ({"attack": "apgd", "radii": 2}, "radii of apgd is 2; it must be a list, each of it a num"),
        ({"attack": "apgd", "radii": [2, "1"]}, "radii of apgd"),
        ({"attack": "apgd", "radii": [2, 1.5]}, "the last must be 1"),
        ({"attack": "apgd", "radii": [0.5, 1]}, "at least 1"),
        ({"attack": "transfer"}, "transfer needs a `source`"),
        ({"attack": "transfer", "source": 3}, "source of transfer is 3"),
        ({"attack": "legacy", "objective": "score"}, "no setting of legacy 'objective'"),
        ({"attack": "legacy", "starts": ["odi"]}, "no setting of legacy 'starts'"),
        ({"attack": "legacy", "start": 1.0}, "no setting of legacy 'start'"),
        ({"attack": "legacy", "step_size": 1.0}, "no setting of legacy 'step_size'"),
        ({"attack": "legacy", "rounds": 2}, "no setting of legacy 'rounds'"),
        ({"attack": "legacy", "name": "pgd"}, "name of attack legacy cannot be 'pgd'"),
        ({"attack": "pgd", "name": "legacy"}, "name of attack pgd cannot be 'legacy'"),
        ({"attack": "patch"}, "patch score attacks in patch, not in linf"),
    ],
)
def test_an_entry_that_is_wrong_is_named(entry: dict[str, object], complaint: str) -> None:
    with pytest.raises(PatchGuardError, match=complaint) as raised:
        members(ThreatConfig(eps=["1/255"], attacks=[entry]))
    assert "\n" not in str(raised.value)


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


SMALL: dict[str, dict[str, object]] = {
    "pgd": {"steps": 3, "starts": ["uniform", "image"]},
    "apgd": {"steps": 6, "radii": [2, 1.5, 1]},
    "square": {"queries": 12, "starts": ["uniform", "image"]},
    "simba": {"queries": 11},
    "nes": {"steps": 3, "samples": 6},
    "noise": {"draws": 10},
    "pgd-l0": {"steps": 4},
    "sigma-zero": {"steps": 4},
    "patch": {"steps": 4, "probes": 2},
    "universal": {"steps": 3},
    "transfer": {"steps": 5, "source": "twin", "starts": ["uniform", "image"]},
    "legacy": {"steps": 4},
}
NORMS = {"pgd-l0": "l0", "sigma-zero": "l0", "patch": "patch"}
EPS = {"linf": [0.01, 0.02], "l0": [2, 5], "patch": [0.1, 0.2]}
each_kind = pytest.mark.parametrize("kind", ATTACKS)


class Counting(Linear):
    """Counts the images that pass it, forward and backward."""

    def __init__(self) -> None:
        super().__init__(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))
        self.passed = 0

    def forward(self, images: Tensor) -> Detection:
        detection = super().forward(images)
        self.count(images)
        if detection.score.requires_grad:
            detection.anomaly_map.register_hook(self.count)
        return detection

    def count(self, passing: Tensor) -> None:
        self.passed += len(passing)


@each_kind
def test_passes_tell_what_an_attack_costs(kind: str) -> None:
    norm, counting = NORMS.get(kind, "linf"), Counting()
    (member,) = entries(norm, attack=kind, **SMALL[kind])
    attack = build(member, norm, context(), {"twin": counting})
    attack(counting, *BATCH, eps=EPS[norm], generator=torch.Generator().manual_seed(0))
    cost = counting.passed / 2 / len(BATCH[0]) / len(EPS[norm])
    assert cost / 1.5 <= member.passes <= cost * 1.5


def test_rounds_cost_each_its_passes() -> None:
    once, twice = (
        entries("linf", attack="apgd", objective="rank", rounds=rounds)[0] for rounds in (1, 2)
    )
    assert twice.passes == 2 * once.passes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@each_kind
def test_attacks_run_where_the_images_are(kind: str) -> None:
    norm, detector = NORMS.get(kind, "linf"), Counting().cuda()
    images, labels, masks = (part.cuda() for part in BATCH)
    (member,) = entries(norm, attack=kind, **SMALL[kind])
    attack = build(member, norm, context(), {"twin": detector})
    swept = attack(
        detector,
        images,
        labels,
        masks,
        eps=EPS[norm],
        generator=torch.Generator("cuda").manual_seed(0),
    )
    for eps, attacked in zip(EPS[norm], swept, strict=True):
        assert attacked.device == images.device
        assert (attack.ball.size(attacked - images) <= eps * (1 + 1e-6)).all()


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
