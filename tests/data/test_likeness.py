"""Changes of normal images go as far as the normal images differ, and no further."""

from dataclasses import replace

import numpy as np
import pytest

from patchguard.config import DataConfig, VariationConfig
from patchguard.data.likeness import MOST_IMAGES, boxes_on, suited
from patchguard.data.windows import Box
from patchguard.errors import PatchGuardError

ASKED = VariationConfig(rotation=20, zoom=0.1, shift=0.1, contrast=0.1, brightness=0.1)


def arrows(angle: float, seed: int = 0) -> list[np.ndarray]:
    """Pictures of an arrow that points right, turned by up to ``angle`` degrees, with noise."""
    rng = np.random.default_rng(seed)
    down, right = (np.mgrid[:48, :48] - 23.5) / 24
    pictures = []
    for turn in np.radians(rng.uniform(-angle, angle, 24)):
        along = np.cos(turn) * right + np.sin(turn) * down
        across = np.cos(turn) * down - np.sin(turn) * right
        arrow = (np.abs(along) < 0.7) & (np.abs(across) < 0.35 * (0.7 - along))
        noise = rng.normal(0, 0.02, (48, 48, 1))
        picture = np.clip(0.2 + 0.6 * arrow[..., None] + noise, 0, 1).repeat(3, axis=2)
        pictures.append(picture.astype(np.float32))
    return pictures


def asked(stray: float) -> DataConfig:
    return DataConfig(variation=ASKED, stray=stray)


def test_parts_that_lie_alike_are_hardly_turned_and_those_that_lie_anyhow_are() -> None:
    asked = DataConfig(variation=VariationConfig(rotation=20, zoom=0.05), stray=1.25)
    alike, anyhow = (suited(asked, arrows(angle)).variation for angle in (1, 180))
    assert alike.rotation < 3 < 10 < anyhow.rotation
    assert anyhow.rotation == pytest.approx(400 * anyhow.zoom, abs=0.4)


def test_light_is_judged_apart_from_movement() -> None:
    asked = DataConfig(variation=VariationConfig(rotation=5, contrast=1), stray=1.25)
    found = suited(asked, arrows(180)).variation
    assert found.rotation == 5 and found.contrast < 0.7


def test_flips_that_make_what_is_never_seen_are_left_out() -> None:
    # An arrow upside down is an arrow; one that points left is not, but where some do it is.
    pointing = arrows(10)
    assert suited(asked(1.25), pointing).flips == ["vertical"]
    either = [np.flip(each, 1) if n % 2 else each for n, each in enumerate(pointing)]
    assert "horizontal" in suited(asked(1.25), either).flips


def test_flips_that_are_not_asked_for_are_not_added() -> None:
    config = replace(asked(1.25), flips=["horizontal"])
    assert suited(config, arrows(10)).flips == []
    assert suited(replace(config, flips=["vertical"]), arrows(10)).flips == ["vertical"]


def test_images_that_differ_in_everything_may_be_changed_as_asked() -> None:
    rng = np.random.default_rng(0)
    images = [rng.random((48, 48, 3), dtype=np.float32) for _ in range(8)]
    assert suited(asked(1.25), images) == asked(1.25)


def test_what_a_turn_does_is_judged_at_the_aspect_ratio_of_the_images() -> None:
    # Squashed, a turned arrow would be sheared, and like no other.
    wide = [np.pad(each, ((0, 0), (72, 72), (0, 0)), constant_values=0.2) for each in arrows(180)]
    config = DataConfig(variation=VariationConfig(rotation=20), stray=1.25)
    assert suited(config, wide).variation.rotation > 10


def test_each_image_is_judged_beside_its_like() -> None:
    # Noise is far from everything, which makes no room for arrows that all point the same way.
    rng = np.random.default_rng(0)
    noise = [rng.random((48, 48, 3), dtype=np.float32) for _ in range(15)]
    assert suited(asked(1.25), [*arrows(1), *noise]).flips == ["vertical"]
    assert suited(asked(1.25), [*arrows(1), *noise]).variation.rotation < 3


def test_equal_images_count_once() -> None:
    once = arrows(40)
    assert suited(asked(1.25), [*once, *once]) == suited(asked(1.25), once) != asked(1.25)


