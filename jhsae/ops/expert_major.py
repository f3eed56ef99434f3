"""The expert operations with pairs sorted by expert (`tiles`): exact, with gradients of their own.

The forward and the backward pass are loops over groups of tiles: gather the tokens of a tile, multiply by its expert,
add into the tokens. Nothing of the size batch x k x embed or batch x experts exists at any time. Values per pair are
few: k x (sub + atoms) for each token.
"""

import importlib
import sys
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jhsae.codes import Codes, TreeCodes
from jhsae.ops import dense_rows
from jhsae.ops.parameters import Decoder, ExpertEncoders
from jhsae.ops.precision import dot, operand, source
from jhsae.ops.rows import weighted_rows
from jhsae.ops.sharding import ShardingKind, shard_mapped
from jhsae.ops.tiles import Tiles, add, by_number, group_size, group_tiles, over_rows, over_sub, over_tiles, store

TOKENS, EXPERTS, OWN = ShardingKind.TOKENS, ShardingKind.EXPERTS, ShardingKind.OWN
TOKEN_SUM, EXPERT_SUM = ShardingKind.TOKEN_SUM, ShardingKind.EXPERT_SUM


def passes(kernel: str) -> ModuleType:
    """The module with the operations of a kernel: `experts_tpu` for "tpu", `experts_gpu` for "gpu", else this one."""
    if kernel not in ("tpu", "gpu"):
        return sys.modules[__name__]
    # Pallas takes more than a second to import
    return importlib.import_module(f"jhsae.ops.pallas.experts_{kernel}")


class Residuals(NamedTuple):
    """What the forward pass of an encoding saves for the backward pass, on each device."""

    tiles: Tiles
    hidden: Float[Array, "tiles rows sub"]
    """The input in the subspace of the tile's expert."""


def encode_atoms(
    x: Float[Array, "batch embed"], indices: Int[Array, "batch k"], encoders: ExpertEncoders, kernel: str = "tiles"
) -> Float[Array, "batch k atoms"]:
    """``atom_enc[e] down[e] x_b`` for the selected experts e = indices[b, j], by the `passes` of a kernel."""
    return _encode(kernel, x, indices, encoders)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _encode(kernel: str, x: Array, indices: Array, encoders: ExpertEncoders) -> Array:
    return _encode_fwd(kernel, x, indices, encoders)[0]


def _encode_fwd(
    kernel: str, x: Array, indices: Array, encoders: ExpertEncoders
) -> tuple[Array, tuple[Array, ExpertEncoders, Any]]:
    kinds, results = (TOKENS, TOKENS, EXPERTS), (TOKEN_SUM, OWN)
    encode = shard_mapped(passes(kernel).encode_forward, kinds, results, encoders.down.shape[0])
    pre, residuals = encode(x, indices, encoders)
    return pre, (x, encoders, residuals)


def encode_forward(x: Array, indices: Array, encoders: ExpertEncoders) -> tuple[Array, Residuals]:
    """The pre-activations on one device, and what their gradients need."""
    down, atom_enc = operand(encoders.down), encoders.atom_enc
    tiles = group_tiles(indices, down.shape[0], down.shape[2])
    shape = tiles.pair.shape
    x = source(x)

    def body(carry: tuple[Array, Array], some: Tiles, first: Array) -> tuple[Array, Array]:
        pre, hidden = carry
        h = dot("ntd,nsd->nts", x[some.token], down[some.expert])
        return store(pre, first, dot("nts,nas->nta", h, atom_enc[some.expert])), store(hidden, first, h)

    init = (jnp.zeros((*shape, atom_enc.shape[1])), jnp.zeros((*shape, down.shape[1])))
    pre, hidden = over_tiles(tiles, group_size(down.shape[2]), body, init)
    return tiles.by_pair(pre), Residuals(tiles, hidden)


