"""Natural stress: what light, optics, compression and sensors do to images.

No attack: nothing here looks at the detector. It is reported apart from attacks, which bound it
only where a stressed image stays inside their ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, pad

from patchguard.detector import to_tensor
from patchguard.errors import PatchGuardError

# Read noise of the sensor, in electrons: that of a good industrial CMOS camera.
_READ_NOISE = 3.0


def lighting(image: Tensor, stops: float, generator: torch.Generator) -> Tensor:
    """Exposure: values times 2^stops or 2^-stops, brighter and darker equally likely."""
    return image * 2 ** (stops * _sign(generator))


def gamma(image: Tensor, stops: float, generator: torch.Generator) -> Tensor:
    """Tone curve: values to the power 2^stops or 2^-stops, equally likely; 0 and 1 stay."""
    return image ** (2 ** (stops * _sign(generator)))


def _blur(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Defocus: Gaussian blur of standard deviation ``sigma`` pixels, edges replicated."""
    radius = math.ceil(3 * sigma)
    place = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.softmax(-0.5 * (place / sigma) ** 2, 0)
    padded = pad(image[:, None], (radius,) * 4, mode="replicate")
    return conv2d(conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None])[:, 0]


def _jpeg(image: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Compression by Pillow's JPEG at ``quality`` (chroma at half resolution), and back."""
    buffer = BytesIO()
    pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=round(quality))
    decoded = np.asarray(Image.open(buffer), dtype=np.float32) / np.float32(255)
    return to_tensor(decoded).to(image.device)


def _noise(image: Tensor, electrons: float, generator: torch.Generator) -> Tensor:
    """Sensor noise: shot noise of a sensor that counts ``electrons`` at white, and read noise.

    The variance of a value x is x / electrons + (read noise / electrons)^2. Large counts are near
    enough to Gaussian.
    """
    draws = torch.randn(image.shape, generator=generator).to(image.device)
    return image + (image / electrons + (_READ_NOISE / electrons) ** 2).sqrt() * draws


def _sign(generator: torch.Generator) -> float:
    return 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0


@dataclass(frozen=True)
class Stress:
    """One kind of disturbance at five calibrated severities.

    Attributes:
        apply: one image [3, H, W] in [0, 1], the physical level, and a generator on the CPU.
        unit: of the levels.
        levels: mildest first.
    """

    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    unit: str
    levels: tuple[float, float, float, float, float]


STRESSES: dict[str, Stress] = {
    "lighting": Stress(lighting, "stops", (0.042, 0.06, 0.084, 0.119, 0.167)),
    "gamma": Stress(gamma, "stops", (0.081, 0.114, 0.162, 0.229, 0.322)),
    "blur": Stress(_blur, "px", (0.66, 0.84, 1.13, 1.59, 2.36)),
    "jpeg": Stress(_jpeg, "quality", (81, 52, 20, 9, 4)),
    "noise": Stress(_noise, "electrons at white", (1880, 950, 480, 250, 130)),
}
"""Severities 1 to 5 of each change images by 36, 33, 30, 27 and 24 dB.

PSNR over the values of 34 pictures at 224 px: the three synthetic categories, brain CT and MVTec
AD's screws. On other images a level means the same in its own unit, and :func:`change` says how
many dB that is.
"""


def stressed(images: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """Images [N, 3, H, W] under a natural disturbance, in [0, 1].

    What is drawn for an image depends on ``seed`` and on its place in the batch alone: the same
    image is darkened, or shares its noise, at every severity.

    Args:
        images: [N, 3, H, W] in [0, 1].
        name: one of :data:`STRESSES`.
        severity: 1 (mild) to 5.
        seed: of the draws.

    Raises:
        PatchGuardError: an unknown name or severity.
    """
    if name not in STRESSES:
        raise PatchGuardError(f"no stress {name!r}: choose from {', '.join(STRESSES)}")
    if severity not in range(1, 6):
        raise PatchGuardError(f"stress severity {severity}: choose a whole number from 1 to 5")
    stress = STRESSES[name]
    level = stress.levels[severity - 1]
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([stress.apply(image, level, generator) for image in images]).clamp(0, 1)


class _Disturbance(NamedTuple):
    """How much images changed.

    Attributes:
        mean_absolute: mean change of a value, in 1/255.
        psnr: peak signal-to-noise ratio in dB, from the mean squared change of all values;
            infinite where nothing changed.
    """

    mean_absolute: float
    psnr: float


def change(images: Tensor, disturbed: Tensor) -> _Disturbance:
    """How much ``disturbed`` differs from ``images``, both [N, 3, H, W] in [0, 1]."""
    difference = (disturbed - images).double()
    squared = float((difference**2).mean())
    psnr = -10 * math.log10(squared) if squared else math.inf
    return _Disturbance(255 * float(difference.abs().mean()), psnr)
