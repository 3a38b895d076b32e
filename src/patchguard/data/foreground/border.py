"""The foreground as what does not look like the border of the image. Needs no weights."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage, special

from patchguard.arrays import BoolArray, FloatArray
from patchguard.data.foreground.shape import clean_mask, otsu_threshold, resize_mask
from patchguard.data.images import Pixels

_SIZE = 256
_RING_WIDTH = 16
_COLOUR_SIGMA, _CONTRAST_SIGMA = 1.0, 3.0

# Four grey levels: without this much noise added, compression artefacts would be foreground on a
# spotless background.
_LEAST_STD = 4 / 255

# The background may hold as little as this part of the ring (the breakdown point of the fit).
_CONCORDANT = 0.4
_CONCENTRATION_STEPS = 6
_INLIER_PROBABILITY = 0.99

# Background noise stays below this distance; far above the second one, how much more an object
# differs says nothing, and dark and bright parts of one object must not be told apart.
_NOISE_DISTANCE, _SATURATION_DISTANCE = 2.5, 20.0

# In working pixels. The margin takes in defects on the very edge of the object.
_CLOSING_RADIUS, _MARGIN = 4, 1


def border_mask(image: Pixels) -> BoolArray:
    """Foreground `[H, W]` of an image; possibly empty.

    Pixels far from a robust model of the border (:func:`border_distance`) by Otsu's threshold,
    closed, holes filled, the largest components kept, and a margin of 0.4 % of the side added.
    """
    distance = border_distance(image)
    saturating = distance / (distance + _SATURATION_DISTANCE)
    far = (saturating > otsu_threshold(saturating)) & (distance > _NOISE_DISTANCE)
    mask = clean_mask(far, closing=_CLOSING_RADIUS)
    if mask.any():
        mask = ndimage.distance_transform_edt(~mask) <= _MARGIN
    return resize_mask(mask, image.shape)


def border_distance(image: Pixels) -> FloatArray:
    """Mahalanobis distance of each pixel to a robust model of a ring along the border.

    The model is Gaussian in colour and local contrast about a plane over the image (uneven
    light). It is fitted to the most concordant part of the ring, so that an object may cross it.

    Returns:
        `[256, 256]` whatever the image's size; root mean square over features, about 1 on
        background.
    """
    features = _features(image.resized((_SIZE, _SIZE)))
    positions = _positions()
    plane, covariance = _robust_plane(features, positions)
    squared = _squared_distance(features - positions @ plane, covariance)
    distance: FloatArray = np.sqrt(squared / features.shape[1]).reshape(_SIZE, _SIZE)
    return distance


def _features(image: FloatArray) -> FloatArray:
    """Smoothed colour and local standard deviation of the luminance, `[size * size, 4]`."""
    colour = ndimage.gaussian_filter(image, (_COLOUR_SIGMA, _COLOUR_SIGMA, 0))
    grey = image.mean(axis=2)
    mean = ndimage.gaussian_filter(grey, _CONTRAST_SIGMA)
    variance = ndimage.gaussian_filter(grey**2, _CONTRAST_SIGMA) - mean**2
    contrast = np.sqrt(np.maximum(variance, 0))
    features: FloatArray = np.dstack([colour, contrast]).reshape(_SIZE * _SIZE, 4)
    return features


@cache
def _positions() -> FloatArray:
    """Regressors 1, x, y of every pixel, `[size * size, 3]`, x and y in [-1, 1]."""
    side = np.linspace(-1, 1, _SIZE, dtype=np.float32)
    x, y = np.meshgrid(side, side)
    return np.stack([np.ones(_SIZE * _SIZE, np.float32), x.ravel(), y.ravel()], axis=1)


def _robust_plane(features: FloatArray, positions: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Plane `[3, 4]` and covariance `[4, 4]` of the ring's background.

    Minimum covariance determinant (Rousseeuw and Van Driessen, Technometrics 1999) about a plane:
    concentration steps from two starts (the pixels closest to the ring's median, and the corners,
    which an object reaches last), the denser of the two results, then one step of reweighting.
    """
    on_ring, at_corner = _ring()
    features, positions = features[on_ring], positions[on_ring]
    from_median = np.abs(features - np.median(features, axis=0)).max(axis=1)
    starts = (from_median <= np.quantile(from_median, _CONCORDANT), at_corner[on_ring])
    results = [_concentrate(features, positions, start) for start in starts]
    plane, covariance = min(results, key=lambda result: float(np.linalg.slogdet(result[1])[1]))
    squared = _squared_distance(features - positions @ plane, covariance)
    # The covariance of the most concordant part is too small by this factor, were all Gaussian.
    too_small = float(np.quantile(squared, _CONCORDANT)) / _chi_square_quantile(_CONCORDANT)
    inliers = squared <= max(too_small, 1) * _chi_square_quantile(_INLIER_PROBABILITY)
    return _fit_plane(features, positions, inliers)


@cache
def _ring() -> tuple[BoolArray, BoolArray]:
    """Every third pixel of the ring, and the corners, each `[size * size]`."""
    coordinate = np.arange(_SIZE)
    to_edge = np.minimum(coordinate, _SIZE - 1 - coordinate)
    near, far = np.minimum.outer(to_edge, to_edge), np.maximum.outer(to_edge, to_edge)
    on_ring = (near < _RING_WIDTH) & (np.add.outer(coordinate, coordinate) % 3 == 0)
    return on_ring.ravel(), (far < 2 * _RING_WIDTH).ravel()


def _concentrate(
    features: FloatArray, positions: FloatArray, kept: BoolArray
) -> tuple[FloatArray, FloatArray]:
    for _ in range(_CONCENTRATION_STEPS):
        plane, covariance = _fit_plane(features, positions, kept)
        squared = _squared_distance(features - positions @ plane, covariance)
        kept = squared <= np.quantile(squared, _CONCORDANT)
    return _fit_plane(features, positions, kept)


def _fit_plane(
    features: FloatArray, positions: FloatArray, kept: BoolArray
) -> tuple[FloatArray, FloatArray]:
    plane = np.linalg.lstsq(positions[kept], features[kept], rcond=None)[0]
    residuals = features[kept] - positions[kept] @ plane
    covariance = residuals.T @ residuals / len(residuals)
    return plane, covariance + np.float32(_LEAST_STD**2) * np.eye(len(covariance), dtype=np.float32)


def _squared_distance(residuals: FloatArray, covariance: FloatArray) -> FloatArray:
    whitened = residuals @ np.linalg.cholesky(np.linalg.inv(covariance))
    squared: FloatArray = np.square(whitened).sum(axis=1)
    return squared


def _chi_square_quantile(probability: float, degrees: int = 4) -> float:
    return 2 * float(special.gammaincinv(degrees / 2, probability))
