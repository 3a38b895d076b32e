import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.eot import Averaged
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.detector import Inspection

LABELS = torch.tensor([True, False])
MASKS = torch.zeros(2, 8, 8)


class Flickering(Linear):
    """A linear score whose weights are blinded and inverted at random, in eval mode too."""

    def inspect(self, images: Tensor) -> Inspection:
        flicker = torch.randn(images.shape) + 0.5
        anomaly_map = (images * self.weight * flicker).sum(1)
        return Inspection(anomaly_map.sum((1, 2)), anomaly_map, patch_logits=anomaly_map)


def flickering() -> Flickering:
    return Flickering(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_the_mean_of_many_looks_has_less_spread() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    single, averaged = (
        torch.stack([Averaged(flickering(), samples)(images).score for _ in range(60)])
        for samples in (1, 9)
    )
    spread = averaged.std(0) / single.std(0)
    assert (spread > 0.2).all()
    assert (spread < 0.5).all()


def test_scores_maps_and_gradient_are_means_over_the_same_looks() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    detector = flickering()
    torch.manual_seed(3)
    looks = [detector.inspect(images) for _ in range(5)]
    torch.manual_seed(3)
    seen = Averaged(detector, 5).inspect(images)
    score = torch.stack([look.score for look in looks]).mean(0)
    torch.testing.assert_close(seen.score, score)
    torch.testing.assert_close(
        seen.anomaly_map, torch.stack([look.anomaly_map for look in looks]).mean(0)
    )
    torch.testing.assert_close(seen.patch_logits, seen.anomaly_map)
    assert seen.features is None
    (expected,) = torch.autograd.grad((score**2).sum(), images)
    (found,) = torch.autograd.grad((seen.score**2).sum(), images)
    torch.testing.assert_close(found, expected)


def test_an_attack_on_the_mean_is_stronger_than_on_a_single_look() -> None:
    detector = flickering()
    images = torch.full((2, 3, 8, 8), 0.5)
    sound = Linear(0.5 * detector.weight.detach())  # the expectation

    def strength(samples: int) -> Tensor:
        torch.manual_seed(5)
        attack = PGD(image_score, steps=10)
        (attacked,) = attack(Averaged(detector, samples), images, LABELS, MASKS, eps=[8 / 255])
        return image_score(sound.inspect(attacked), LABELS, MASKS)

    assert (strength(32) > strength(1)).all()
