"""What an attack maximises: one value per image, from raw scores, maps, logits or features.

An objective takes ``(seen, labels, masks, progress)``: what the detector shows of attacked images
(:class:`~patchguard.detector.Inspection`), labels [B] bool (True = anomalous), masks [B, H, W]
(the anomalous fraction of each pixel, in [0, 1]; all 0 for a normal image), and the fraction of
the search that is done, in [0, 1], for those that anneal. It returns [B]; larger is better for
the attacker. Those that need to know a data set are classes that are given it.

Values of an annealing objective at different progress are not comparable: judge by another one.
"""

from patchguard.attacks.objectives.detection import (
    FeatureDistance,
    TopKMean,
    dense,
    image_score,
    legacy,
    normal_prototypes,
    smooth_maximum,
)
from patchguard.attacks.objectives.localization import (
    CosPGD,
    JensenShannon,
    Masked,
    PixelMap,
    RankAware,
    SegPGD,
    Tsallis,
)
from patchguard.attacks.objectives.objective import Objective, patch_labels
from patchguard.attacks.objectives.registry import (
    DETECTION,
    LOCALIZATION,
    ObjectiveContext,
)
from patchguard.attacks.objectives.statistics import PixelStatistics

__all__ = [
    "DETECTION",
    "LOCALIZATION",
    "CosPGD",
    "FeatureDistance",
    "JensenShannon",
    "Masked",
    "Objective",
    "ObjectiveContext",
    "PixelMap",
    "PixelStatistics",
    "RankAware",
    "SegPGD",
    "TopKMean",
    "Tsallis",
    "dense",
    "image_score",
    "legacy",
    "normal_prototypes",
    "patch_labels",
    "smooth_maximum",
]
