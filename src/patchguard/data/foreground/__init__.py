"""Where in a normal image the object is: pseudo-anomalies are made there and nowhere else.

``border`` needs no weights; ``gradcam`` and ``attention`` ask a network trained on natural images,
with weights from the hub or a local file; ``full`` is everything, for textures; ``files`` reads
given masks; ``auto`` looks at the training images and chooses ``border`` or ``full``.
"""

from patchguard.data.foreground.masks import (
    chosen_method,
    foreground_mask,
    foreground_masks,
    masks_decided_by,
    resolve_method,
)

__all__ = [
    "chosen_method",
    "foreground_mask",
    "foreground_masks",
    "masks_decided_by",
    "resolve_method",
]
