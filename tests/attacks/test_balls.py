import pytest
import torch
from torch import Tensor

from patchguard.attacks.balls import BALLS, NormBall

BALL = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
EPS = {"linf": [0.01, 0.2, 2.0], "l2": [0.1, 1.0, 30.0], "l1": [0.2, 5.0, 500.0]}
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    """Some values on the box."""
    images = torch.rand(4, 3, 8, 8, generator=generator())
    images[:, :, 0] = 0.0
    images[:, :, 1] = 1.0
    return images


def length(perturbation: Tensor, ball: NormBall) -> Tensor:
    return perturbation.double().flatten(1).norm(ORDER[ball.name], dim=1)


def assert_inside(attacked: Tensor, images: Tensor, ball: NormBall, eps: float) -> None:
    assert (length(attacked - images, ball) <= eps * (1 + 1e-6)).all()
    assert attacked.min() >= 0
    assert attacked.max() <= 1


@BALL
def test_size_is_the_norm(ball: NormBall, images: Tensor) -> None:
    torch.testing.assert_close(ball.size(images - 0.5).double(), length(images - 0.5, ball))


@BALL
@pytest.mark.parametrize("spread", [1e-4, 0.1, 100.0])
def test_projections_are_inside_and_no_point_inside_is_nearer(
    ball: NormBall, images: Tensor, spread: float
) -> None:
    """The projection p of y is the point with (y - p).(z - p) <= 0 for all z inside."""
    wanted = images + spread * torch.randn(images.shape, generator=generator(1))
    for eps in EPS[ball.name]:
        nearest = ball.project(wanted, images, eps)
        assert_inside(nearest, images, ball, eps)
        away = (wanted - nearest).double().flatten(1)
        # What is inside and furthest along `away` is as good a witness as all points together.
        corner = images + ball.step(away.float().view_as(images), images, eps)
        for other in (
            ball.project(corner, images, eps),
            ball.random(images, eps, generator(2)),
            images,
        ):
            cosine = away * (other - nearest).double().flatten(1)
            assert (cosine.sum(1) <= 1e-5 * (1 + spread) * (1 + eps)).all()


@BALL
def test_points_inside_are_left_where_they_are(ball: NormBall, images: Tensor) -> None:
    for eps in EPS[ball.name]:
        inside = ball.random(images, 0.9 * eps, generator())
        torch.testing.assert_close(ball.project(inside, images, eps), inside, atol=2e-7, rtol=0)


@BALL
def test_a_large_dense_perturbation_of_photo_size_stays_in_the_ball(ball: NormBall) -> None:
    """Rounding of 150528 tiny changes must not add up."""
    images = torch.rand(1, 3, 224, 224, generator=generator())
    eps = EPS[ball.name][0]
    attacked = ball.random(images, 2 * eps, generator(1))
    for _ in range(3):
        attacked = ball.project(attacked, images, eps)
        assert_inside(attacked, images, ball, eps)


@pytest.mark.parametrize("eps", [1 / 255, 2 / 255, 8 / 255, 0.1])
def test_the_change_of_an_8_bit_image_is_at_most_eps_in_float32(eps: float) -> None:
    """An image ± eps, rounded to float32, is further away for some of the 256 values."""
    values = torch.arange(256) / 255
    images = values.view(1, 1, 16, 16).expand(2, 3, 16, 16)
    ways = torch.tensor([-1.0, 1.0])[:, None, None, None]
    rounded = (images + ways * eps).clamp(0, 1)
    assert ((rounded - images).abs() > eps).any()
    corner = BALLS["linf"].project(images + ways, images, eps)
    assert ((corner - images).abs() <= eps).all()
    torch.testing.assert_close(corner, rounded, atol=1e-7, rtol=0)
    assert torch.equal(BALLS["linf"].project(corner, images, eps), corner)


@BALL
def test_random_points_are_inside_and_differ_between_images(ball: NormBall, images: Tensor) -> None:
    for eps in EPS[ball.name]:
        points = ball.random(images, eps, generator(3))
        assert_inside(points, images, ball, eps)
    same = torch.full((2, 3, 8, 8), 0.5)
    first, second = ball.random(same, EPS[ball.name][0], generator(3)) - same
    assert not torch.equal(first, second)
    # Most of the volume of a ball is near its surface.
    assert ball.size(first[None]) > 0.9 * EPS[ball.name][0]


@BALL
def test_steps_have_the_length_asked_for_and_the_largest_growth(ball: NormBall) -> None:
    """Hoelder: the growth is the length times the dual norm of the gradient."""
    grey = torch.full((4, 3, 8, 8), 0.5)
    gradient = torch.randn(grey.shape, generator=generator(4))
    gradient[3] *= 1e-30
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[ball.name]
    for stride in (0.1, torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1, 1)):
        step = ball.step(gradient, grey, stride)
        lengths = torch.as_tensor(stride).double().flatten().expand(4)
        torch.testing.assert_close(length(step, ball), lengths, rtol=1e-5, atol=0)
        growth = (step * gradient).double().sum((1, 2, 3))
        expected = lengths * gradient.double().flatten(1).norm(dual, dim=1)
        torch.testing.assert_close(growth, expected, rtol=1e-5, atol=0)


@BALL
def test_nothing_moves_where_the_gradient_is_zero(ball: NormBall, images: Tensor) -> None:
    still = torch.zeros_like(images)
    assert torch.equal(ball.step(still, images, 0.1), still)
    assert torch.equal(ball.reach(still, images, torch.ones(len(images))), still)


@BALL
def test_the_reach_gains_what_is_asked_for_with_the_shortest_step(
    ball: NormBall, images: Tensor
) -> None:
    """Any point inside a ball of that length gains no more."""
    gradient = torch.randn(images.shape, generator=generator(5))
    gradient[1] *= 1e-25
    for share in (1e-3, 0.1, 0.9):
        room = torch.where(gradient > 0, 1 - images, images)
        gain = share * (gradient.abs() * room).sum((1, 2, 3))
        step = ball.reach(gradient, images, gain)
        assert (images + step).min() >= -1e-6
        assert (images + step).max() <= 1 + 1e-6
        gained = (gradient * step).double().sum((1, 2, 3))
        torch.testing.assert_close(gained, gain.double(), rtol=1e-5, atol=0)
        for index in range(len(images)):
            one = slice(index, index + 1)
            size = float(ball.size(step[one]))
            rival = images[one]
            for _ in range(30):
                pushed = rival + ball.step(gradient[one], rival, size)
                rival = ball.project(pushed, images[one], size)
            rivals = ((rival - images[one]) * gradient[one]).double().sum()
            # The smallest radius here is 6e-4, of which linf gives 2^-24 away to rounding.
            torch.testing.assert_close(gained[index], rivals, rtol=2e-4, atol=0)


@BALL
def test_the_reach_goes_all_the_way_where_the_box_is_too_small(
    ball: NormBall, images: Tensor
) -> None:
    gradient = torch.randn(images.shape, generator=generator(6))
    step = ball.reach(gradient, images, torch.full((len(images),), 1e9))
    torch.testing.assert_close(images + step, (gradient > 0).float())
