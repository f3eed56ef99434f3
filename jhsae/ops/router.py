"""Encode and select without an array of batch x features.

``pre = scale * (weight (x - centre) + bias)`` is computed for a chunk of tokens at a time; of each row only the
selected entries survive. The gradient of a selected entry touches one row of the weight. A penalty on all activated
entries has one number as its cotangent, so its dense gradient, ``sum_b activate'(pre_b) x_b``, is summed up in the
forward pass, while the chunk is there; where no term reads the penalty, the compiler drops that sum.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops.chunks import chunk_size, scan_chunks
from jhsae.ops.expert_major import encode_backward, encode_forward, encode_to_input
from jhsae.ops.precision import dot
from jhsae.ops.rows import add_rows, weighted_rows
from jhsae.ops.spread import Layout, constrain, local, spread, token_numbers
from jhsae.ops.topk import take

PARTS = (Layout.TOKENS, Layout.EXPERTS, Layout.EXPERTS, Layout.WHOLE, Layout.EXPERTS)
GRADIENTS = (Layout.TOKEN_SUM, Layout.EXPERT_SUM, Layout.EXPERT_SUM, Layout.EXPERT_SUM)


class Encoder(eqx.Module):
    """What makes the pre-activations of a batch, before any of them is computed.

    `values` holds all of them where an SAE needs them anyway.
    """

    x: Float[Array, "batch embed"]
    weight: Float[Array, "features embed"]
    bias: Float[Array, "features"] | None = None
    centre: Float[Array, "embed"] | None = None
    scale: Float[Array, "features"] | None = None
    values: Float[Array, "batch features"] | None = None

    @classmethod
    def known(cls, pre: Float[Array, "batch features"]) -> "Encoder":
        """Pre-activations that something else computed."""
        empty = jnp.zeros((pre.shape[0], 0)), jnp.zeros((pre.shape[1], 0))
        return cls(*empty, values=pre)

    @property
    def size(self) -> int:
        """The number of features."""
        return self.weight.shape[0]

    def dense(self) -> Float[Array, "batch features"]:
        """All pre-activations."""
        return self.values if self.values is not None else constrain(self.of(self.centred(self.x)), Layout.BOTH)

    def evaluated(self) -> "Encoder":
        """The same with all pre-activations in it, so that they are computed once."""
        return Encoder(self.x, self.weight, self.bias, self.centre, self.scale, self.dense())

    def rows(self, features: Int[Array, "some"]) -> "Encoder":
        """The encoder of some features alone."""
        take = lambda a: None if a is None else a[features]  # noqa: E731
        values = None if self.values is None else self.values[:, features]
        return Encoder(self.x, self.weight[features], take(self.bias), self.centre, take(self.scale), values)

    def parts(self) -> tuple[Array | None, ...]:
        """Its arrays but `values`, in order."""
        return self.x, self.weight, self.bias, self.centre, self.scale

    def centred(self, x: Float[Array, "tokens embed"]) -> Float[Array, "tokens embed"]:
        """The input of the weight."""
        return x if self.centre is None else x - self.centre

    def of(self, centred: Float[Array, "tokens embed"]) -> Float[Array, "tokens features"]:
        """The pre-activations of other tokens, centred already."""
        raw = dot("bd,fd->bf", centred, self.weight)
        raw = raw if self.bias is None else raw + self.bias
        return raw if self.scale is None else raw * self.scale


class Inside(NamedTuple):
    """The encoders of the experts that read the same input as the router."""

    down: Float[Array, "experts sub embed"]
    atom_enc: Float[Array, "experts atoms sub"]


class Routed(NamedTuple):
    """The selected pre-activations, where they stand, and ``sum |activate(pre)|`` over all of them.

    `atoms` are the pre-activations of the selected experts' atoms, where their encoders came along.
    """

    pre: Float[Array, "batch k"]
    indices: Int[Array, "batch k"]
    l1: Float[Array, ""]
    atoms: Float[Array, "batch k atoms"] | None = None


class _Slopes(NamedTuple):
    """The gradient of the L1 sum."""

    x: Float[Array, "batch embed"]
    weight: Float[Array, "features embed"]
    bias: Float[Array, "features"]
    scale: Float[Array, "features"]


def route(
    encoder: Encoder,
    select: Callable[[Float[Array, "tokens features"], Int[Array, ""]], Int[Array, "tokens k"]],
    activate: Callable[[Float[Array, "tokens features"]], Float[Array, "tokens features"]],
    chunk: int | None = None,
    inside: Inside | None = None,
) -> Routed:
    """Selects by ``select(pre, numbers of the tokens)`` and sums ``|activate(pre)|``, `chunk` tokens at a time.

    Both work on rows of pre-activations, row by row. `chunk` None takes a size that suits the machine. With `inside`
    the selected experts encode the token too (``expert_major.encode_atoms``), and share the router's way back.

    On several devices (`spread`) a row holds this device's features alone: `select` must use `topk`, which asks the
    others, and `mine` for what it knows of each feature.
    """
    fixed = jax.lax.stop_gradient(encoder)
    results = (Layout.TOTAL, GRADIENTS, Layout.TOKENS, Layout.TOKENS)
    search = spread(partial(_search, select, activate, chunk), PARTS, results, fixed.size)
    l1, slopes, pre, indices = search(*fixed.parts())
    l1 = _penalty(encoder, l1, _Slopes(*slopes))
    if inside is None:
        return Routed(_selected(encoder, indices, pre), indices, l1)
    pre, atoms = _selected_tree(encoder, indices, pre, inside)
    return Routed(pre, indices, l1, atoms)


def _search(select: Callable, activate: Callable, chunk: int | None, *parts: Any) -> tuple[Array, tuple, Array, Array]:
    """The L1 sum, its gradient, the selected pre-activations and their places, on one device."""
    fixed = Encoder(*parts)
    size, width = fixed.weight.shape
    chunk = chunk or chunk_size(fixed.x.shape[0], 4 * size, at_least=512)

    def body(carry: tuple, some: tuple[Array, Array], _: Int[Array, ""]) -> tuple[tuple, tuple]:
        l1, weight, bias, scale = carry
        x, numbers = some
        centred = fixed.centred(x)
        pre = fixed.of(centred)
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


def _selected_fwd(encoder: Encoder, indices: Array, pre: Array) -> tuple[Array, tuple]:
    return pre, (encoder, indices, pre)


def _selected_bwd(saved: tuple, g: Float[Array, "batch k"]) -> tuple:
    encoder, indices, pre = saved

    def gradients(*arguments: Any) -> tuple:
        *parts, indices, pre, g = arguments
        encoder = Encoder(*parts)
        raw, bias, scale = _scalars(encoder, indices, pre, g)
        weight = add_rows(raw, indices, encoder.centred(encoder.x), encoder.size)
        return weighted_rows(raw, indices, encoder.weight), weight, bias, scale

    back = spread(gradients, PARTS + (Layout.TOKENS,) * 3, GRADIENTS, encoder.size)
    dx, weight, bias, scale = back(*encoder.parts(), indices, pre, g)
    return _cotangent(encoder, dx, weight, bias, scale, -(bias @ encoder.weight)), None, None


_selected.defvjp(_selected_fwd, _selected_bwd)


@jax.custom_vjp
def _selected_tree(encoder: Encoder, indices: Array, pre: Array, inside: Inside) -> tuple[Array, Array]:
    """The known `pre` and the atoms' pre-activations; one loop computes the gradients of both."""
    return _selected_tree_fwd(encoder, indices, pre, inside)[0]


