"""What every attack must fulfil, on the table of all of them."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

import patchguard.attacks
from attack_batch import LABELS, MASKS, generator, random_images, random_linear
from attack_table import EPS, EXAMPLE, KINDS, TARGETS, Target, each, each_keeping_best
from detectors import Linear, Network, Wave
from patchguard.attacks import Attack
from patchguard.attacks.attack import Problem
from patchguard.attacks.objectives import image_score
from patchguard.attacks.suite import ATTACKS
from patchguard.constraints import setting_types
from patchguard.detector import Detection, Detector
from patchguard.errors import PatchGuardError


@pytest.fixture(scope="module")
def network() -> Network:
    return Network().eval()


def swept(target: Target, detector: Detector, images: Tensor, **more: Any) -> list[Tensor]:
    """Under the attack at both radii."""
    given: dict[str, Any] = {"eps": target.eps, "generator": generator(), **more}
    return target.make()(detector, images, LABELS, MASKS, **given)


def on_source(target: Target, source: Detector) -> dict[str, Any]:
    """The setting that puts another detector in the place of the source, where there is one."""
    return {"source": source} if "source" in target.settings else {}


def true_value(detector: Detector, images: Tensor) -> Tensor:
    return image_score(detector.inspect(images), LABELS, MASKS).detach()


def test_the_table_has_every_attack() -> None:
    exported = {getattr(patchguard.attacks, name) for name in patchguard.attacks.__all__}
    attacks = {kind for kind in exported if issubclass(kind, Attack)} - {Attack}
    assert attacks == set(ATTACKS.values()) == set(KINDS) - {EXAMPLE}


@each
def test_stays_in_every_ball_and_in_the_box(
    target: Target, network: Network, images: Tensor
) -> None:
    ball = target.make().ball
    found = swept(target, network, images)
    assert len(found) == 2
    for eps, attacked in zip(target.eps, found, strict=True):
        assert (ball.size(attacked - images) <= eps * (1 + 1e-6)).all()
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        assert not attacked.requires_grad
        assert not torch.equal(attacked, images)


@each
def test_images_need_not_be_squares(target: Target, network: Network) -> None:
    images = random_images(6, 11)
    masks, eps = torch.zeros(6, 6, 11), target.eps[1:]
    (found,) = target.make()(network, images, LABELS, masks, eps=eps, generator=generator())
    assert found.shape == images.shape and not torch.equal(found, images)
    assert (target.make().ball.size(found - images) <= eps[0] * (1 + 1e-6)).all()


@each_keeping_best
def test_no_result_is_worse_than_a_smaller_one_or_the_image(target: Target, images: Tensor) -> None:
    wave = Wave(random_linear().weight.detach())
    small, large = swept(target, wave, images)
    (warm,) = swept(target, wave, images, eps=target.eps[1:], generator=generator(1), warm=small)
    assert (true_value(wave, small) >= true_value(wave, images)).all()
    assert (true_value(wave, large) >= true_value(wave, small)).all()
    assert (true_value(wave, warm) >= true_value(wave, small)).all()


@each_keeping_best
def test_the_judge_chooses_whatever_is_climbed(
    target: Target, network: Network, images: Tensor
) -> None:
    """The objective leads the wrong way, so that most points are worse than the image."""

    def misleading(*seen: Any) -> Tensor:
        return -image_score(*seen)

    attack = target.make(misleading, judge=image_score)
    for found in attack(network, images, LABELS, MASKS, eps=target.eps, generator=generator()):
        assert (true_value(network, found) >= true_value(network, images)).all()


@each
def test_draws_from_its_generator_alone(target: Target, network: Network, images: Tensor) -> None:
    first = swept(target, network, images)
    torch.manual_seed(7)
    second, other = (swept(target, network, images, generator=generator(seed)) for seed in (0, 1))
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, other)) != target.draws


@pytest.mark.parametrize("name", [name for name in TARGETS if not TARGETS[name].draws])
def test_an_image_is_attacked_as_if_it_were_alone(
    name: str, network: Network, images: Tensor
) -> None:
    target, one = TARGETS[name], slice(2, 3)
    for eps in target.eps:
        (together,) = swept(target, network, images, eps=[eps])
        (alone,) = target.make()(network, images[one], LABELS[one], MASKS[one], eps=[eps])
        scores = network(together).score[one], network(alone).score
        torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


class Counting(Linear):
    """Counts its looks, and the images that pass it forward and backward."""

    def __init__(self) -> None:
        super().__init__(random_linear().weight.detach())
        self.looks = self.passed = 0

    def forward(self, images: Tensor) -> Detection:
        detection = super().forward(images)
        self.looks += 1
        self.count(images)
        if detection.score.requires_grad:
            detection.anomaly_map.register_hook(self.count)
        return detection

    def count(self, passing: Tensor) -> None:
        self.passed += len(passing)


def counted(target: Target, counting: Counting) -> Attack:
    """The attack, all of whose looks are counted."""
    return target.make(**on_source(target, counting))


class Stop(Exception):
    pass


@each
@pytest.mark.parametrize("after", [0, 3, 7])
def test_stops_when_asked(target: Target, after: int, images: Tensor) -> None:
    counting, steps = Counting(), 0

    def each_step() -> None:
        nonlocal steps
        if steps == after:
            raise Stop
        steps += 1

    with pytest.raises(Stop):
        counted(target, counting)(
            counting, images, LABELS, MASKS, eps=target.eps, each_step=each_step
        )
    assert counting.looks == after


@each
def test_passes_tell_what_it_costs(target: Target, images: Tensor) -> None:
    counting = Counting()
    attack = counted(target, counting)
    attack(counting, images, LABELS, MASKS, eps=target.eps, generator=generator())
    cost = counting.passed / 2 / len(images) / len(target.eps)
    assert cost / 1.5 <= attack.passes <= cost * 1.5


@each
def test_leaves_the_detector_as_it_was(target: Target, images: Tensor) -> None:
    network = Network().train()
    frozen, used, *_ = network.parameters()
    network.layers[2].eval()
    frozen.requires_grad_(False)
    used.grad = torch.ones_like(used)
    modes = [module.training for module in network.modules()]
    before = [
        (parameter.detach().clone(), parameter.requires_grad, parameter.grad)
        for parameter in network.parameters()
    ]
    swept(target, network, images)
    assert [module.training for module in network.modules()] == modes
    for parameter, (values, free, gradient) in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, values)
        assert parameter.requires_grad == free
        assert parameter.grad is gradient
    assert torch.equal(used.grad, torch.ones_like(used))


class Breaking(Linear):
    """A score that is NaN as soon as an image is not the clean one."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(torch.ones(3, 8, 8))
        self.clean = images

    def forward(self, images: Tensor) -> Detection:
        plain = super().forward(images)
        changed = (images != self.clean).flatten(1).any(1)
        return plain._replace(score=torch.where(changed, torch.nan, plain.score))


