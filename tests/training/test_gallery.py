import numpy as np

from patchguard.config import DataConfig
from patchguard.training.batches import Draw, TrainingImages
from patchguard.training.gallery import gallery

WINDOW, GAP = 32, 2


def images(seed: int = 0) -> TrainingImages:
    rng = np.random.default_rng(1)
    pictures = rng.random((2, 64, 48, 3), dtype=np.float32)
    foregrounds = np.ones((2, 64, 48), dtype=bool)
    views = ["windows", "whole"]
    return TrainingImages(
        pictures,
        foregrounds,
        DataConfig(),
        seed,
        window=WINDOW,
        views=views,  # type: ignore[arg-type]
    )


def test_the_gallery_shows_the_examples_that_training_draws() -> None:
    found = gallery(images(), examples=3)
    cell = WINDOW + GAP
    assert found.shape == (2 * cell + GAP, 7 * cell + GAP, 3)
    for row in range(2):
        for draw in range(3):
            top, left = row * cell + GAP, (1 + 2 * draw) * cell + GAP
            shown = found[top : top + WINDOW, left : left + WINDOW]
            example = images()[Draw(draw, row, 1.0)]["anomalous"].permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(shown, example)
    assert (found != gallery(images(seed=1), examples=3)).any()
    assert (found[:GAP] == 1).all()
