import numpy as np
import pytest
import torch
from torch import Tensor

from patchguard.config import ModelConfig
from patchguard.data.windows import squeezed
from patchguard.errors import PatchGuardError
from patchguard.models.attention import record_attention, uniformity_gap
from patchguard.models.discriminator import top_mean
from patchguard.models.patchguard import PatchGuard
from patchguard.models.vit import create_backbone

TINY = "vit_tiny_patch16_224"


@pytest.fixture
def model() -> PatchGuard:
    torch.manual_seed(0)
    return PatchGuard(ModelConfig(window=48, views=["whole"])).eval()


def patch_logits(model: PatchGuard, images: Tensor) -> Tensor:
    found = model.inspect(images).patch_logits
    assert found is not None
    return found


@pytest.mark.parametrize(
    "backbone",
    [
        "patchguard_mini",
        "patchguard_mini_8",
        "vit_small_convstem",
        TINY,
        "vit_small_patch14_reg4_dinov2",
        "vit_tiny_r_s16_p8_224",
    ],
)
def test_any_vit_gives_a_score_and_a_map_differentiable_in_the_images(backbone: str) -> None:
    size = 56 if "patch14" in backbone else 64 if "_r_" in backbone else 48
    model = PatchGuard(ModelConfig(backbone=backbone, window=size, views=["whole"])).eval()
    images = torch.rand(2, 3, size, size, requires_grad=True)
    score, anomaly_map = model(images)
    assert score.shape == (2,)
    assert anomaly_map.shape == (2, size, size)
    for output in (score.sum(), anomaly_map.sum()):
        (gradient,) = torch.autograd.grad(output, images, retain_graph=True)
        assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_patches_of_8_px_give_a_grid_twice_as_fine() -> None:
    model = PatchGuard(ModelConfig(backbone="patchguard_mini_8", views=["whole"])).eval()
    assert patch_logits(model, torch.rand(1, 3, 112, 112)).shape == (1, 14, 14)


def test_scores_do_not_depend_on_the_rest_of_the_batch(model: PatchGuard) -> None:
    images = torch.rand(4, 3, 48, 48)
    together = model(images).score
    alone = torch.cat([model(image[None]).score for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_the_image_score_is_the_mean_of_the_three_largest_patch_logits(model: PatchGuard) -> None:
    images = torch.rand(2, 3, 48, 48)
    logits = patch_logits(model, images).flatten(1)
    expected = logits.sort(descending=True).values[:, :3].mean(1)
    torch.testing.assert_close(model(images).score, expected)
    assert top_mean(torch.tensor([[[1.0, 3.0]]]), 3).item() == 2.0


def test_an_image_of_another_size_is_squeezed_and_its_map_is_of_its_own_size(
    model: PatchGuard,
) -> None:
    images = torch.rand(1, 3, 96, 60)
    score, anomaly_map = model(images)
    torch.testing.assert_close(score, model(squeezed(images, 48)).score)
    assert anomaly_map.shape == (1, 96, 60)


@pytest.mark.parametrize(
    ("name", "size", "weights", "message"),
    [
        ("no_such_vit", 64, "none", "neither patchguard_mini nor known to timm"),
        ("resnet18", 64, "none", "not a Vision Transformer"),
        ("patchguard_mini", 50, "none", "patch size 16; use 48 or 64"),
        ("patchguard_mini_8", 50, "none", "patch size 8; use 48 or 56"),
        (TINY, 50, "none", "multiple|divisible"),
        (TINY, 64, "missing.safetensors", "no such file"),
        ("patchguard_mini", 64, "hub", "no pretrained weights"),
    ],
)
def test_impossible_backbones_say_what_to_do(
    name: str, size: int, weights: str, message: str
) -> None:
    with pytest.raises(PatchGuardError, match=message):
        create_backbone(name, size, weights)


def test_local_weights_are_loaded(tmp_path) -> None:
    from safetensors.torch import save_file

    source = create_backbone(TINY, 224)
    file = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), file)
    name = "blocks.3.mlp.fc1.weight"
    loaded = create_backbone(TINY, 224, str(file))
    assert torch.equal(loaded.state_dict()[name], source.state_dict()[name])
    smaller = create_backbone(TINY, 64, str(file))
    assert torch.equal(smaller.state_dict()[name], source.state_dict()[name])


def test_recorded_attention_is_a_distribution_and_leaves_the_output_alone(
    model: PatchGuard,
) -> None:
    images = torch.rand(2, 3, 48, 48)
    plain = model(images).score
    with record_attention([model.blocks[1], model.blocks[2]]) as maps:
        recorded = model(images).score
    assert [rows.shape for rows in maps] == [(2, 4, 9, 9)] * 2
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(2, 4, 9))
    torch.testing.assert_close(recorded, plain, atol=1e-5, rtol=1e-5)
    model(images)
    assert len(maps) == 2


def test_uniformity_gap_is_the_kl_of_each_row_from_uniform() -> None:
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]])
    assert uniformity_gap(rows[:1]).item() == pytest.approx(0, abs=1e-6)
    by_hand = 0.25 * np.log(0.25 / 0.7) + 0.75 * np.log(0.25 / 0.1)
    assert uniformity_gap(rows).item() == pytest.approx(by_hand / 2, abs=1e-6)
    assert torch.isfinite(uniformity_gap(torch.eye(4)))
