"""A training of seconds: a handful of tiny images and a tiny network."""

from pathlib import Path
from typing import Any

import numpy as np

from patchguard.config import (
    DataConfig,
    FitConfig,
    ModelConfig,
    Recipe,
    TrainingConfig,
    VariationConfig,
    load_recipe,
)
from patchguard.pipelines import fit as fitting
from patchguard.reporter import Silent
from patchguard.runtime import Runtime
from patchguard.training.batches import TrainingImages
from pictures import write_png

SELF_CHECKS = frozenset(["S1", "S28", "S30"])
"""Those that attack nothing."""
MODEL = ModelConfig(hidden=64, window=32, views=["whole"])
VARIED = VariationConfig(rotation=10, zoom=0.1, shift=0.1, contrast=0.1, brightness=0.1)


class Listening(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def tell(self, line: str) -> None:
        self.told.append(line)


def dataset(
    workers: int = 0, seed: int = 0, images: int = 6, variation: VariationConfig | None = None
) -> TrainingImages:
    rng = np.random.default_rng(5)
    pictures = np.stack(
        [np.full((32, 32, 3), rng.uniform(0.4, 0.6), np.float32) for _ in range(images)]
    )
    foregrounds = np.ones((images, 32, 32), dtype=bool)
    config = DataConfig(workers=workers, variation=variation or VariationConfig())
    return TrainingImages(
        pictures, foregrounds, config, seed, window=MODEL.window, views=MODEL.views
    )


def settings(**changes: Any) -> TrainingConfig:
    usual: dict[str, Any] = {"steps": 6, "batch_size": 4, "attention": {2: 0.1}}
    return TrainingConfig(**(usual | changes))


def small_recipe() -> Recipe:
    """The fast recipe for a few steps, on images squeezed to 32 px."""
    recipe = load_recipe("fast")
    recipe.data.workers = 0
    recipe.model.window, recipe.model.views = 32, ["whole"]
    recipe.model.hidden = 64
    recipe.training.steps, recipe.training.batch_size = 12, 4
    return recipe


def detector(folder: Path) -> Path:
    """A run folder that is trained and calibrated, not evaluated."""
    data = folder / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(12):
        image = rng.uniform(0.0, 0.2, (32, 32, 3)).astype(np.float32)
        image[6:26, 6:26] += 0.6
        write_png(data / f"{number:02}.png", image)
    settings = FitConfig(data=str(data), recipe=small_recipe(), false_alarm_rate=0.2)
    material = fitting.prepared(data, settings, lambda line: None)
    fitting.fit_detector(material, settings, folder / "run", runtime=Runtime.on("cpu"))
    return folder / "run"
