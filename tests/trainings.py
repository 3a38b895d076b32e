"""A training of seconds: a handful of tiny images and a tiny network."""

from typing import Any

import numpy as np

from patchguard.config import DataConfig, ModelConfig, TrainingConfig, VariationConfig
from patchguard.training.batches import TrainingImages

MODEL = ModelConfig(hidden=64)
VARIED = VariationConfig(rotation=10, zoom=0.1, shift=0.1, contrast=0.1, brightness=0.1)


def dataset(
    workers: int = 0, seed: int = 0, images: int = 6, variation: VariationConfig | None = None
) -> TrainingImages:
    rng = np.random.default_rng(5)
    pictures = np.stack(
        [np.full((32, 32, 3), rng.uniform(0.4, 0.6), np.float32) for _ in range(images)]
    )
    foregrounds = np.ones((images, 32, 32), dtype=bool)
    config = DataConfig(image_size=32, workers=workers, variation=variation or VariationConfig())
    return TrainingImages(pictures, foregrounds, config, seed)


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**({"steps": 6, "batch_size": 4, "attention": {2: 0.1}} | changes))
