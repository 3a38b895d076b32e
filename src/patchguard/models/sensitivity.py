"""How sensitive attention is to its tokens, measured, beside the bound that the theory gives.

PatchGuard's theory: the sensitivity of a self-attention output to a perturbation of its tokens is
controlled by the softmax matrix, and tokens that attend to more tokens are less sensitive. What
follows to first order is exact; it says where that holds.

One head, with tokens x_j, queries q_i = W_q x_i, keys k_j = W_k x_j, values v_j = W_v x_j (biases
left out, they do not matter), softmax rows p_i over the logits s·q_i·k_j, and outputs
o_i = Σ_j p_ij v_j, changes under a perturbation dX = (dx_1 … dx_N) by ::

    do_i = Σ_j p_ij W_v dx_j                              values
         + s Cov_i W_q dx_i                               logits, by the query
         + s Σ_j p_ij (v_j - o_i) (q_i · W_k dx_j)        logits, by the keys

with Cov_i = Σ_j p_ij (v_j - o_i) (k_j - Σ_l p_il k_l)ᵀ. Hence, for ‖dX‖_F = 1, with spectral norms
of matrices, ::

    ‖do_i‖ ≤ ‖p_i‖₂ ‖W_v‖ + s ‖Cov_i W_q‖ + s ‖W_kᵀ q_i‖ (Σ_j p_ij² ‖v_j - o_i‖²)^½

The first and last term are at most ‖p_i‖₂ times something that does not depend on how wide the row
is, and ‖p_i‖₂ = D₂^-½, where D₂ = 1 / Σ_j p_ij² is the Hill number of order 2. Hill numbers fall
with their order, so ‖p_i‖₂ ≥ D₁^-½ with D₁ the attention degree: a degree of D₁ can make these
terms as small as D₁^-½, as uniform attention over D₁ tokens does, and no smaller.

Three limits of the claim. The term by the query does not fall with the degree: it is 0 for a row
that attends to one token, and generally not for a wide one. The rate is about one output under a
perturbation of bounded total size, as one changed token is: all outputs together change by up to
‖P‖₂ ≥ 1 times ‖W_v‖ through the values, and that is 1 for uniform attention and for tokens that
attend to themselves alone. And all of it is about one sub-layer: the next ones see other tokens.

A sub-layer here is a block's attention from the normalised tokens on, to the output projection:
behind ``norm1``, before LayerScale and the residual sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.linalg import matrix_norm, vector_norm

from patchguard.errors import PatchGuardError
from patchguard.models.attention import attention_degree, measured, unfused
from patchguard.models.patchguard import Placed


class Sublayer(NamedTuple):
    """One pass through a block's attention.

    Attributes:
        tokens: the normalised tokens [B, N, C] that went in, prefix tokens included.
        output: [B, N, C], behind the output projection.
    """

    tokens: Tensor
    output: Tensor


def attention_sublayers(model: Placed, images: Tensor) -> list[Sublayer]:
    """What goes in and out of the attention of every backbone block, first to last.

    Args:
        model: on the device of the images; run in eval mode.
        images: windows [B, 3, w, w] in [0, 1].
    """
    seen: list[Sublayer] = []
    hooks = [
        block.attn.register_forward_hook(  # type: ignore[union-attr]
            lambda _module, inputs, output: seen.append(Sublayer(inputs[0], output))
        )
        for block in model.blocks
    ]
    try:
        with measured(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


class _Change(NamedTuple):
    """How attacked images change the attention sub-layers, each [blocks, B].

    Attributes:
        tokens: ‖X' - X‖ / ‖X‖ of the normalised tokens.
        output: ‖Y' - Y‖ / ‖Y‖ of the output.
        gain: ‖Y' - Y‖ / ‖X' - X‖, to be compared with the norm of the Jacobian.
    """

    tokens: Tensor
    output: Tensor
    gain: Tensor


def attention_change(model: Placed, images: Tensor, attacked: Tensor) -> _Change:
    """The measured change of every backbone block's attention between two batches of images.

    Args:
        model: on the device of the images; run in eval mode.
        images: windows [B, 3, w, w] in [0, 1].
        attacked: as many and as large, each different from its original.
    """
    pairs = list(
        zip(attention_sublayers(model, images), attention_sublayers(model, attacked), strict=True)
    )
    moved = [torch.stack([_size(b - a) for a, b in zip(*pair, strict=True)]) for pair in pairs]
    plain = [torch.stack([_size(part) for part in clean]) for clean, _ in pairs]
    tokens, output = torch.stack(moved, 1)
    tokens_before, output_before = torch.stack(plain, 1)
    return _Change(tokens / tokens_before, output / output_before, output / tokens)


class Paths(NamedTuple):
    """Bounds on the first-order change of attention outputs, per unit ‖dX‖_F.

    Attributes:
        value: of what passes through the values, with the softmax held fixed: the claim's part.
        logits: of what passes through queries and keys, by changing the softmax.
    """

    value: Tensor
    logits: Tensor

    @property
    def total(self) -> Tensor:
        return self.value + self.logits


def token_bounds(layer: Attention, tokens: Tensor) -> Paths:
    """Bounds [B, N] on the change of each token's output of the whole sub-layer.

    With y_i = W_o (o_i¹, …, o_i^H), and because the heads' values are parts of one W_v x_j, ::

        ‖dy_i‖ ≤ ‖W_o‖ (‖W_v‖ max_h ‖p_i^h‖₂ + (Σ_h logits_h²)^½)

    with ``logits_h`` the last two terms of the module's inequality in head h. For uniform attention
    without logits the right side is ‖W_o‖ ‖W_v‖ / √N.

    Args:
        layer: a plain timm attention.
        tokens: normalised tokens [B, N, C].
    """
    return _terms(layer, tokens).of_tokens()


def layer_bounds(layer: Attention, tokens: Tensor) -> Paths:
    """Bounds [B] on the change ‖dY‖_F of all outputs of the sub-layer together.

    As :func:`token_bounds`, with ‖P^h‖ in place of ‖p_i^h‖₂ and, for the logits of a head,
    max_i s ‖Cov_i W_q‖ plus the spectral norm of [s ‖W_kᵀ q_i‖ p_ij ‖v_j - o_i‖]_ij: a matrix of
    blocks has at most the norm of the matrix of its blocks' norms.

    Args:
        layer: a plain timm attention.
        tokens: normalised tokens [B, N, C].
    """
    return _terms(layer, tokens).of_layer()


def jacobian_norm(
    function: Callable[[Tensor], Tensor],
    at: Tensor,
    *,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The largest singular value [B] of the Jacobian of ``function`` for each of its samples.

    Power iteration on JᵀJ by Jacobian products. Every step is a lower bound that rises towards
    the norm.

    Args:
        function: [B, ...] to [B, ...], each sample on its own; differentiable both ways.
        at: where, [B, ...].
        steps: of the iteration.
        generator: of the first direction, on the device of ``at``.
    """
    inner = tuple(range(1, at.ndim))
    direction = torch.empty_like(at).normal_(generator=generator)
    pull = torch.func.vjp(function, at)[1]
    for _ in range(steps):
        size = vector_norm(direction, dim=inner, keepdim=True)
        direction = direction / size.clamp_min(torch.finfo(at.dtype).tiny)
        change = torch.func.jvp(function, (at,), (direction,))[1]
        (direction,) = pull(change)
    squared: Tensor = vector_norm(direction, dim=inner)
    return squared.sqrt()


