"""What holds for every attack, by the template: sweeps, warm starts, detectors that misbehave."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.apgd import APGD
from patchguard.attacks.attack import Attack, Best, Problem
from patchguard.attacks.balls import BALLS
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.queries import SimBA
from patchguard.attacks.square import Square
from patchguard.errors import PatchGuardError

LABELS = torch.tensor([True, False] * 3)
MASKS = torch.zeros(6, 8, 8)
SMALL, LARGE = 1 / 255, 16 / 255

ATTACKS: dict[str, Callable[[], Attack]] = {
    "pgd": lambda: PGD(image_score, steps=2),
    "apgd": lambda: APGD(image_score, steps=2),
    "apgd radii": lambda: APGD(image_score, steps=4, radii=[2, 1]),
    "square": lambda: Square(image_score, queries=3),
    "simba": lambda: SimBA(image_score, queries=3),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=generator(1))


class Wave(Linear):
    """A score that oscillates along the gradient: a search may well end below a smaller one."""

    def __init__(self) -> None:
        super().__init__(torch.randn(3, 8, 8, generator=generator()))

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]
        plain = super().forward(images)
        return plain._replace(score=torch.sin(5 * plain.score))

    def values(self, images: Tensor) -> Tensor:
        return image_score(self.inspect(images), LABELS, MASKS).detach()


class Still(Attack):
    """A search that goes nowhere."""

    def search(
        self,
        problem: Problem,
        first: Tensor,
        eps: float,
        best: Best,
        generator: torch.Generator | None,
    ) -> Tensor:
        return first


@pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)
def test_a_result_never_falls_below_the_one_it_goes_on_from(
    make: Callable[[], Attack], images: Tensor
) -> None:
    wave = Wave()
    (warm,) = PGD(image_score, steps=20)(
        wave, images, LABELS, MASKS, eps=[SMALL], generator=generator()
    )
    (cold,) = make()(wave, images, LABELS, MASKS, eps=[LARGE], generator=generator())
    assert (wave.values(cold) < wave.values(warm)).any()
    (attacked,) = make()(wave, images, LABELS, MASKS, eps=[LARGE], generator=generator(), warm=warm)
    assert (wave.values(attacked) >= wave.values(warm)).all()
    small, large = make()(
        wave, images, LABELS, MASKS, eps=[SMALL, LARGE], generator=generator(), warm=warm
    )
    assert (wave.values(large) >= wave.values(small)).all()
    assert (wave.values(small) >= wave.values(warm)).all()


def test_a_sweep_goes_on_as_from_a_warm_start(images: Tensor) -> None:
    wave = Wave()
    attack = APGD(image_score, steps=5)
    small, large = attack(wave, images, LABELS, MASKS, eps=[SMALL, LARGE], generator=generator())
    (alone,) = attack(wave, images, LABELS, MASKS, eps=[LARGE], warm=small)
    assert torch.equal(large, alone)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.5), ("l2", 5.0), ("l1", 60.0)])
def test_a_warm_start_moves_only_where_it_is_outside(norm: str, eps: float, images: Tensor) -> None:
    ball = BALLS[norm]
    way = torch.where(LABELS, -1, 1)[:, None, None, None] * torch.rand(
        images.shape, generator=generator()
    )
    flat = Linear(torch.ones(3, 8, 8))
    warm = ball.project(images + way, images, eps)
    attack = Still(image_score, ball=ball)
    inside, outside = (
        attack(flat, images, LABELS, MASKS, eps=[share * eps], warm=warm)[0] for share in (1.0, 0.1)
    )
    assert torch.equal(inside, warm)
    assert (ball.size(outside - images) <= 0.1 * eps * (1 + 1e-6)).all()
    assert not torch.equal(outside, images)


@pytest.mark.parametrize("eps", [[], [LARGE, SMALL]], ids=str)
def test_radii_that_do_not_ascend_are_refused(images: Tensor, eps: list[float]) -> None:
    with pytest.raises(PatchGuardError, match="must ascend"):
        Still(image_score)(Wave(), images, LABELS, MASKS, eps=eps)


class Breaking(Linear):
    """A score that is NaN as soon as an image is not the clean one."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(torch.ones(3, 8, 8))
        self.clean = images

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]
        plain = super().forward(images)
        changed = (images != self.clean).flatten(1).any(1)
        return plain._replace(score=torch.where(changed, torch.nan, plain.score))


@pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)
def test_a_detector_that_answers_nan_does_not_look_robust(
    make: Callable[[], Attack], images: Tensor
) -> None:
    with pytest.raises(PatchGuardError, match="returned NaN for an attacked image"):
        make()(Breaking(images), images, LABELS, MASKS, eps=[SMALL])


class Rooted(Linear):
    """Without a gradient at the first value, where the root of 0 has none."""

    def forward(self, images: Tensor):  # type: ignore[no-untyped-def]
        plain = super().forward(images)
        return plain._replace(score=plain.score + (0 * images[:, 0, 0, 0]).sqrt())


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("kind", [PGD, APGD])
def test_one_gradient_that_is_nan_does_not_stop_the_others(
    kind: type[PGD | APGD], norm: str, images: Tensor
) -> None:
    weight = torch.randn(3, 8, 8, generator=generator())
    weight[0, 0, 0] = 0
    rooted = Rooted(weight)
    (gradient,) = torch.autograd.grad(rooted(images.requires_grad_()).score.sum(), images)
    assert gradient[:, 0, 0, 0].isnan().all()
    attack = kind(image_score, ball=BALLS[norm], steps=30)
    images = images.detach()
    (attacked,) = attack(rooted, images, LABELS, MASKS, eps=[0.1], generator=generator())
    worst = torch.where(
        LABELS, rooted.lowest_score(images, 0.1, norm), rooted.highest_score(images, 0.1, norm)
    )
    torch.testing.assert_close(rooted(attacked).score, worst, atol=1e-3, rtol=0)
