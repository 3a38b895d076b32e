"""Training examples that show windows of the images, and those that show the whole."""

import numpy as np
import pytest
import torch

from patchguard.config import Axis, DataConfig, VariationConfig, View
from patchguard.data.windows import WHOLE_PLACE
from patchguard.training.batches import Batch, Draw, TrainingImages

WINDOW = 32
HEIGHT, WIDTH = 160, 240


def mapped(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """An image whose first two channels say where a pixel lies, the third one left dark."""
    rows, cols = np.mgrid[:height, :width]
    return np.stack(
        [rows / height, cols / width, np.zeros((height, width))], axis=2, dtype=np.float32
    )


def corner(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A foreground in one corner of the image."""
    foreground = np.zeros((height, width), dtype=bool)
    foreground[10:40, 12:44] = True
    return foreground


def training_images(
    image: np.ndarray,
    foreground: np.ndarray,
    views: list[View] | None = None,
    **settings: object,
) -> TrainingImages:
    usual: dict[str, object] = {"flips": [], "anywhere": 0.0}
    config = DataConfig(**{**usual, **settings})  # type: ignore[arg-type]
    return TrainingImages(
        image[None], foreground[None], config, 0, window=WINDOW, views=views or ["windows"]
    )


def shown(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def drawn(images: TrainingImages, count: int = 30) -> list[Batch]:
    return [images[Draw(epoch, 0, 1.0)] for epoch in range(count)]


def test_windows_lie_where_their_places_say() -> None:
    image = mapped()
    for item in drawn(training_images(image, corner())):
        for number, window in enumerate((item["normal"], item["anomalous"])):
            assert window.shape == (3, WINDOW, WINDOW)
            place = item["places"][number].numpy()
            top, left, height, width = place * [HEIGHT, WIDTH, HEIGHT, WIDTH]
            assert (height, width) == pytest.approx((WINDOW, WINDOW))
            rows, cols = (slice(round(at), round(at) + WINDOW) for at in (top, left))
            unchanged = ~item["mask"].numpy() if number else np.ones((WINDOW, WINDOW), bool)
            assert np.array_equal(shown(window)[unchanged], image[rows, cols][unchanged])


@pytest.mark.parametrize("flips", [[], ["vertical", "horizontal"]])
def test_normal_windows_show_the_foreground_and_anomalous_ones_the_anomaly(
    flips: list[Axis],
) -> None:
    foreground = corner()
    image = mapped()
    image[foreground, 2] = 1.0
    for item in drawn(training_images(image, foreground, flips=flips)):
        assert (item["normal"][2] == 1).any()
        assert item["mask"].any()
        # The window shows some of the foreground, wherever that was flipped to.
        axes = tuple(axis for axis, flipped in enumerate(item["flips"]) if flipped)
        top, left = (item["places"][1][:2].numpy() * [HEIGHT, WIDTH]).round().astype(int)
        assert np.flip(foreground, axes)[top : top + WINDOW, left : left + WINDOW].any()


def test_some_windows_lie_anywhere() -> None:
    image = mapped()
    foreground = corner()
    image[foreground, 2] = 1.0
    items = drawn(training_images(image, foreground, anywhere=0.5), 100)
    on_it = np.mean([bool((item["normal"][2] == 1).any()) for item in items])
    assert 0.3 < on_it < 0.8
    assert all(item["mask"].any() for item in items)


def test_both_views_are_trained_on_in_the_share_that_is_asked_for() -> None:
    images = training_images(mapped(), corner(), ["windows", "whole"], wholes=0.4)
    items = drawn(images, 200)
    whole = [item["places"].tolist() == [[*WHOLE_PLACE]] * 2 for item in items]
    assert 0.3 < np.mean(whole) < 0.5
    for item, all_of_it in zip(items, whole, strict=True):
        spread = shown(item["normal"])[..., :2].max((0, 1)) - shown(item["normal"])[..., :2].min()
        assert (spread > 0.9).all() if all_of_it else (spread < 0.5).any()
        assert item["mask"].any()


@pytest.mark.parametrize(("views", "whole"), [(["windows"], False), (["whole"], True)])
def test_a_single_view_is_all_that_is_trained_on(views: list[View], whole: bool) -> None:
    for item in drawn(training_images(mapped(), corner(), views, wholes=0.5), 20):
        assert (item["places"][0].tolist() == [*WHOLE_PLACE]) == whole


def test_what_lies_beyond_an_image_smaller_than_a_window_is_its_reflection() -> None:
    image = mapped(20, 50)
    foreground = np.ones((20, 50), dtype=bool)
    for item in drawn(training_images(image, foreground), 10):
        normal = shown(item["normal"])
        assert np.array_equal(normal[20:], normal[19:7:-1])
        assert item["mask"].any()
        for place in item["places"].tolist():
            # As the detector has it: fractions of the image without what was added.
            assert place[0] == 0 and place[2:] == pytest.approx([32 / 20, 32 / 50])


def test_windows_are_varied_as_suits_windows_and_wholes_as_suits_the_whole() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)
    light = VariationConfig(brightness=0.2)
    images = TrainingImages(
        image[None],
        corner()[None],
        DataConfig(wholes=0.5),
        0,
        window=WINDOW,
        views=["windows", "whole"],
        in_windows=DataConfig(variation=light),
    )
    for item in drawn(images):
        whole = item["places"][0].tolist() == [*WHOLE_PLACE]
        assert bool((item["normal"] - 0.5).abs().max() < 1e-4) == whole


def test_a_window_moves_with_the_image() -> None:
    """A moved image is cut after it was moved, so no border of a window is made up."""
    image = mapped()
    varied = training_images(
        image, corner(), variation=VariationConfig(rotation=10, zoom=0.1, shift=0.02)
    )
    for item in drawn(varied, 10):
        down = np.diff(shown(item["normal"])[..., 0], axis=0)
        inner = down[(shown(item["normal"])[1:, :, 0] > 0.12) & (down != 0)]
        assert (inner > 0.5 / HEIGHT).all() and (inner < 1.5 / HEIGHT).all()
