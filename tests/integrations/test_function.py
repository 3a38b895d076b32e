import pytest
import torch
from torch import Tensor, nn

from detectors import Linear
from patchguard.attacks.attack import NotDifferentiable
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.errors import PatchGuardError
from patchguard.integrations.function import FunctionDetector


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_pair_is_taken_as_score_and_map(images: Tensor) -> None:
    score, anomaly_map = FunctionDetector(lambda x: (x.mean((1, 2, 3)), x.mean(1)))(images)
    torch.testing.assert_close(score, images.mean((1, 2, 3)))
    torch.testing.assert_close(anomaly_map, images.mean(1))


def test_the_score_of_a_map_alone_is_its_maximum(images: Tensor) -> None:
    score, anomaly_map = FunctionDetector(lambda x: x.mean(1))(images)
    torch.testing.assert_close(anomaly_map, images.mean(1))
    torch.testing.assert_close(score, images.mean(1).amax((1, 2)))


def test_the_map_of_a_score_alone_is_the_score_at_every_pixel(images: Tensor) -> None:
    score, anomaly_map = FunctionDetector(lambda x: x.mean((1, 2, 3)))(images)
    assert anomaly_map.shape == (4, 8, 8)
    assert (anomaly_map == score[:, None, None]).all()


def test_a_coarse_map_is_brought_to_the_size_of_the_images(images: Tensor) -> None:
    def coarse(x: Tensor) -> tuple[Tensor, Tensor]:
        grey = x.mean(1, keepdim=True)
        return grey.flatten(1).mean(1, keepdim=True), nn.functional.avg_pool2d(grey, 4)

    score, anomaly_map = FunctionDetector(coarse)(images)
    assert score.shape == (4,)
    assert anomaly_map.shape == (4, 8, 8)
    pooled = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)[:, 0]
    torch.testing.assert_close(anomaly_map[:, 0, 0], pooled[:, 0, 0])
    torch.testing.assert_close(anomaly_map[:, -1, -1], pooled[:, 1, 1])


def test_half_precision_becomes_float32(images: Tensor) -> None:
    score, anomaly_map = FunctionDetector(lambda x: x.mean(1).half())(images)
    assert score.dtype == anomaly_map.dtype == torch.float32


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (torch.zeros(3), r"score is a tensor of shape \[3\]; for 4 images .* \[4\]"),
        (torch.zeros(4, 2), "score is a tensor"),
        (torch.tensor(1.0), r"score is a tensor of shape \[\]"),
        (torch.zeros(4, 2, 8, 8), r"map is a tensor of shape \[4, 2, 8, 8\]"),
        ((torch.zeros(4), torch.zeros(3, 8, 8)), "map is a tensor"),
        ((0.5, torch.zeros(4, 8, 8)), "score is of type float"),
        ((None, None), "neither a score nor a map"),
        ((torch.zeros(4),) * 3, "a tuple of 3"),
        ([0.1, 0.2, 0.3, 0.4], "a list of 4"),
        ({"score": torch.zeros(4)}, "of type dict"),
    ],
)
def test_another_output_is_refused_in_one_line(
    images: Tensor, output: object, complaint: str
) -> None:
    with pytest.raises(PatchGuardError, match=complaint) as error:
        FunctionDetector(lambda x: output)(images)
    assert "\n" not in str(error.value)


def test_images_of_another_size_are_refused(images: Tensor) -> None:
    with pytest.raises(PatchGuardError, match=r"8x8 px .* given to a detector of 16x16 px"):
        FunctionDetector(lambda x: x.mean(1), image_size=16)(images)


def test_a_size_may_be_a_height_and_a_width() -> None:
    detector = FunctionDetector(lambda x: x.mean(1), image_size=(8, 12))
    assert detector(torch.rand(2, 3, 8, 12)).anomaly_map.shape == (2, 8, 12)
    with pytest.raises(PatchGuardError, match=r"12x8 px .* given to a detector of 8x12 px"):
        detector(torch.rand(2, 3, 12, 8))


@pytest.mark.parametrize("size", [0, (8, 0), (8,), (8, 8, 3), 8.0, "8", torch.ones(2, 2)], ids=str)
def test_a_size_that_is_none_is_refused_in_one_line(size: object) -> None:
    with pytest.raises(PatchGuardError, match="give height and width in pixels") as error:
        FunctionDetector(lambda x: x.mean(1), image_size=size)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_an_attack_finds_the_closed_form_worst_score_through_the_wrapper(images: Tensor) -> None:
    linear = Linear(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)))
    wrapped = FunctionDetector(lambda x: linear(x).score)
    labels = torch.tensor([True, False, True, False])
    (attacked,) = PGD(image_score)(wrapped, images, labels, torch.zeros(4, 8, 8), eps=[4 / 255])
    worst = torch.where(
        labels, linear.lowest_score(images, 4 / 255), linear.highest_score(images, 4 / 255)
    )
    torch.testing.assert_close(wrapped(attacked).score, worst, atol=1e-4, rtol=0)


def test_a_network_is_part_of_the_detector(images: Tensor) -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Dropout(0.5))
    wrapped = FunctionDetector(network).eval()
    assert not network.training
    assert torch.equal(wrapped(images).score, wrapped(images).score)
    assert set(wrapped.parameters()) == set(network.parameters())


def test_attacks_by_gradients_say_that_a_function_has_none(images: Tensor) -> None:
    wrapped = FunctionDetector(lambda x: x.detach().mean(1))
    labels = torch.zeros(4, dtype=torch.bool)
    with pytest.raises(NotDifferentiable):
        PGD(image_score)(wrapped, images, labels, torch.zeros(4, 8, 8), eps=[0.1])
