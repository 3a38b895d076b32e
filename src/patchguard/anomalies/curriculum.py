"""From plain pseudo-anomalies to the ones a recipe asks for.

Under attack a network learns nothing for long when its first anomalies are small and faint: the
constant answer is then about as good. Large ones of high contrast are learned at once.
"""

from __future__ import annotations

from dataclasses import replace

from patchguard.config import AnomalyConfig

PLAIN_SIDE = 0.25
PLAIN_CONTRAST = 0.25


def anomalies_at(config: AnomalyConfig, progress: float) -> AnomalyConfig:
    """How pseudo-anomalies are made at a point of the training.

    The shortest side (geometrically) and the contrast floor (linearly) go from
    :data:`PLAIN_SIDE` and :data:`PLAIN_CONTRAST`, where these are larger, to their own values over
    the fraction ``config.curriculum`` of the training.

    Args:
        config: how they are made in the end.
        progress: fraction of the training that is done, in [0, 1].
    """
    if progress >= config.curriculum:
        return config
    plain = 1 - progress / config.curriculum
    side = max(PLAIN_SIDE, config.side_min)
    contrast = max(PLAIN_CONTRAST, config.contrast_floor)
    return replace(
        config,
        side_min=min(config.side_min * (side / config.side_min) ** plain, config.side_max),
        contrast_floor=config.contrast_floor + (contrast - config.contrast_floor) * plain,
    )