def encode_backward(
    x: Array, encoders: ExpertEncoders, residuals: Residuals, g: Array, weights: Float[Array, "batch k"] | None = None
) -> tuple[ExpertEncoders, Array, Array]:
    """The gradients of the encoders, and two sums that cost little beside them.

    The second is ``sum over pairs of weights[b, j] x_b`` for each expert (0 without `weights`); the third the sum over
    tokens of the gradient of x.
    """
    x, (tiles, hidden), g = source(x), residuals, by_number(g)
    raw = None if weights is None else by_number(weights)
    down, atom_enc = encoders.down, encoders.atom_enc
    experts, sub, embed = down.shape

    def body(carry: tuple[Array, ...], some: Tiles, first: Array) -> tuple[Array, ...]:
        d_down, d_enc, d_rows, hidden_sum = carry
        gt = some.of_pairs(g)
        h = jax.lax.dynamic_slice_in_dim(hidden, first, some.expert.shape[0])
        dh = dot("nta,nas->nts", gt, atom_enc[some.expert])
        left = dh if raw is None else jnp.concatenate([dh, some.of_pairs(raw)[..., None]], axis=-1)
        sums = over_rows(left, x[some.token])
        if raw is not None:
            d_rows = add(d_rows, some, sums[:, sub])
        d_down, d_enc = add(d_down, some, sums[:, :sub]), add(d_enc, some, over_rows(gt, h))
        return d_down, d_enc, d_rows, add(hidden_sum, some, jnp.sum(dh, axis=1))

    shapes = (down.shape, atom_enc.shape, (experts, embed), (experts, sub))
    init = tuple(jnp.zeros(shape) for shape in shapes)
    d_down, d_enc, d_rows, hidden_sum = over_tiles(tiles, group_size(embed), body, init)
    return ExpertEncoders(d_down, d_enc), d_rows, jnp.einsum("es,esd->d", hidden_sum, down)


def encode_to_input(x: Array, encoders: ExpertEncoders, residuals: Residuals, g: Array) -> Float[Array, "batch embed"]:
    """The gradient of x: a loop of its own, which is not run where nobody asks for it."""
    tiles, down, atom_enc, g = residuals.tiles, operand(encoders.down), encoders.atom_enc, by_number(g)

    def body(dx: Array, some: Tiles, first: Array) -> Array:
        dh = dot("nta,nas->nts", some.of_pairs(g), atom_enc[some.expert])
        return _scatter(dx, some, over_sub(dh, down[some.expert]))

    return over_tiles(tiles, group_size(down.shape[2]), body, jnp.zeros(x.shape))


def _encode_bwd(
    kernel: str, saved: tuple[Array, ExpertEncoders, Any], g: Float[Array, "batch k atoms"]
) -> tuple[Array, None, ExpertEncoders]:
    own = passes(kernel)

    def gradients(x: Array, encoders: ExpertEncoders, residuals: Any, g: Array) -> tuple[Array, ExpertEncoders]:
        return own.encode_to_input(x, encoders, residuals, g), own.encode_backward(x, encoders, residuals, g)[0]

    experts = saved[1].down.shape[0]
    back = shard_mapped(gradients, (TOKENS, EXPERTS, OWN, TOKENS), (TOKEN_SUM, EXPERT_SUM), experts)
    dx, d_encoders = back(*saved, g)
    return dx, None, d_encoders


_encode.defvjp(_encode_fwd, _encode_bwd)


def decode_atoms(codes: TreeCodes, decoder: Decoder) -> Float[Array, "batch embed"]:
    """``sum_j (sum_c children[b, j, c] atom_dec[e_j, a_jc]) up[e_j]``: what the atoms alone add."""
    return _decode_atoms(codes.children, codes.parents.slot_indices(), decoder.up, decoder.atom_dec)


@jax.custom_vjp
def _decode_atoms(children: Codes, indices: Array, up: Array, atom_dec: Array) -> Array:
    return _decode_fwd(children, indices, up, atom_dec)[0]


def _decode_fwd(
    children: Codes, indices: Array, up: Array, atom_dec: Array
) -> tuple[Array, tuple[Codes, Tiles, Array, Array]]:
    kinds = (TOKENS, TOKENS, EXPERTS, EXPERTS)
    out, tiles = shard_mapped(_decode, kinds, (TOKEN_SUM, OWN), up.shape[0])(children, indices, up, atom_dec)
    return out, (children, tiles, up, atom_dec)


