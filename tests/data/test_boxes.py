"""Windows of images in training, and the whole squeezed into one."""

import numpy as np
import pytest
import torch

from patchguard.data.windows import (
    WHOLE_PLACE,
    Box,
    box_around,
    place_of,
    squeezed,
    squeezed_image,
    squeezed_mask,
)


def drawn(mask: np.ndarray, side: int, count: int = 200, **settings: float) -> list[Box]:
    rng = np.random.default_rng(0)
    return [box_around(mask, side, rng, **settings) for _ in range(count)]


def test_a_box_is_what_of_an_image_lies_in_it() -> None:
    image = np.arange(60).reshape(6, 10)
    assert np.array_equal(Box(1, 2, 3, 4).of(image), image[1:4, 2:6])


def test_a_box_shows_what_is_marked_near_its_middle() -> None:
    mask = np.zeros((100, 150), dtype=bool)
    mask[40, 60] = True
    boxes = drawn(mask, 32)
    assert {(box.height, box.width) for box in boxes} == {(32, 32)}
    down, across = np.transpose([(40 - box.top, 60 - box.left) for box in boxes])
    for offset in (down, across):
        assert (offset >= 8).all() and (offset < 24).all()
        assert len(set(offset.tolist())) == 16


@pytest.mark.parametrize("pixel", [(0, 0), (99, 149), (2, 148)])
def test_near_an_edge_the_box_stays_in_the_image_and_shows_the_pixel(
    pixel: tuple[int, int],
) -> None:
    mask = np.zeros((100, 150), dtype=bool)
    mask[pixel] = True
    for box in drawn(mask, 32):
        assert box.of(mask).shape == (32, 32)
        assert box.of(mask).any()


def test_boxes_go_to_every_part_of_what_is_marked() -> None:
    mask = np.zeros((64, 640), dtype=bool)
    mask[20:40, 10:30] = mask[20:40, 600:620] = True
    left = [box.left < 320 for box in drawn(mask, 32)]
    assert 0.35 < np.mean(left) < 0.65
    assert all(box.of(mask).any() for box in drawn(mask, 32))


def test_without_a_mark_or_when_told_boxes_lie_anywhere() -> None:
    nothing, corner = np.zeros((100, 150), dtype=bool), np.zeros((100, 150), dtype=bool)
    corner[:4, :4] = True
    for boxes in (drawn(nothing, 32), drawn(corner, 32, anywhere=1.0)):
        begins = np.array([(box.top, box.left) for box in boxes])
        assert (begins.min(0) < 12).all()
        assert begins[:, 0].max() > 56 and begins[:, 1].max() > 106
    shown = [box.of(corner).any() for box in drawn(corner, 32, anywhere=0.5)]
    assert 0.4 < np.mean(shown) < 0.65


def test_a_box_is_no_larger_than_the_image() -> None:
    mask = np.ones((20, 100), dtype=bool)
    boxes = drawn(mask, 32)
    assert {(box.top, box.height, box.width) for box in boxes} == {(0, 20, 32)}


def test_a_place_is_in_fractions_of_the_image() -> None:
    assert place_of(Box(10, 50, 20, 40), (100, 200)) == (0.1, 0.25, 0.2, 0.2)
    assert place_of(Box(0, 0, 30, 70), (30, 70)) == WHOLE_PLACE


def test_squeezing_averages_what_is_finer_than_a_pixel_and_is_differentiable() -> None:
    board = (torch.arange(96)[:, None] + torch.arange(160)) % 2
    images = board.float().expand(1, 3, 96, 160).clone().requires_grad_()
    small = squeezed(images, 32)
    assert small.shape == (1, 3, 32, 32)
    torch.testing.assert_close(small, torch.full_like(small, 0.5), atol=0.06, rtol=0)
    (gradient,) = torch.autograd.grad(small.sum(), images)
    assert (gradient > 0).all()


def test_what_has_the_size_already_is_left_alone() -> None:
    images = torch.rand(1, 3, 32, 32)
    assert squeezed(images, 32) is images


def test_an_image_of_a_data_set_is_squeezed_as_the_detector_squeezes_it() -> None:
    image = np.random.default_rng(0).random((50, 80, 3), dtype=np.float32)
    expected = squeezed(torch.from_numpy(image).permute(2, 0, 1)[None], 32)[0]
    found = squeezed_image(image, 32)
    assert found.shape == (32, 32, 3) and found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("shape", [(100, 150), (20, 30)])
def test_a_squeezed_mask_loses_no_pixel_and_adds_no_far_one(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, dtype=bool)
    assert not squeezed_mask(mask, 32).any()
    mask[13, 17] = True
    found = squeezed_mask(mask, 32)
    assert found.shape == (32, 32) and found.dtype == np.bool_
    assert found[int(13.5 / shape[0] * 32), int(17.5 / shape[1] * 32)]
    assert found.sum() <= 9
