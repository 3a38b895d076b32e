import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

import patchguard.models.patchguard as patchguard_module
from patchguard.config import ModelConfig
from patchguard.models.patchguard import PatchGuard, ViewScore
from patchguard.models.windows import averaged, cut, first_patches, padded, smoothing, windows_over

SHAPES = [(64, 64), (80, 112), (50, 70), (20, 200), (200, 33)]


def detector(**settings: object) -> PatchGuard:
    torch.manual_seed(0)
    usual = {"window": 48, "hidden": 64, "views": ["windows", "whole"]}
    return PatchGuard(ModelConfig(**{**usual, **settings})).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("patches", [7, 8, 12, 20, 51])
@pytest.mark.parametrize("stride", [1, 4, 7])
def test_windows_cover_an_axis_to_both_ends_at_most_a_stride_apart(
    patches: int, stride: int
) -> None:
    first = first_patches(patches, 7, stride)
    assert first[0] == 0 and first[-1] == patches - 7
    assert all(0 < gap <= stride for gap in np.diff(first))
    assert {at + offset for at in first for offset in range(7)} == set(range(patches))


def test_windows_are_cut_where_they_begin() -> None:
    images = torch.rand(2, 3, 9, 11)
    windows = cut(images, [0, 4], [1, 3, 6], 5)
    assert windows.shape == (2, 2, 3, 3, 5, 5)
    assert torch.equal(windows[1, 1, 2], images[1, :, 4:9, 6:11])


def test_images_are_mirrored_to_whole_patches_and_at_least_a_window() -> None:
    image = torch.arange(3.0).expand(1, 3, 3, 3)
    assert padded(image, 8, 4)[0, 0, 0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert padded(torch.rand(1, 3, 50, 70), 48, 16).shape[-2:] == (64, 80)
    exact = torch.rand(1, 3, 64, 48)
    assert padded(exact, 48, 16) is exact


def test_overlapping_windows_are_averaged_patch_by_patch() -> None:
    logits = torch.rand(1, 2, 1, 3, 3)
    found = averaged(logits, [0, 1], [0], (4, 3))[0]
    upper, lower = logits[0, 0, 0], logits[0, 1, 0]
    torch.testing.assert_close(found[0], upper[0])
    torch.testing.assert_close(found[1:3], (upper[1:] + lower[:2]) / 2)
    torch.testing.assert_close(found[3], lower[2])


@pytest.mark.parametrize(("grid", "size", "sigma"), [(7, 112, 3.0), (16, 256, 6.0)])
def test_the_map_is_bilinear_then_scipys_gaussian(grid: int, size: int, sigma: float) -> None:
    logits = torch.randn(1, grid, grid)
    upsampled = functional.interpolate(logits[None], size=(size, size), mode="bilinear")[0, 0]
    expected = gaussian_filter(upsampled.double().numpy(), sigma, radius=7, mode="reflect")
    matrix = smoothing(grid, size // grid, size, sigma, 7, torch.device("cpu"))
    np.testing.assert_allclose((matrix @ logits[0] @ matrix.T).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_any_size_have_a_score_a_map_and_gradients_everywhere(
    shape: tuple[int, int],
) -> None:
    model, images = detector(), torch.rand(2, 3, *shape, requires_grad=True)
    seen = model.inspect(images)
    assert seen.score.shape == (2,) and seen.anomaly_map.shape == (2, *shape)
    assert seen.patch_logits is not None and seen.features is not None
    assert seen.features.shape[1] == seen.patch_logits[0].numel()
    (gradient,) = torch.autograd.grad(seen.anomaly_map.sum(), images)
    assert (gradient.abs().sum(1) > 0).float().mean() > 0.99


def test_one_window_is_the_network_itself() -> None:
    model, images = detector(views=["windows"]), torch.rand(2, 3, 48, 48)
    place = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2, 4)
    alone = model.window_logits(images, place).logits
    torch.testing.assert_close(model.inspect(images).patch_logits, alone)
    whole = detector(views=["whole"])
    found = whole.inspect(images).patch_logits
    torch.testing.assert_close(found, whole.window_logits(images, place).logits, atol=0, rtol=0)


def of_each_window(model: PatchGuard, image: Tensor) -> Tensor:
    """The map of window logits by hand, from windows cut one at a time."""
    height, width = image.shape[1:]
    grid = height // 16, width // 16
    total, count = torch.zeros(grid), torch.zeros(grid)
    for top in first_patches(grid[0], 3, model.stride):
        for left in first_patches(grid[1], 3, model.stride):
            window = image[None, :, 16 * top : 16 * top + 48, 16 * left : 16 * left + 48]
            at = [16 * top / height, 16 * left / width, 48 / height, 48 / width]
            logits = model.window_logits(window, torch.tensor([at])).logits[0]
            total[top : top + 3, left : left + 3] += logits
            count[top : top + 3, left : left + 3] += 1
    return total / count


def test_the_map_is_the_mean_of_what_each_window_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = detector(views=["windows"], stride=0.4)
    assert model.discriminator.place is not None
    torch.nn.init.normal_(model.discriminator.place.code.weight)
    image = torch.rand(3, 80, 112)
    with torch.no_grad():
        expected = of_each_window(model, image)
    for at_once in (64, 3):
        monkeypatch.setattr(patchguard_module, "AT_ONCE", at_once)
        found = model.inspect(image[None]).patch_logits
        assert found is not None
        torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)


def test_the_gradient_does_not_depend_on_how_many_windows_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = detector(), torch.rand(1, 3, 112, 96, requires_grad=True)
    gradients: list[Tensor] = []
    for at_once in (64, 2):
        monkeypatch.setattr(patchguard_module, "AT_ONCE", at_once)
        gradients += torch.autograd.grad(model(images).score.sum(), images)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-3)


