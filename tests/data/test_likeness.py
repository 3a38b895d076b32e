"""Changes of normal images go as far as the normal images differ, and no further."""

from dataclasses import replace

import numpy as np
import pytest

from patchguard.config import DataConfig, VariationConfig
from patchguard.data.likeness import MOST_IMAGES, suited
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
    assert found.rotation > 2 and found.contrast < 0.5


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