def test_of_few_images_nothing_is_said() -> None:
    assert suited(asked(1), arrows(1)[:3]) == asked(1)
    assert suited(asked(1), arrows(1)[:1] * 9) == asked(1)
    assert suited(asked(1), arrows(1)[:4]) != asked(1)


def test_of_many_images_some_from_everywhere_are_compared() -> None:
    # The last third points the other way: without it left and right could not be exchanged.
    mixed = [*arrows(5, 1), *arrows(5, 2), *(np.flip(each, 1) for each in arrows(5, 3))]
    assert len(mixed) > MOST_IMAGES
    assert suited(asked(1.25), mixed).flips == ["vertical", "horizontal"]


LEFT, RIGHT = Box(0, 0, 48, 48), Box(0, 96, 48, 48)


def beside(left: list[np.ndarray], right: list[np.ndarray]) -> list[np.ndarray]:
    """Wide images of one thing on the left and another on the right."""
    middle = np.full((48, 48, 3), 0.2, np.float32)
    return [np.concatenate([one, middle, other], 1) for one, other in zip(left, right, strict=True)]


def test_what_windows_show_decides_how_far_they_may_be_varied() -> None:
    rng = np.random.default_rng(1)
    steady = arrows(1)
    flickering = [np.clip(each + rng.uniform(-0.2, 0.2), 0, 1) for each in arrows(1, 2)]
    images = beside(steady, [each.astype(np.float32) for each in flickering])
    config = DataConfig(flips=[], variation=VariationConfig(brightness=0.1), stray=1.25)
    found = [suited(config, images, boxes).variation for boxes in ([LEFT], [RIGHT], [LEFT, RIGHT])]
    assert found[0].brightness < 0.05 < found[1].brightness
    # What suits one place must suit all the others too.
    assert found[2].brightness == found[0].brightness


def test_a_flip_shows_a_window_what_lies_on_the_other_side() -> None:
    config = DataConfig(flips=["horizontal"], stray=1.25)
    nothing = [np.full((48, 48, 3), 0.2, np.float32) for _ in range(24)]
    either = [np.flip(each, 1) if n % 2 else each for n, each in enumerate(arrows(10))]
    assert suited(config, beside(either, either), [LEFT, RIGHT]).flips == ["horizontal"]
    assert suited(config, beside(either, nothing), [LEFT]).flips == []


def test_windows_are_compared_where_the_objects_are() -> None:
    foregrounds = np.zeros((10, 100, 200), dtype=bool)
    foregrounds[:, 70:90, 150:180] = True
    boxes = boxes_on(foregrounds, 64)
    assert len(boxes) > 1
    for box in boxes:
        assert (box.height, box.width) == (64, 64)
        assert box.of(foregrounds[0]).any() and box.of(foregrounds[0]).shape == (64, 64)
    assert boxes == boxes_on(foregrounds, 64)
    assert {(box.height, box.width) for box in boxes_on(foregrounds, 128)} == {(100, 128)}


def test_without_a_bound_everything_is_taken() -> None:
    assert suited(asked(0), arrows(1)) == asked(0)


def test_the_same_images_allow_the_same_every_time() -> None:
    assert suited(asked(1.25), arrows(10)) == suited(asked(1.25), arrows(10))


@pytest.mark.parametrize("stray", [0.9, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_none_is_refused(stray: float) -> None:
    with pytest.raises(PatchGuardError, match=r"data\.stray"):
        asked(stray)


def test_a_flip_named_twice_is_refused() -> None:
    with pytest.raises(PatchGuardError, match=r"data\.flips"):
        DataConfig(flips=["vertical", "vertical"])


def test_images_that_are_the_same_in_a_place_leave_no_room_for_a_change_there() -> None:
    # All black in the corner but for one spot, which a flip takes elsewhere.
    pictures = [each.copy() for each in arrows(10)]
    for picture in pictures:
        picture[:12, :12] = 0
        picture[2:5, 2:5] = 1
    box = Box(0, 0, 12, 12)
    assert suited(asked(1.25), pictures, [box]).flips == []
