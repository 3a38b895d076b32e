"""The ladder of faintness: how faint and how small a pseudo-anomaly is still found."""

import numpy as np
import pytest
import torch
from torch import Tensor

from patchguard.config import AnomalyConfig, ModelConfig
from patchguard.detector import Detection
from patchguard.models.patchguard import PatchGuard
from patchguard.training.ladder import CONTRASTS, SIZES, ladder, told
from patchguard.training.prepare import Normals

PLAIN = AnomalyConfig(shapes=["rectangle"], blends=["opaque"], curriculum=0.6)


class Deviating(PatchGuard):
    """Its score is how far from grey what is not grey is; it keeps the masks of what it saw."""

    def __init__(self) -> None:
        super().__init__(ModelConfig(window=64, hidden=64, views=["windows"]))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Detection:
        change = (images - 0.5).abs().mean(1)
        changed = change > 1e-6
        self.seen += list(changed)
        return Detection(change.sum((1, 2)) / changed.sum((1, 2)), change)


def normals(count: int = 20, value: float = 0.5) -> Normals:
    images = np.full((count, 96, 96, 3), value, np.float32)
    return Normals(tuple(map(str, range(count))), images, np.ones((count, 96, 96), dtype=bool))


def test_every_rung_has_the_contrast_and_the_size_that_it_names() -> None:
    detector = Deviating()
    rungs = ladder(detector, normals(), PLAIN, threshold=0.07, seed=0)
    expected = [(size, contrast) for size in SIZES for contrast in CONTRASTS]
    assert [(rung["size"], rung["contrast"]) for rung in rungs] == expected
    assert {rung["images"] for rung in rungs} == {16}
    assert [rung["found"] for rung in rungs] == [1.0, 1.0, 0.0, 0.0] * 2
    areas = torch.stack(detector.seen).flatten(1).sum(1).float().view(len(SIZES), -1)
    small, large = (areas[number].sqrt() for number in range(2))
    low, high = SIZES["small"]
    assert (small >= 0.5 * low * 64).all() and (small <= high * 64 + 1).all()
    assert small.max() < large.max() and large.median() > 0.25 * 64


def test_contrast_is_a_part_of_what_the_images_span() -> None:
    narrow = AnomalyConfig(shapes=["rectangle"], blends=["opaque"], range=[0.4, 0.6])
    rungs = ladder(Deviating(), normals(), narrow, threshold=0.035, seed=0)
    assert [rung["found"] for rung in rungs] == [1.0, 0.0, 0.0, 0.0] * 2


def test_few_held_out_images_are_all_used_and_the_seed_decides() -> None:
    first, again = (ladder(Deviating(), normals(3), PLAIN, 0.07, seed) for seed in (1, 1))
    assert first == again
    assert {rung["images"] for rung in first} == {3}


def rungs_of(small: list[float], large: list[float]) -> list[dict[str, object]]:
    return [
        {"size": size, "contrast": contrast, "found": found, "images": 8}
        for size, shares in (("small", small), ("large", large))
        for contrast, found in zip(CONTRASTS, shares, strict=True)
    ]


@pytest.mark.parametrize(
    ("small", "large", "said"),
    [
        (
            [1, 0.5, 0.4, 0],
            [1, 1, 1, 1],
            "small ones down to a contrast of 0.1 and large ones down to a contrast of 0.025 ",
        ),
        (
            [0.4, 0, 0, 0],
            [1, 1, 1, 0],
            "small ones hardly at all and large ones down to a contrast of 0.05 ",
        ),
        # A fainter one that is found by chance does not count.
        (
            [1, 0.2, 0.9, 0],
            [0, 1, 1, 1],
            "small ones down to a contrast of 0.2 and large ones hardly at all ",
        ),
    ],
)
def test_the_user_is_told_in_one_line(small: list[float], large: list[float], said: str) -> None:
    line = told(rungs_of(small, large))
    assert f"finds {said}" in line
    assert "\n" not in line
