import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from patchguard.errors import PatchGuardError
from patchguard.evaluation.stress import STRESSES, change, stressed

each = pytest.mark.parametrize("name", STRESSES)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth pictures with an edge, some black and white, on a grid of 40x32 px."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 5, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(40, 32), mode="bicubic").clamp(0, 1)
    smooth[:, :, 10:20, 8:24] = 0.8
    smooth[:, :, :2] = 0.0
    smooth[:, :, -2:] = 1.0
    return smooth


@each
def test_changes_grow_with_severity_and_stay_images(name: str, images: Tensor) -> None:
    disturbed = [stressed(images, name, severity, seed=0) for severity in range(1, 6)]
    changes = [change(images, each) for each in disturbed]
    for milder, worse in pairwise(changes):
        assert milder.mean_absolute < worse.mean_absolute
        assert milder.psnr > worse.psnr
    for each in disturbed:
        assert each.shape == images.shape
        assert each.dtype == torch.float32
        assert each.min() >= 0
        assert each.max() <= 1


@each
def test_is_the_same_again_for_the_same_seed(name: str, images: Tensor) -> None:
    again, twice = (stressed(images, name, 3, seed=1) for _ in range(2))
    assert torch.equal(again, twice)
    # What an image draws does not depend on those that follow it.
    assert torch.equal(stressed(images[:2], name, 3, seed=1), again[:2])


@pytest.mark.parametrize("name", ["lighting", "gamma", "noise"])
def test_another_seed_draws_anew(name: str, images: Tensor) -> None:
    assert not torch.equal(stressed(images, name, 3, seed=1), stressed(images, name, 3, seed=2))


def test_lighting_is_a_gain_of_either_sign() -> None:
    grey = torch.full((40, 3, 2, 2), 0.5)
    level = STRESSES["lighting"].levels[2]
    gains = (stressed(grey, "lighting", 3, seed=0) / grey)[:, 0, 0, 0].log2()
    torch.testing.assert_close(gains.abs(), torch.full((40,), level))
    assert 8 < (gains > 0).sum() < 32


def test_blur_keeps_flat_images_and_spreads_a_point_as_far_as_it_says() -> None:
    torch.testing.assert_close(
        stressed(torch.full((1, 3, 9, 9), 0.3), "blur", 5, seed=0), torch.full((1, 3, 9, 9), 0.3)
    )
    point = torch.zeros(1, 3, 41, 41)
    point[:, :, 20, 20] = 1
    spread = stressed(point, "blur", 4, seed=0)[0, 0].sum(0)
    variance = (spread * (torch.arange(41) - 20) ** 2).sum() / spread.sum()
    assert float(variance.sqrt()) == pytest.approx(STRESSES["blur"].levels[3], rel=0.05)


def test_noise_has_the_variance_of_photon_counts() -> None:
    white = torch.full((1, 3, 100, 100), 0.64)
    electrons = STRESSES["noise"].levels[0]
    found = float(stressed(white, "noise", 1, seed=0).std())
    assert found == pytest.approx(math.sqrt(0.64 / electrons + (3 / electrons) ** 2), rel=0.03)


def test_change_is_stated_in_grey_levels_and_decibels() -> None:
    images = torch.full((2, 3, 4, 4), 0.5)
    found = change(images, images + 0.1)
    assert found.mean_absolute == pytest.approx(25.5, rel=1e-5)
    assert found.psnr == pytest.approx(20, rel=1e-5)
    assert change(images, images).psnr == math.inf


def test_what_does_not_exist_is_refused_by_name(images: Tensor) -> None:
    with pytest.raises(PatchGuardError, match="choose from lighting"):
        stressed(images, "fog", 1, seed=0)
    with pytest.raises(PatchGuardError, match="from 1 to 5"):
        stressed(images, "blur", 6, seed=0)