def _selected_tree_fwd(encoder: Encoder, indices: Array, pre: Array, inside: Inside) -> tuple[tuple, tuple]:
    def encode(*arguments: Any) -> tuple:
        *parts, indices, down, atom_enc = arguments
        encoder = Encoder(*parts)
        return encode_forward(encoder.centred(encoder.x), indices, down, atom_enc)

    layouts = (*PARTS, Layout.TOKENS, Layout.EXPERTS, Layout.EXPERTS)
    forward = spread(encode, layouts, (Layout.TOKEN_SUM, Layout.OWN), encoder.size)
    atoms, kept = forward(*encoder.parts(), indices, *inside)
    return (pre, atoms), (encoder, indices, pre, inside, kept)


def _selected_tree_bwd(saved: tuple, g: tuple[Float[Array, "batch k"], Float[Array, "batch k atoms"]]) -> tuple:
    encoder, indices, pre, inside, kept = saved

    def gradients(*arguments: Any) -> tuple:
        *parts, indices, pre, down, atom_enc, kept, g, g_atoms = arguments
        encoder = Encoder(*parts)
        raw, bias, scale = _scalars(encoder, indices, pre, g)
        of_atoms = (encoder.centred(encoder.x), down, atom_enc, kept, g_atoms)
        d_down, d_enc, weight, sum_dx = encode_backward(*of_atoms, raw)
        dx = weighted_rows(raw, indices, encoder.weight) + encode_to_input(*of_atoms)
        return dx, weight, bias, scale, d_down, d_enc, sum_dx

    tokens, experts = Layout.TOKENS, Layout.EXPERTS
    layouts = (*PARTS, tokens, tokens, experts, experts, Layout.OWN, tokens, tokens)
    results = (*GRADIENTS, Layout.EXPERT_SUM, Layout.EXPERT_SUM, Layout.TOTAL)
    back = spread(gradients, layouts, results, encoder.size)
    dx, weight, bias, scale, *d_inside, sum_dx = back(*encoder.parts(), indices, pre, *inside, kept, *g)
    d_encoder = _cotangent(encoder, dx, weight, bias, scale, -(bias @ encoder.weight) - sum_dx)
    return d_encoder, None, None, Inside(*d_inside)