def kept(model: PatchGuard, images: Tensor) -> int:
    """Bytes that a pass keeps for the way back."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        # The image itself is handed to every group of windows; it is there once.
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(sizes.values())


def test_what_a_pass_keeps_grows_little_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = detector(views=["windows"])
    model.requires_grad_(False)
    large = torch.rand(1, 3, 240, 240, requires_grad=True)
    monkeypatch.setattr(patchguard_module, "AT_ONCE", 1000)
    all_of_it = kept(model, large)
    # One row of windows at a time, and several.
    for at_once in (4, 64):
        monkeypatch.setattr(patchguard_module, "AT_ONCE", at_once)
        assert kept(model, large) < all_of_it / 10


def test_a_pass_holds_as_many_images_as_their_windows_allow() -> None:
    whole = detector(views=["whole"])
    both = detector()
    assert whole.at_once(1000, 1000) == patchguard_module.AT_ONCE
    counts = [both.at_once(side, side) or 0 for side in (48, 96, 240, 2000)]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 1


def test_the_view_that_decided_has_the_higher_score() -> None:
    model, images = detector(), torch.rand(3, 3, 80, 80)
    assert detector(views=["whole"]).decided_by(images) is None
    with torch.no_grad():
        model.scores["whole"] = ViewScore(3, centre=-100.0)
        assert model.decided_by(images) == ["whole"] * 3
        model.scores["windows"] = ViewScore(3, centre=-200.0)
        assert model.decided_by(images) == ["windows"] * 3


def test_scores_and_maps_of_a_batch_are_those_of_its_images() -> None:
    model, images = detector(), torch.rand(3, 3, 80, 112)
    with torch.no_grad():
        together = model(images)
        alone = [model(image[None]) for image in images]
    torch.testing.assert_close(
        together.score, torch.cat([each.score for each in alone]), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        together.anomaly_map, torch.cat([each.anomaly_map for each in alone]), atol=1e-4, rtol=1e-4
    )


def test_a_timm_backbone_shares_its_patch_embedding_exactly() -> None:
    model = detector(backbone="vit_tiny_patch16_224", heads=3, views=["windows"])
    image = torch.rand(3, 80, 64)
    with torch.no_grad():
        found = model.inspect(image[None]).patch_logits
        assert found is not None
        torch.testing.assert_close(found[0], of_each_window(model, image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("height", [20, 48, 50])
def test_what_the_whole_says_lies_where_it_says_it_also_in_images_that_are_continued(
    height: int,
) -> None:
    model, image = detector(), torch.rand(1, 3, height, 160)
    views = {
        view: seen._replace(logits=torch.zeros_like(seen.logits))
        for view, seen in model.views(image).items()
    }
    views["whole"].logits[0, -1] = 9.0
    joined = model._joined_logits(views, image)[0]
    last = math.ceil(height / 16) - 1
    assert joined[last].min() > 5
    assert (joined[last] >= joined[0]).all()


def test_gradients_are_there_after_a_look_without_any() -> None:
    model, images = detector(), torch.rand(1, 3, 80, 64, requires_grad=True)
    with torch.inference_mode():
        model(torch.rand(1, 3, 80, 64))
    (gradient,) = torch.autograd.grad(model(images).score.sum(), images)
    assert gradient.abs().sum() > 0


def test_joined_views_are_as_high_as_the_higher_one_and_neither_drowns_the_other() -> None:
    model, images = detector(), torch.rand(3, 3, 80, 80)
    views = model.views(images)
    one, other = (model.view_scores(views)[view] for view in ("windows", "whole"))
    joined, highest = model(images).score, torch.maximum(one, other)
    assert (joined <= highest + 1e-5).all() and (joined >= highest - np.log(2) - 1e-5).all()
    model.scores["whole"] = ViewScore(3, centre=float(other.detach().mean()), scale=1e-3)
    assert (model(images).score - joined).abs().max() > 1


def test_more_windows_than_one_are_counted_for_the_cost() -> None:
    assert windows_over((112, 112), 112, 16, 4) == 1
    assert windows_over((320, 320), 112, 16, 4) == 25
    assert windows_over((4000, 200), 112, 16, 4) == 62 * 3
