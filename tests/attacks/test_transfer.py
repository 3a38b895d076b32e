import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.transfer import Resized, Transfer

LABELS = torch.tensor([True, False, True, False])
MASKS = torch.zeros(4, 8, 8)
EPS = [1 / 255, 4 / 255]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def random_linear(seed: int, size: int = 8) -> Linear:
    return Linear(torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed)))


class Opaque(Linear):
    """A detector that cannot be differentiated."""

    def forward(self, images: Tensor):
        return type(super().forward(images))(*(part.detach() for part in super().forward(images)))


def value(target: Linear, images: Tensor) -> Tensor:
    return image_score(target.inspect(images), LABELS, MASKS)


def test_lies_between_the_image_and_a_white_box_attack(images: Tensor) -> None:
    target = random_linear(0)
    source = Linear(target.weight.detach() + 0.7 * random_linear(1).weight.detach())
    white = PGD(image_score, steps=10)(target, images, LABELS, MASKS, eps=EPS)
    black = Transfer(image_score, source=source, steps=10)(target, images, LABELS, MASKS, eps=EPS)
    for eps, strong, weak in zip(EPS, white, black, strict=True):
        assert (value(target, images) < value(target, weak)).all()
        assert (value(target, weak) < value(target, strong)).all()
        assert (weak - images).abs().max() <= eps * (1 + 1e-6)


def test_from_the_target_itself_it_is_the_white_box_attack(images: Tensor) -> None:
    target = random_linear(0)
    (attacked,) = Transfer(image_score, source=target, steps=10)(
        Opaque(target.weight.detach()), images, LABELS, MASKS, eps=[EPS[1]]
    )
    expected = torch.where(
        LABELS, -target.lowest_score(images, EPS[1]), target.highest_score(images, EPS[1])
    )
    torch.testing.assert_close(value(target, attacked), expected, atol=1e-4, rtol=0)


def test_keeps_the_image_where_the_crafted_one_is_worse_on_the_target(images: Tensor) -> None:
    target = random_linear(0)
    attack = Transfer(image_score, source=Linear(-target.weight.detach()), steps=2)
    (attacked,) = attack(target, images, LABELS, MASKS, eps=EPS[:1])
    assert torch.equal(attacked, images)


def test_a_source_of_another_size_is_attacked_in_the_ball_of_the_images(images: Tensor) -> None:
    coarse = random_linear(2, size=4)
    source = Resized(coarse, (4, 4))
    assert source(images).anomaly_map.shape == (4, 8, 8)
    wide = Resized(random_linear(2), (8, 8))
    assert wide(images[:, :, :5]).anomaly_map.shape == (4, 5, 8)
    # Every 2x2 block of the target sees the weight of the source's pixel.
    target = Linear(coarse.weight.detach().repeat_interleave(2, 1).repeat_interleave(2, 2))
    attack = Transfer(image_score, source=source, steps=10)
    (attacked,) = attack(target, images, LABELS, MASKS, eps=EPS[1:])
    assert (attacked - images).abs().max() <= EPS[1] * (1 + 1e-6)
    assert (value(target, attacked) > value(target, images)).all()