_selected_tree.defvjp(_selected_tree_fwd, _selected_tree_bwd)


def _divisor(scale: Array) -> Array:
    """The scale; 1 where it is 0, because what it divides is 0 there too."""
    return jnp.where(scale == 0, 1.0, scale)


def _scalars(encoder: Encoder, indices: Array, pre: Array, g: Array) -> tuple[Array, Array, Array | None]:
    """The gradients before the scale, of the bias, and of the scale."""
    here = local(indices, encoder.size)
    scatter = lambda a: jnp.zeros(encoder.size, g.dtype).at[here].add(a, mode="drop")  # noqa: E731
    if encoder.scale is None:
        return g, scatter(g), None
    raw = g * encoder.scale.at[here].get(mode="fill", fill_value=0)
    return raw, scatter(raw), scatter(g * pre) / _divisor(encoder.scale)


@jax.custom_vjp
def _penalty(encoder: Encoder, l1: Array, slopes: _Slopes) -> Array:
    """The known `l1`, with its known gradient."""
    return l1


def _penalty_fwd(encoder: Encoder, l1: Array, slopes: _Slopes) -> tuple[Array, tuple]:
    return l1, (encoder, slopes)


def _penalty_bwd(saved: tuple, g: Float[Array, ""]) -> tuple:
    encoder, slopes = saved
    dx, weight, bias, scale = (g * a for a in slopes)
    return _cotangent(encoder, dx, weight, bias, scale, -(bias @ encoder.weight)), None, None


_penalty.defvjp(_penalty_fwd, _penalty_bwd)


def _cotangent(encoder: Encoder, dx: Array, weight: Array, bias: Array, scale: Any, centre: Array) -> Encoder:
    """As the encoder: None where it has none. The centre's is minus the sum over tokens of that of x."""
    return Encoder(
        dx,
        weight.astype(encoder.weight.dtype),
        None if encoder.bias is None else bias,
        None if encoder.centre is None else centre,
        None if encoder.scale is None else scale,
    )
