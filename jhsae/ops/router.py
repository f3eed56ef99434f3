"""Encode and select without an array of batch x features.

``pre = scale * (weight (x - centre) + bias)`` is computed for a chunk of tokens at a time; of each row only the
selected entries survive. The gradient of a selected entry touches one row of the weight. A penalty on all activated
entries has one number as its cotangent, so its dense gradient, ``sum_b activate'(pre_b) x_b``, is summed up in the
forward pass, while the chunk is there; where no term reads the penalty, the compiler drops that sum.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops import expert_major
from jhsae.ops.chunks import chunk_size, scan_chunks
from jhsae.ops.parameters import Encoder, ExpertEncoders
from jhsae.ops.precision import dot
from jhsae.ops.rows import add_rows, weighted_rows
from jhsae.ops.sharding import ShardingKind, shard_mapped, to_local_index, token_numbers
from jhsae.ops.topk import take

TOKENS, EXPERTS, OWN, TOTAL = ShardingKind.TOKENS, ShardingKind.EXPERTS, ShardingKind.OWN, ShardingKind.TOTAL
TOKEN_SUM, EXPERT_SUM = ShardingKind.TOKEN_SUM, ShardingKind.EXPERT_SUM
GRADIENTS = (TOKEN_SUM, EXPERT_SUM, EXPERT_SUM, EXPERT_SUM)  # of the fields of `_Gradients`
Select = Callable[[Float[Array, "tokens features"], Int[Array, "tokens"]], Int[Array, "tokens k"]]
Residuals = Any  # what `encode_forward` keeps
Activate = Callable[[Float[Array, "tokens features"]], Float[Array, "tokens features"]]


class Routed(NamedTuple):
    """The selected pre-activations of a batch and their features."""

    pre: Float[Array, "batch k"]
    indices: Int[Array, "batch k"]
    l1: Float[Array, ""]
    """``sum |activate(pre)|`` over all features and tokens."""
    child_pre: Float[Array, "batch k atoms"] | None = None
    """The pre-activations of the selected experts' atoms, where their encoders were given."""


class _Gradients(NamedTuple):
    """The gradient of an encoder, summed over the batch but for that of x."""

    x: Float[Array, "batch embed"]
    weight: Float[Array, "features embed"]
    bias: Float[Array, "features"]
    scale: Float[Array, "features"] | None


def route(
    encoder: Encoder,
    select: Select,
    activate: Activate,
    chunk: int | None = None,
    experts: ExpertEncoders | None = None,
    kernel: str = "tiles",
) -> Routed:
    """Encodes, selects and sums ``|activate(pre)|``, some tokens at a time.

    Args:
        encoder: what makes the pre-activations; with `experts`, they read the same input.
        select: ``select(pre, numbers of the tokens)`` gives the k selected features of each row, by the row alone. On
            several devices (`shard_mapped`) a row holds the features of this device: `select` must use `topk`, which
            asks the others, and `local_slice` for what it knows of each feature.
        activate: the elementwise activation whose absolute values are summed.
        chunk: how many tokens at a time; None for a size that suits the machine.
        experts: the encoders inside the experts, which then encode the token in the loops of the router's gradient.
        kernel: how these are computed: "tiles", "tpu" or "gpu", see `jhsae.ops.experts`.

    Returns:
        The selected pre-activations, with gradients.
    """
    fixed = jax.lax.stop_gradient(encoder)
    kinds, results = (encoder.sharding(),), (TOTAL, GRADIENTS, TOKENS, TOKENS)
    search = shard_mapped(partial(_search, select, activate, chunk), kinds, results, fixed.size)
    l1, slopes, pre, indices = search(fixed)
    l1 = _penalty(encoder, l1, _Gradients(*slopes))
    if experts is None:
        return Routed(_selected(encoder, indices, pre), indices, l1)
    pre, child_pre = _selected_tree(kernel, encoder, indices, pre, experts)
    return Routed(pre, indices, l1, child_pre)