def _decode(children: Codes, indices: Array, up: Array, atom_dec: Array) -> tuple[Array, Tiles]:
    experts, _, embed = up.shape
    tiles, slots = group_tiles(indices, experts, embed), _Slots.of(children)
    up = operand(up)

    def body(out: Array, some: Tiles, first: Array) -> Array:
        dense = _all_atoms(some.of_pairs(slots.values), slots.chosen(some))
        inside = dot("nta,nas->nts", dense, atom_dec[some.expert])
        return _scatter(out, some, over_sub(inside, up[some.expert]))

    out = over_tiles(tiles, group_size(embed), body, jnp.zeros((indices.shape[0], embed)))
    return out, tiles


def _decode_bwd(
    saved: tuple[Codes, Tiles, Array, Array], g: Float[Array, "batch embed"]
) -> tuple[Codes, None, Array, Array]:
    def gradients(children: Codes, tiles: Tiles, up: Array, atom_dec: Array, g: Array) -> tuple[Array, Array, Array]:
        body = partial(_d_atoms, slots=_Slots.of(children), g=source(g), up=operand(up), atom_dec=atom_dec)
        d_children, d_up, d_dec = over_tiles(
            tiles, group_size(g.shape[-1]), body, _no_d_atoms(tiles, children, up, atom_dec)
        )
        return tiles.by_pair(d_children), d_up, d_dec

    kinds, results = (TOKENS, OWN, EXPERTS, EXPERTS, TOKENS), (TOKEN_SUM, EXPERT_SUM, EXPERT_SUM)
    d_children, d_up, d_dec = shard_mapped(gradients, kinds, results, saved[2].shape[0])(*saved, g)
    return Codes(d_children, None, saved[0].size), None, d_up, d_dec


_decode_atoms.defvjp(_decode_fwd, _decode_bwd)


@jax.custom_vjp
def decode_tree(codes: TreeCodes, decoder: Decoder) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """What the parents add, ``sum_j parents[b, j] rows[e_j]``, and what the atoms add: `decode_atoms`.

    One loop computes the gradients of both.
    """
    return _decode_tree_fwd(codes, decoder)[0]


def _decode_tree_fwd(
    codes: TreeCodes, decoder: Decoder
) -> tuple[tuple[Array, Array], tuple[TreeCodes, Tiles, Decoder]]:
    def decode(codes: TreeCodes, decoder: Decoder) -> tuple[Array, Array, Tiles]:
        parents, indices = codes.parents, codes.parents.slot_indices()
        from_atoms, tiles = _decode(codes.children, indices, decoder.up, decoder.atom_dec)
        return weighted_rows(parents.values, indices, decoder.rows), from_atoms, tiles

    both = shard_mapped(decode, (TOKENS, EXPERTS), (TOKEN_SUM, TOKEN_SUM, OWN), decoder.up.shape[0])
    from_parents, from_atoms, tiles = both(codes, decoder)
    return (from_parents, from_atoms), (codes, tiles, decoder)


def _decode_tree_bwd(
    saved: tuple[TreeCodes, Tiles, Decoder], g: tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]
) -> tuple[TreeCodes, Decoder]:
    codes, _, decoder = saved
    kinds, results = (TOKENS, OWN, EXPERTS, TOKENS, TOKENS), (TOKEN_SUM, TOKEN_SUM, EXPERT_SUM)
    back = shard_mapped(_tree_gradients, kinds, results, decoder.up.shape[0])
    d_parents, d_children, d_decoder = back(*saved, *g)
    d_codes = TreeCodes(Codes(d_parents, None, codes.parents.size), Codes(d_children, None, codes.children.size))
    return d_codes, d_decoder