@each_keeping_best
def test_a_detector_that_answers_nan_does_not_look_robust(target: Target, images: Tensor) -> None:
    with pytest.raises(PatchGuardError, match="returned NaN for an attacked image"):
        swept(target, Breaking(images), images)


@pytest.mark.parametrize("eps", [[], [0.2, 0.1]], ids=str)
def test_radii_that_do_not_ascend_are_refused(
    eps: list[float], network: Network, images: Tensor
) -> None:
    with pytest.raises(PatchGuardError, match="must ascend"):
        swept(TARGETS["pgd"], network, images, eps=eps)


BAD = [(kind, name) for kind in KINDS for name in setting_types(kind)]


@pytest.mark.parametrize(("kind", "name"), BAD, ids=[f"{kind.__name__} {n}" for kind, n in BAD])
def test_a_setting_that_makes_no_sense_is_refused_in_one_line(
    kind: type[Attack], name: str
) -> None:
    settings = {"objective": image_score} | next(
        dict(target.settings) for target in TARGETS.values() if target.kind is kind
    )
    default = next(each.default for each in fields(kind) if each.name == name)
    number = isinstance(default, float | int) and not isinstance(default, bool)
    for value in [torch.rand(2, 2), *([-1, math.nan, math.inf, "3", True] if number else [])]:
        with pytest.raises(PatchGuardError, match=f"^{kind.__name__}: {name} is ") as raised:
            kind(**settings | {name: value})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "settings", "complaint"),
    [
        ("APGD", {"radii": []}, "a list that ends with 1"),
        ("APGD", {"radii": [2.0, 1.5]}, "a list that ends with 1"),
        ("APGD", {"radii": [0.5, 1.0]}, "at least 1"),
        ("NES", {"samples": 0}, "at least 2"),
        ("NES", {"samples": 5}, "a multiple of 2"),
        ("NES", {"momentum": 1.0}, "below 1"),
        ("PGD", {"starts": []}, "a list of 1 or more"),
        ("PGD", {"steps": 0}, "at least 1"),
        ("PGD", {"step_size": 0.0}, "above 0"),
        ("Square", {"area": 1.5}, "at most 1"),
    ],
)
def test_what_a_setting_should_be_is_told(
    kind: str, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(PatchGuardError, match=f"{kind}: {next(iter(settings))} .*{complaint}"):
        getattr(patchguard.attacks, kind)(image_score, **settings)


@pytest.mark.gpu
@each
def test_runs_where_the_images_are(target: Target, images: Tensor) -> None:
    detector = Network().cuda()
    attack = target.make(**on_source(target, detector))
    batch = (part.cuda() for part in (images, LABELS, MASKS))
    drawn = torch.Generator("cuda").manual_seed(0)
    for eps, found in zip(
        target.eps, attack(detector, *batch, eps=target.eps, generator=drawn), strict=True
    ):
        assert found.is_cuda
        assert (attack.ball.size(found - images.cuda()) <= eps * (1 + 1e-6)).all()


class Still(Attack):
    """A search that goes nowhere."""

    def search(self, problem: Problem, first: Tensor, eps: float, best: object) -> Tensor:
        return first


@pytest.mark.parametrize("name", ["pgd", "pgd l2", "pgd l1"])
def test_a_warm_start_moves_only_where_it_is_outside(name: str, images: Tensor) -> None:
    ball = TARGETS[name].make().ball
    eps = 10 * EPS[ball.name][1]
    signs = torch.where(LABELS, -1, 1)[:, None, None, None]
    way = signs * torch.rand(images.shape, generator=generator())
    flat, warm = Linear(torch.ones(3, 8, 8)), ball.project(images + way, images, eps)
    inside, outside = (
        Still(image_score, ball=ball)(flat, images, LABELS, MASKS, eps=[share * eps], warm=warm)[0]
        for share in (1.0, 0.1)
    )
    assert torch.equal(inside, warm)
    assert (ball.size(outside - images) <= 0.1 * eps * (1 + 1e-6)).all()
    assert not torch.equal(outside, images)
