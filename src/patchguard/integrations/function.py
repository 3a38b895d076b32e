"""Any callable as a detector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patchguard.detector import Detection, Detector
from patchguard.errors import PatchGuardError


class FunctionDetector(Detector):
    """A function or network that scores images, wrapped.

    What it returns is taken as raw scores, higher = more anomalous. A map of another resolution
    is brought to that of the images, bilinearly. Without a score, the score is the map's maximum;
    without a map, the map is the score at every pixel, so pixel metrics then say nothing.

    Args:
        function: from images [B, 3, H, W] in [0, 1] to a score [B], a pair of score [B] and map
            [B, h, w], or a map alone; a channel of one is accepted ([B, 1], [B, 1, h, w]). For
            attacks by gradients it must be differentiable. A network's weights and mode are part
            of the detector.
        image_size: height and width in pixels of the images it takes, or the side of square
            ones; any size when absent.

    Raises:
        PatchGuardError: ``image_size`` is neither.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        *,
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.function = function
        self.image_size = None if image_size is None else shape_of(image_size)

    def forward(self, images: Tensor) -> Detection:
        """The detection.

        Raises:
            PatchGuardError: images of another size than it takes, or an output of another form.
        """
        check_size(images, self.image_size)
        output = self.function(images)
        if isinstance(output, Tensor):
            is_map = output.ndim > 2
            return as_detection(None if is_map else output, output if is_map else None, images)
        if isinstance(output, tuple | list) and len(output) == 2:
            score, anomaly_map = output
            return as_detection(score, anomaly_map, images)
        raise PatchGuardError(
            f"the function returned {_described(output)}; return a score [B], (score, map) or a "
            "map [B, H, W]"
        )


def shape_of(image_size: Any) -> tuple[int, int]:
    """Height and width in pixels, given as such a pair or as the side of a square.

    Raises:
        PatchGuardError: it is neither.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else image_size
    if isinstance(pair, tuple | list) and len(pair) == 2:
        height, width = pair
        if all(isinstance(side, int) and side >= 1 for side in pair):
            return height, width
    shown = " ".join(repr(image_size).split())
    raise PatchGuardError(
        f"image_size is {shown}; give height and width in pixels, or the side of a square"
    )


def check_size(images: Tensor, shape: tuple[int, int] | None) -> None:
    """Refuse images that are not of ``shape``, height and width in pixels.

    Raises:
        PatchGuardError: they are not.
    """
    height, width = images.shape[-2:]
    if shape is not None and (height, width) != shape:
        raise PatchGuardError(
            f"images of {height}x{width} px (height x width) given to a detector of "
            f"{shape[0]}x{shape[1]} px; resize them"
        )


def as_detection(score: Any, anomaly_map: Any, images: Tensor) -> Detection:
    """A detection from a score, a map, or both, as foreign code returns them.

    Args:
        score: [B] or [B, 1], or None: the map's maximum takes its place.
        anomaly_map: [B, h, w] or [B, 1, h, w], or None: the score at every pixel.
        images: [B, 3, H, W], what they belong to.

    Raises:
        PatchGuardError: neither is given, or one has another shape.
    """
    size = images.shape[-2:]
    if anomaly_map is not None:
        anomaly_map = _resized(_checked_map(anomaly_map, len(images)), size)
    if score is not None:
        score = _checked_score(score, len(images))
    elif anomaly_map is not None:
        score = anomaly_map.flatten(1).amax(1)
    else:
        raise PatchGuardError("the detector returned neither a score nor a map")
    if anomaly_map is None:
        anomaly_map = score[:, None, None].expand(-1, *size)
    return Detection(score, anomaly_map)


def _checked_score(score: Any, batch: int) -> Tensor:
    if isinstance(score, Tensor) and tuple(score.shape) in {(batch,), (batch, 1)}:
        return _floating(score.reshape(batch))
    raise PatchGuardError(
        f"the score is {_described(score)}; for {batch} images it must be a tensor of shape "
        f"[{batch}]"
    )


def _checked_map(anomaly_map: Any, batch: int) -> Tensor:
    if isinstance(anomaly_map, Tensor):
        if anomaly_map.ndim == 4 and anomaly_map.shape[1] == 1:
            anomaly_map = anomaly_map[:, 0]
        if anomaly_map.ndim == 3 and len(anomaly_map) == batch and anomaly_map.numel():
            return _floating(anomaly_map)
    raise PatchGuardError(
        f"the map is {_described(anomaly_map)}; for {batch} images it must be a tensor of shape "
        f"[{batch}, h, w]"
    )


def _floating(values: Tensor) -> Tensor:
    """In float32, or in float64 where the detector computes in it."""
    return values if values.dtype == torch.float64 else values.float()


def _resized(anomaly_map: Tensor, size: torch.Size) -> Tensor:
    if anomaly_map.shape[-2:] == size:
        return anomaly_map
    return torch.nn.functional.interpolate(anomaly_map[:, None], size, mode="bilinear")[:, 0]


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"of type {type(output).__name__}"
