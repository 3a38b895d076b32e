"""The bound on attention's sensitivity: true where it claims to hold, tight where it should be."""

import pytest
import torch
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]
from torch import Tensor
from torch.linalg import matrix_norm

from patchguard.config import ModelConfig
from patchguard.data.windows import WHOLE_PLACE
from patchguard.errors import PatchGuardError
from patchguard.models.attention import attention_degree, attention_degrees
from patchguard.models.patchguard import PatchGuard, Placed
from patchguard.models.sensitivity import (
    attention_change,
    attention_sensitivity,
    jacobian_norm,
    layer_bounds,
    token_bounds,
)

MODEL = ModelConfig(hidden=64, window=48, views=["whole"])


def detector(images: int = 2) -> Placed:
    """A new one, and the places of as many windows that show the whole."""
    torch.manual_seed(0)
    return Placed(PatchGuard(MODEL), torch.tensor([WHOLE_PLACE] * images))


def layer(*, logits: float = 1.0, heads: int = 2) -> Attention:
    """Random attention of width 16; ``logits`` scales queries and keys, 0 makes it uniform."""
    torch.manual_seed(0)
    attention = Attention(16, num_heads=heads, qkv_bias=True).double().requires_grad_(False)
    attention.fused_attn = False  # type: ignore[misc]
    attention.qkv.weight[:32] *= logits
    attention.qkv.bias[:32] *= logits
    return attention


def tokens() -> Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).double()


def jacobian(attention: Attention, at: Tensor) -> Tensor:
    """[N, C, N, C] of the sub-layer at one sequence [N, C]."""
    return torch.func.jacrev(lambda x: attention(x[None])[0])(at)


@pytest.mark.parametrize("logits", [0.0, 1.0, 4.0])
def test_no_token_and_no_layer_is_more_sensitive_than_its_bound(logits: float) -> None:
    attention, at = layer(logits=logits), tokens()
    of_tokens, of_layer = token_bounds(attention, at).total, layer_bounds(attention, at).total
    for sample, sequence in enumerate(at):
        found = jacobian(attention, sequence)
        assert matrix_norm(found.flatten(0, 1).flatten(1), 2) <= of_layer[sample]
        assert (matrix_norm(found.flatten(2), 2) <= of_tokens[sample]).all()


def test_the_bound_of_a_token_is_reached_by_uniform_attention() -> None:
    """With equal logits only the values carry a change: ‖dy‖ = ‖W_v‖ / √N where W_o = 1."""
    attention = layer(logits=0.0, heads=1)
    attention.proj.weight.copy_(torch.eye(16))
    bound = token_bounds(attention, tokens())
    values = matrix_norm(attention.qkv.weight[32:], 2)
    torch.testing.assert_close(bound.value, (values / 5**0.5).expand(2, 5))
    torch.testing.assert_close(bound.logits, torch.zeros(2, 5).double())
    found = matrix_norm(jacobian(attention, tokens()[0]).flatten(2), 2)
    torch.testing.assert_close(found, bound.value[0])


def test_the_jacobian_norm_of_a_linear_map_is_its_largest_singular_value() -> None:
    matrices = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    found = jacobian_norm(
        lambda x: (matrices @ x[..., None])[..., 0],
        torch.randn(3, 4).double(),
        steps=200,
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(found, matrix_norm(matrices, 2), rtol=1e-6, atol=0)


def test_every_block_of_a_detector_is_measured_beside_its_bound() -> None:
    model = detector().train()
    images = torch.rand(2, 3, 48, 48)
    found = attention_sensitivity(model, images, tokens=3, steps=5)
    assert model.training
    assert len(found) == len(model.blocks)
    for block in found:
        assert block.degree.shape == block.token_norm.shape == (2, 3)
        assert (block.token_norm > 0).all()
        assert (block.token_norm <= block.token_bound.total).all()
        assert (block.layer_norm <= block.layer_bound.total).all()


def test_a_larger_change_of_the_images_is_a_larger_change_of_every_block() -> None:
    model = detector()
    images = 0.25 + torch.rand(2, 3, 48, 48) / 2
    small, large = (attention_change(model, images, images + by) for by in (0.01, 0.2))
    assert small.output.shape == (len(model.blocks), 2)
    assert (small.tokens < large.tokens).all()
    assert (small.output < large.output).all()


def test_attention_that_the_bound_was_not_derived_for_is_refused() -> None:
    model = detector(1)
    model.blocks[1].attn.q_norm = torch.nn.LayerNorm(32)  # type: ignore[union-attr]
    with pytest.raises(PatchGuardError, match="softmax attention without norms"):
        attention_sensitivity(model, torch.rand(1, 3, 48, 48), tokens=2, steps=1)


@pytest.mark.parametrize("attended", [1, 3, 8])
def test_the_degree_is_the_number_of_tokens_attended_to_equally(attended: int) -> None:
    row = torch.zeros(2, 8)
    row[:, :attended] = 1 / attended
    torch.testing.assert_close(attention_degree(row), torch.full((2,), float(attended)))


def test_degrees_are_those_of_every_block_and_head_and_leave_the_mode_alone() -> None:
    model = detector().train()
    found = attention_degrees(model, torch.rand(2, 3, 48, 48))
    assert model.training
    assert found.shape == (3, 4)
    assert (found >= 1).all()
    assert (found <= 9).all()
    for block in model.blocks:
        block.attn.qkv.weight.data.zero_()  # type: ignore[union-attr, operator]
    uniform = attention_degrees(model, torch.rand(2, 3, 48, 48))
    torch.testing.assert_close(uniform, torch.full((3, 4), 9.0))
