from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attack_batch import LABELS, MASKS, attacked, gained, most
from detectors import Linear, Network
from patchguard.attacks.apgd import APGD
from patchguard.attacks.attack import Attack, at_image, uniform
from patchguard.attacks.balls import BALLS, Ball
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.detector import Inspection

EPS = {"linf": [2 / 255, 0.1], "l2": [0.1, 0.5, 2.0], "l1": [0.3, 2.0, 12.0]}

ATTACKS: dict[str, Callable[[Ball], Attack]] = {
    "pgd": lambda ball: PGD(image_score, ball=ball),
    "pgd-from-image": lambda ball: PGD(image_score, ball=ball, starts=[at_image]),
    "pgd-100": lambda ball: PGD(image_score, ball=ball, steps=100),
    "apgd": lambda ball: APGD(image_score, ball=ball, steps=50),
    "apgd-from-image": lambda ball: APGD(image_score, ball=ball, steps=50, starts=[at_image]),
    "apgd-radii": lambda ball: APGD(image_score, ball=ball, radii=[2, 1.5, 1]),
}


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ATTACKS)
def test_white_box_attacks_reach_the_worst_score_of_a_linear_detector(
    linear: Linear, images: Tensor, name: str, norm: str
) -> None:
    attack = ATTACKS[name](BALLS[norm])
    for eps in EPS[norm]:
        reached = gained(linear, attacked(attack, linear, images, eps), images)
        torch.testing.assert_close(reached, most(linear, images, eps, norm), atol=1e-4, rtol=0)


@pytest.mark.parametrize("radii", [(1.0,), (2, 1.5, 1)], ids=str)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_it_costs_as_many_gradient_passes_as_steps(
    linear: Linear, images: Tensor, steps: int, radii: tuple[float, ...]
) -> None:
    progress = []

    def objective(seen: Inspection, labels: Tensor, masks: Tensor, done: float) -> Tensor:
        progress.append(done)
        return image_score(seen, labels, masks)

    attack = APGD(objective, judge=image_score, steps=steps, radii=radii, starts=[uniform] * 2)
    attack(linear, images, LABELS, MASKS, eps=[0.1])
    assert progress == [step / steps for _ in range(2) for step in range(steps)]


def test_the_judge_decides_which_image_is_best(images: Tensor) -> None:
    """The objective may even lead the wrong way, as this one does from half-way on."""
    network = Network().eval()
    judged: list[Tensor] = []

    def misleading(seen: Inspection, labels: Tensor, masks: Tensor, done: float) -> Tensor:
        return (1 if done < 0.5 else -1) * image_score(seen, labels, masks)

    def judge(seen: Inspection, labels: Tensor, masks: Tensor, done: float) -> Tensor:
        judged.append(image_score(seen, labels, masks).detach())
        return judged[-1]

    attack = APGD(misleading, judge=judge, steps=10)
    found = attacked(attack, network, images, 0.1)
    clean, *on_the_way = judged
    reached = image_score(network.inspect(found), LABELS, MASKS)
    assert (reached > clean).all()
    torch.testing.assert_close(reached, torch.stack(on_the_way).amax(0))
    assert (on_the_way[-1] < reached).all()