@dataclass(frozen=True)
class Sensitivity:
    """How much the output of one block's attention answers to its tokens, to first order.

    Norms are largest singular values, measured; bounds are those of :func:`token_bounds` and
    :func:`layer_bounds`. Both are per unit of ‖dX‖_F.

    Attributes:
        degree: [B, T], mean over heads, of T tokens spread evenly over the N.
        token_norm: [B, T], of the output of each of these tokens alone.
        token_bound: [B, T] each.
        layer_norm: [B], of all outputs together.
        layer_bound: [B] each.
        relative: [B], ``layer_norm`` · ‖X‖ / ‖Y‖: the largest relative change of the output per
            relative change of the tokens.
    """

    degree: Tensor
    token_norm: Tensor
    token_bound: Paths
    layer_norm: Tensor
    layer_bound: Paths
    relative: Tensor


def attention_sensitivity(
    model: Placed,
    images: Tensor,
    *,
    tokens: int = 8,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> list[Sensitivity]:
    """Measured sensitivity and its bound for every backbone block, first to last.

    Args:
        model: on the device of the images; run in eval mode.
        images: windows [B, 3, w, w] in [0, 1].
        tokens: how many of each image are measured alone.
        steps: of each power iteration.
        generator: of its first directions, on the device of the images.

    Raises:
        PatchGuardError: attention that normalises queries, keys or its output, or gates it.
    """
    layers = [_plain(block) for block in model.blocks]
    sublayers = attention_sublayers(model, images)
    with measured(model), unfused(model.blocks):
        return [
            _sensitivity(layer, sublayer, tokens, steps, generator)
            for layer, sublayer in zip(layers, sublayers, strict=True)
        ]


def _sensitivity(
    layer: Attention,
    sublayer: Sublayer,
    count: int,
    steps: int,
    generator: torch.Generator | None,
) -> Sensitivity:
    inputs, output = sublayer
    images, length, _ = inputs.shape
    chosen = torch.linspace(0, length - 1, count, device=inputs.device).round().long()
    rows = chosen.repeat(images)
    samples = torch.arange(len(rows), device=inputs.device)
    token_norm = jacobian_norm(
        lambda x: layer(x)[samples, rows],
        inputs.repeat_interleave(count, 0),
        steps=steps,
        generator=generator,
    )
    layer_norm = jacobian_norm(layer, inputs, steps=steps, generator=generator)
    terms = _terms(layer, inputs)
    bound = terms.of_tokens()
    return Sensitivity(
        degree=attention_degree(terms.attention).mean(1)[:, chosen],
        token_norm=token_norm.view(images, count),
        token_bound=Paths(bound.value[:, chosen], bound.logits[:, chosen]),
        layer_norm=layer_norm,
        layer_bound=terms.of_layer(),
        relative=layer_norm * _size(inputs) / _size(output),
    )


class _Terms(NamedTuple):
    """What the bounds are made of.

    Attributes:
        attention: P [B, heads, N, N].
        query: s ‖Cov_i W_q‖, [B, heads, N].
        key: s ‖W_kᵀ q_i‖ p_ij ‖v_j - o_i‖, [B, heads, N, N].
        value_norm: ‖W_v‖ of all heads together.
        output_norm: ‖W_o‖.
    """

    attention: Tensor
    query: Tensor
    key: Tensor
    value_norm: Tensor
    output_norm: Tensor

    def of_tokens(self) -> Paths:
        logits = self.query + vector_norm(self.key, dim=-1)
        return self._combined(vector_norm(self.attention, dim=-1), logits)

    def of_layer(self) -> Paths:
        logits = self.query.amax(-1) + matrix_norm(self.key, 2)
        return self._combined(matrix_norm(self.attention, 2), logits)

    def _combined(self, softmax: Tensor, logits: Tensor) -> Paths:
        """Heads to the sub-layer: norms of the softmax and bounds on logits, [B, heads, ...]."""
        value = self.value_norm * softmax.amax(1)
        return Paths(self.output_norm * value, self.output_norm * vector_norm(logits, dim=1))


@torch.no_grad()
def _terms(layer: Attention, tokens: Tensor) -> _Terms:
    batch, length, width = tokens.shape
    heads, scale = layer.num_heads, layer.scale
    queries, keys, values = (
        layer.qkv(tokens).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    )
    by_query, by_key, by_value = layer.qkv.weight.view(3, heads, -1, width)
    attention = (scale * queries @ keys.mT).softmax(-1)
    distances = torch.cdist(attention @ values, values)
    reach = vector_norm(queries @ by_key, dim=-1)
    return _Terms(
        attention=attention,
        query=scale * _product_norm(_covariance(attention, values, keys), by_query),
        key=scale * reach[..., None] * attention * distances,
        value_norm=matrix_norm(by_value.flatten(0, 1), 2),
        output_norm=matrix_norm(layer.proj.weight, 2),
    )


def _covariance(attention: Tensor, values: Tensor, keys: Tensor) -> Tensor:
    """Cov_i [B, heads, N, d, d] of values and keys under each row."""
    # Off the mean of all tokens, which changes nothing but the rounding.
    values, keys = values - values.mean(-2, keepdim=True), keys - keys.mean(-2, keepdim=True)
    products = (values[..., :, None] * keys[..., None, :]).flatten(-2)
    mean = (attention @ products).view(*values.shape, keys.shape[-1])
    product: Tensor = (attention @ values)[..., :, None] * (attention @ keys)[..., None, :]
    return mean - product


def _product_norm(covariance: Tensor, weight: Tensor) -> Tensor:
    """‖Cov_i W‖ [B, heads, N] of matrices [B, heads, N, d, d] and [heads, d, C]."""
    gram = covariance @ (weight @ weight.mT)[:, None] @ covariance.mT
    largest: Tensor = torch.linalg.eigvalsh(gram)[..., -1]
    return largest.clamp_min(0).sqrt()


def _size(tokens: Tensor) -> Tensor:
    """Frobenius norm [B] of tokens [B, N, C]."""
    size: Tensor = vector_norm(tokens, dim=(1, 2))
    return size


def _plain(block: nn.Module) -> Attention:
    """The attention of a block, if it is what the bounds were derived for.

    Raises:
        PatchGuardError: it normalises queries, keys or its output, gates it, or is no timm
            attention.
    """
    layer = getattr(block, "attn", None)
    extras = [getattr(layer, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
    if isinstance(layer, Attention) and all(
        extra is None or isinstance(extra, nn.Identity) for extra in extras
    ):
        return layer
    raise PatchGuardError(
        "the bound on attention's sensitivity holds for softmax attention without norms or gates; "
        "choose a model.backbone with plain attention, such as patchguard_mini"
    )
