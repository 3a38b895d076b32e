"""What holds by the template beside what every attack is tested for: sweeps and odd gradients."""

import pytest
import torch
from torch import Tensor

from attack_batch import LABELS, MASKS, attacked, gained, generator, most, random_linear
from detectors import Linear, Wave
from patchguard.attacks import APGD, PGD, Attack, SimBA, Square
from patchguard.attacks.balls import BALLS
from patchguard.attacks.objectives import image_score
from patchguard.detector import Detection

SMALL, LARGE = 1 / 255, 16 / 255


@pytest.fixture
def wave() -> Wave:
    return Wave(random_linear().weight.detach())


@pytest.mark.parametrize(
    "attack",
    [
        PGD(image_score, steps=2),
        APGD(image_score, steps=2),
        APGD(image_score, steps=4, radii=[2, 1]),
        Square(image_score, queries=3),
        SimBA(image_score, queries=3),
    ],
    ids=["pgd", "apgd", "apgd radii", "square", "simba"],
)
def test_a_warm_start_saves_what_a_weak_attack_would_miss(
    attack: Attack, wave: Wave, images: Tensor
) -> None:
    warm = attacked(PGD(image_score, steps=20), wave, images, SMALL)
    cold = attacked(attack, wave, images, LARGE)
    assert (gained(wave, cold, images) < gained(wave, warm, images)).any()
    (found,) = attack(wave, images, LABELS, MASKS, eps=[LARGE], generator=generator(), warm=warm)
    assert (gained(wave, found, images) >= gained(wave, warm, images)).all()


def test_a_sweep_goes_on_as_from_a_warm_start(wave: Wave, images: Tensor) -> None:
    attack = APGD(image_score, steps=5)
    small, large = attack(wave, images, LABELS, MASKS, eps=[SMALL, LARGE], generator=generator())
    (alone,) = attack(wave, images, LABELS, MASKS, eps=[LARGE], warm=small)
    assert torch.equal(large, alone)


class Rooted(Linear):
    """Without a gradient at the first value, where the root of 0 has none."""

    def forward(self, images: Tensor) -> Detection:
        plain = super().forward(images)
        return plain._replace(score=plain.score + (0 * images[:, 0, 0, 0]).sqrt())


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("kind", [PGD, APGD])
def test_one_gradient_that_is_nan_does_not_stop_the_others(
    kind: type[PGD | APGD], norm: str, images: Tensor
) -> None:
    weight = random_linear().weight.detach()
    weight[0, 0, 0] = 0
    rooted = Rooted(weight)
    (gradient,) = torch.autograd.grad(rooted(images.requires_grad_()).score.sum(), images)
    assert gradient[:, 0, 0, 0].isnan().all()
    images = images.detach()
    found = attacked(kind(image_score, ball=BALLS[norm], steps=30), rooted, images, 0.1)
    torch.testing.assert_close(
        gained(rooted, found, images), most(rooted, images, 0.1, norm), atol=1e-3, rtol=0
    )