def _search(
    select: Select, activate: Activate, chunk: int | None, fixed: Encoder
) -> tuple[Array, tuple[Array, ...], Array, Array]:
    """The L1 sum, its gradient, the selected pre-activations and their features, on one device."""
    size, width = fixed.weight.shape
    chunk = chunk or chunk_size(fixed.x.shape[0], 4 * size, at_least=512)

    def body(
        carry: tuple[Array, ...], some: tuple[Array, Array], _: Int[Array, ""]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        l1, weight, bias, scale = carry
        x, numbers = some
        centred = fixed.centred(x)
        pre = fixed.preactivations(centred)
        indices = select(pre, numbers)
        total, slope = jax.value_and_grad(lambda p: jnp.sum(jnp.abs(activate(p))))(pre)
        raw_slope = slope if fixed.scale is None else slope * fixed.scale
        weight = weight + dot("bf,bd->fd", raw_slope, centred)
        if fixed.scale is not None:
            scale = scale + jnp.sum(slope * pre, axis=0)
        carry = (l1 + total, weight, bias + jnp.sum(raw_slope, axis=0), scale)
        return carry, (take(pre, indices), indices, dot("bf,fd->bd", raw_slope, fixed.weight))

    init = (jnp.zeros(()), jnp.zeros((size, width)), jnp.zeros(size), jnp.zeros(size))
    tokens = (fixed.x, token_numbers(fixed.x.shape[0]))
    (l1, weight, bias, scale), (pre, indices, dx) = scan_chunks(body, init, tokens, chunk)
    if fixed.scale is not None:
        scale = scale / _divisor(fixed.scale)
    return l1, (dx, weight, bias, scale), pre, indices


@jax.custom_vjp
def _selected(encoder: Encoder, indices: Array, pre: Array) -> Array:
    """The known `pre`, with the gradient of the encoder's entries at `indices`."""
    return pre


def _selected_fwd(encoder: Encoder, indices: Array, pre: Array) -> tuple[Array, tuple[Encoder, Array, Array]]:
    return pre, (encoder, indices, pre)


def _selected_bwd(saved: tuple[Encoder, Array, Array], g: Float[Array, "batch k"]) -> tuple[Encoder, None, None]:
    def gradients(encoder: Encoder, indices: Array, pre: Array, g: Array) -> tuple[Array, Array, Array, Array | None]:
        raw, bias, scale = _scalars(encoder, indices, pre, g)
        weight = add_rows(raw, indices, encoder.centred(encoder.x), encoder.size)
        return weighted_rows(raw, indices, encoder.weight), weight, bias, scale

    encoder = saved[0]
    back = shard_mapped(gradients, (encoder.sharding(), TOKENS, TOKENS, TOKENS), GRADIENTS, encoder.size)
    return _cotangent(encoder, _Gradients(*back(*saved, g))), None, None


_selected.defvjp(_selected_fwd, _selected_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _selected_tree(
    kernel: str, encoder: Encoder, indices: Array, pre: Array, experts: ExpertEncoders
) -> tuple[Array, Array]:
    """The known `pre` and the atoms' pre-activations; one loop computes the gradients of both."""
    return _selected_tree_fwd(kernel, encoder, indices, pre, experts)[0]


def _selected_tree_fwd(
    kernel: str, encoder: Encoder, indices: Array, pre: Array, experts: ExpertEncoders
) -> tuple[tuple[Array, Array], tuple[Encoder, Array, Array, ExpertEncoders, Residuals]]:
    def encode(encoder: Encoder, indices: Array, experts: ExpertEncoders) -> tuple[Array, Residuals]:
        return expert_major.passes(kernel).encode_forward(encoder.centred(encoder.x), indices, experts)

    kinds = (encoder.sharding(), TOKENS, EXPERTS)
    child_pre, residuals = shard_mapped(encode, kinds, (TOKEN_SUM, OWN), encoder.size)(encoder, indices, experts)
    return (pre, child_pre), (encoder, indices, pre, experts, residuals)


def _selected_tree_bwd(
    kernel: str,
    saved: tuple[Encoder, Array, Array, ExpertEncoders, Residuals],
    g: tuple[Float[Array, "batch k"], Float[Array, "batch k atoms"]],
) -> tuple[Encoder, None, None, ExpertEncoders]:
    def gradients(
        encoder: Encoder,
        indices: Array,
        pre: Array,
        experts: ExpertEncoders,
        residuals: Residuals,
        g: Array,
        g_child: Array,
    ) -> tuple[tuple[Array, Array, Array, Array | None], ExpertEncoders, Array]:
        raw, bias, scale = _scalars(encoder, indices, pre, g)
        x = encoder.centred(encoder.x)
        d_experts, weight, sum_dx = passes.encode_backward(x, experts, residuals, g_child, raw)
        dx = weighted_rows(raw, indices, encoder.weight) + passes.encode_to_input(x, experts, residuals, g_child)
        return (dx, weight, bias, scale), d_experts, sum_dx

    encoder, passes = saved[0], expert_major.passes(kernel)
    kinds = (encoder.sharding(), TOKENS, TOKENS, EXPERTS, OWN, TOKENS, TOKENS)
    back = shard_mapped(gradients, kinds, (GRADIENTS, EXPERT_SUM, TOTAL), encoder.size)
    of_router, d_experts, sum_dx = back(*saved, *g)
    return _cotangent(encoder, _Gradients(*of_router), sum_dx), None, None, d_experts


_selected_tree.defvjp(_selected_tree_fwd, _selected_tree_bwd)


def _divisor(scale: Array) -> Array:
    """The scale; 1 where it is 0, because what it divides is 0 there too."""
    return jnp.where(scale == 0, 1.0, scale)


def _scalars(encoder: Encoder, indices: Array, pre: Array, g: Array) -> tuple[Array, Array, Array | None]:
    """The gradients before the scale, of the bias, and of the scale."""
    here = to_local_index(indices, encoder.size)
    scatter = lambda a: jnp.zeros(encoder.size, g.dtype).at[here].add(a, mode="drop")  # noqa: E731
    if encoder.scale is None:
        return g, scatter(g), None
    raw = g * encoder.scale.at[here].get(mode="fill", fill_value=0)
    return raw, scatter(raw), scatter(g * pre) / _divisor(encoder.scale)


@jax.custom_vjp
def _penalty(encoder: Encoder, l1: Array, slopes: _Gradients) -> Array:
    """The known `l1`, with its known gradient."""
    return l1


def _penalty_fwd(encoder: Encoder, l1: Array, slopes: _Gradients) -> tuple[Array, tuple[Encoder, _Gradients]]:
    return l1, (encoder, slopes)


def _penalty_bwd(saved: tuple[Encoder, _Gradients], g: Float[Array, ""]) -> tuple[Encoder, None, None]:
    encoder, slopes = saved
    return _cotangent(encoder, jax.tree.map(lambda a: g * a, slopes)), None, None


_penalty.defvjp(_penalty_fwd, _penalty_bwd)


def _cotangent(encoder: Encoder, d: _Gradients, more: Array | None = None) -> Encoder:
    """The gradients as an encoder: None where it has none. The centre's is minus the sum over tokens of that of x.

    `more` is what other readers of the same input add to that sum.
    """
    centre = -(d.bias @ encoder.weight)
    centre = centre if more is None else centre - more
    return Encoder(
        d.x,
        d.weight.astype(encoder.weight.dtype),
        None if encoder.bias is None else d.bias,
        None if encoder.centre is None else centre,
        None if encoder.scale is None else d.scale,
    )
