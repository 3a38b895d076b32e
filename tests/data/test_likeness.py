"""Changes of normal images go as far as the normal images differ, and no further."""

import numpy as np
import pytest

from patchguard.config import DataConfig, VariationConfig
from patchguard.data.likeness import suited
from patchguard.errors import PatchGuardError

ASKED = VariationConfig(rotation=20, zoom=0.1, shift=0.1, contrast=0.1, brightness=0.1)


def arrows(angle: float, seed: int = 0) -> list[np.ndarray]:
    """Pictures of an arrow that points right, turned by up to ``angle`` degrees, with noise."""
    rng = np.random.default_rng(seed)
    down, right = (np.mgrid[:48, :48] - 23.5) / 24
    pictures = []
    for turn in np.radians(rng.uniform(-angle, angle, 40)):
        along = np.cos(turn) * right + np.sin(turn) * down
        across = np.cos(turn) * down - np.sin(turn) * right
        arrow = (np.abs(along) < 0.7) & (np.abs(across) < 0.35 * (0.7 - along))
        noise = rng.normal(0, 0.02, (48, 48, 1))
        picture = np.clip(0.2 + 0.6 * arrow[..., None] + noise, 0, 1).repeat(3, axis=2)
        pictures.append(picture.astype(np.float32))
    return pictures


def asked(stray: float) -> DataConfig:
    return DataConfig(image_size=48, variation=ASKED, stray=stray)


def test_parts_that_lie_alike_are_hardly_moved() -> None:
    asked = DataConfig(image_size=48, variation=VariationConfig(rotation=20, zoom=0.05), stray=1.25)
    alike, unlike = (suited(asked, arrows(angle), 0).variation for angle in (1, 40))
    assert alike.rotation < 3 < 5 < unlike.rotation
    assert unlike.rotation == pytest.approx(400 * unlike.zoom, abs=0.4)


def test_light_is_judged_apart_from_movement() -> None:
    asked = DataConfig(image_size=48, variation=VariationConfig(rotation=5, contrast=1), stray=1.25)
    found = suited(asked, arrows(40), 0).variation
    assert found.rotation > 2 and found.contrast < 0.5


def test_flips_that_make_what_is_never_seen_are_left_out() -> None:
    # An arrow upside down is an arrow; one that points left is not, but where some do it is.
    pointing = arrows(10)
    assert suited(asked(1.25), pointing, 0).flips == ["vertical"]
    either = [np.flip(each, 1) if n % 2 else each for n, each in enumerate(pointing)]
    assert suited(asked(1.25), either, 0).flips == ["vertical", "horizontal"]


def test_images_that_differ_in_everything_may_be_changed_as_asked() -> None:
    rng = np.random.default_rng(0)
    images = [rng.random((48, 48, 3), dtype=np.float32) for _ in range(8)]
    assert suited(asked(1.25), images, 0) == asked(1.25)


def test_equal_images_are_left_alone() -> None:
    image = arrows(5)[0]
    found = suited(asked(1.25), [image] * 5, 0)
    assert (found.flips, found.variation) == ([], VariationConfig())


def test_without_a_bound_everything_is_taken() -> None:
    assert suited(asked(0), arrows(1), 0) == asked(0)


def test_the_choice_depends_on_the_images_and_the_seed_alone() -> None:
    assert suited(asked(1.25), arrows(10), 3) == suited(asked(1.25), arrows(10), 3)


def test_a_bound_below_what_nothing_changed_has_is_refused() -> None:
    with pytest.raises(PatchGuardError, match=r"data\.stray"):
        asked(0.9)
