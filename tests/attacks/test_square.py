import torch
from torch import Tensor

from attack_batch import attacked, gained, generator, most
from detectors import Linear
from patchguard.attacks.attack import at_image
from patchguard.attacks.objectives import image_score
from patchguard.attacks.square import Square, squares
from patchguard.detector import Inspection

EPS = [2 / 255, 8 / 255]


def test_comes_within_five_percent_of_the_closed_form_with_its_default_queries(
    linear: Linear, images: Tensor
) -> None:
    for eps in EPS:
        found = attacked(Square(image_score), linear, images, eps)
        reached = gained(linear, found, images) / most(linear, images, eps)
        assert (reached > 0.95).all()
        assert (reached <= 1 + 1e-5).all()


def test_needs_no_gradient_and_costs_its_queries(images: Tensor) -> None:
    passes = []

    class Rounded(Linear):
        def forward(self, images: Tensor):
            passes.append(len(images))
            detection = super().forward((images * 255).round() / 255)
            return detection._replace(score=detection.score.detach())

    rounded = Rounded(torch.ones(3, 8, 8))
    found = attacked(Square(image_score, queries=60), rounded, images, 8 / 255)
    assert passes == [len(images)] * 61  # and the image itself
    assert (gained(rounded, found, images) > 0).all()


def proposals(attack: Square, images: Tensor, eps: float) -> Tensor:
    """What each query changes of the first one: [queries, B, H, W], a number for each colour."""
    seen: list[Tensor] = []

    def constant(shown: Inspection, labels: Tensor, masks: Tensor, progress: float) -> Tensor:
        seen.append(shown.anomaly_map)
        return 0 * shown.score

    channels = Linear(torch.tensor([1.0, 2.0, 4.0])[:, None, None])
    labels, masks = torch.zeros(len(images), dtype=torch.bool), torch.zeros_like(images[:, 0])
    attack.objective = attack.judge = constant
    attack(channels, images, labels, masks, eps=[eps], generator=generator())
    _, first, *others = seen
    return ((torch.stack(others) - first) / eps).round()


def test_every_image_has_its_own_squares_and_colours() -> None:
    twins = torch.full((2, 3, 16, 16), 0.5)
    attack = Square(image_score, queries=20, starts=[at_image])
    _, *changes = proposals(attack, twins, 0.1)
    places = [[change != 0 for change in pair] for pair in changes]
    colours = [[change[change != 0].unique().tolist() for change in pair] for pair in changes]
    assert any(not torch.equal(*pair) for pair in places)
    assert all(len(colour) == 1 for pair in colours for colour in pair)
    assert any(one != other for one, other in colours)


def test_no_query_is_spent_on_the_image_as_it_is() -> None:
    """The first image lies at corners of the ball, where one in eight squares changes nothing."""
    images = torch.full((8, 3, 8, 8), 0.5)
    _, *changes = proposals(Square(image_score, queries=60), images, 0.1)
    assert all((change != 0).flatten(1).any(1).all() for change in changes)


def test_a_square_is_inside_the_image_and_reaches_all_of_it() -> None:
    inside = squares(torch.zeros(500, 3, 5, 7), 3, generator())
    assert inside.shape == (500, 1, 5, 7)
    assert (inside.sum((1, 2, 3)) == 9).all()
    assert inside.any(0).all()


def test_squares_shrink_from_most_of_the_image_to_a_pixel() -> None:
    attack = Square(image_score)
    sides = [attack._side(progress / 100, (32, 32)) for progress in range(100)]
    assert sides[0] == 29
    assert sides[-1] == 1
    assert sides == sorted(sides, reverse=True)