def _tree_gradients(
    codes: TreeCodes, tiles: Tiles, decoder: Decoder, g_parents: Array, g_atoms: Array
) -> tuple[Array, Array, Decoder]:
    parents, rows, atom_dec = codes.parents, decoder.rows, decoder.atom_dec
    g_atoms, up, slots = source(g_atoms), operand(decoder.up), _Slots.of(codes.children)
    no_atoms = _no_d_atoms(tiles, codes.children, up, atom_dec)
    group = group_size(up.shape[-1])
    if dense_rows.cheaper(parents.values.shape[1], len(rows)):
        d_parents, d_rows = dense_rows.gradients(parents.values, parents.slot_indices(), rows, g_parents)
        body = partial(_d_atoms, slots=slots, g=g_atoms, up=up, atom_dec=atom_dec)
        d_children, d_up, d_dec = over_tiles(tiles, group, body, no_atoms)
        return d_parents, tiles.by_pair(d_children), Decoder(d_rows, d_up, d_dec)
    g_parents, rows, values = source(g_parents), operand(rows), by_number(parents.values)

    def both(carry: tuple[Array, ...], some: Tiles, first: Array) -> tuple[Array, ...]:
        d_parents, d_rows, *rest = carry
        gt = g_parents[some.token]
        d_parents = store(d_parents, first, dot("ntd,nd->nt", gt, rows[some.expert]))
        d_rows = add(d_rows, some, over_rows(some.of_pairs(values)[..., None], gt)[:, 0])
        return d_parents, d_rows, *_d_atoms(tuple(rest), some, first, slots, g_atoms, up, atom_dec)

    init = (jnp.zeros(tiles.pair.shape), jnp.zeros(rows.shape), *no_atoms)
    d_parents, d_rows, d_children, d_up, d_dec = over_tiles(tiles, group, both, init)
    return tiles.by_pair(d_parents), tiles.by_pair(d_children), Decoder(d_rows, d_up, d_dec)


decode_tree.defvjp(_decode_tree_fwd, _decode_tree_bwd)


class _Slots(NamedTuple):
    """The children of every pair: values, and their atoms where not every atom has a slot; see `by_number`."""

    values: Float[Array, "pairs c"]
    atoms: Int[Array, "pairs c"] | None
    size: int

    @classmethod
    def of(cls, children: Codes) -> "_Slots":
        atoms = None if children.indices is None else by_number(children.indices)
        return cls(by_number(children.values), atoms, children.size)

    def chosen(self, some: Tiles) -> Bool[Array, "group rows c atoms"] | None:
        """The atom of each slot of these pairs, one-hot; None where every atom has a slot."""
        return None if self.atoms is None else self.atoms[some.pair][..., None] == jnp.arange(self.size)


def _d_atoms(
    carry: tuple[Array, ...], some: Tiles, first: Array, slots: _Slots, g: Array, up: Array, atom_dec: Array
) -> tuple[Array, Array, Array]:
    """Adds what these tiles give to the gradients of the children, `up` and `atom_dec`."""
    d_children, d_up, d_dec = carry
    chosen = slots.chosen(some)
    gt, ct, dec = g[some.token], _all_atoms(some.of_pairs(slots.values), chosen), atom_dec[some.expert]
    d_inside = some.alone(dot("ntd,nsd->nts", gt, up[some.expert]))
    inside = dot("nta,nas->nts", ct, dec)
    dense = dot("nts,nas->nta", d_inside, dec)
    d_slots = dense if chosen is None else jnp.sum(jnp.where(chosen, dense[:, :, None], 0), axis=-1)
    return (
        store(d_children, first, d_slots),
        add(d_up, some, over_rows(inside, gt)),
        add(d_dec, some, over_rows(ct, d_inside)),
    )


def _all_atoms(slots: Float[Array, "group rows c"], chosen: Array | None) -> Float[Array, "group rows atoms"]:
    """The slots at their atoms; those that share one add up."""
    return slots if chosen is None else jnp.sum(jnp.where(chosen, slots[..., None], 0), axis=2)


def _no_d_atoms(tiles: Tiles, children: Codes, up: Array, atom_dec: Array) -> tuple[Array, ...]:
    shapes = ((*tiles.pair.shape, children.values.shape[-1]), up.shape, atom_dec.shape)
    return tuple(jnp.zeros(shape) for shape in shapes)


def _scatter(out: Float[Array, "batch d"], some: Tiles, rows: Float[Array, "group rows d"]) -> Float[Array, "batch d"]:
    return out.at[some.token.reshape(-1)].add(rows.reshape(-1, rows.shape[-1]).astype(out.dtype))
