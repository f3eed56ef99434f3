"""The expert operations with pairs sorted by expert (`tiles`): exact, with gradients of their own.

The forward and the backward pass are loops over groups of tiles: gather the tokens of a tile, multiply by its expert,
add into the tokens. Nothing of the size batch x k x embed or batch x experts exists at any time. Numbers per pair are
small: k x (sub + atoms) for each token.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jhsae.ops.precision import dot, operand
from jhsae.ops.rows import weighted_rows
from jhsae.ops.spread import Layout, spread
from jhsae.ops.tile_products import over_rows, over_sub
from jhsae.ops.tiles import Tiles, add, group_size, group_tiles, over_tiles, store

TOKENS, EXPERTS, OWN = Layout.TOKENS, Layout.EXPERTS, Layout.OWN
TOKEN_SUM, EXPERT_SUM = Layout.TOKEN_SUM, Layout.EXPERT_SUM


class Kept(NamedTuple):
    """What a device keeps of an encoding: its tiles, and what each expert saw."""

    tiles: Tiles
    hidden: Float[Array, "tiles rows sub"]


@jax.custom_vjp
def encode_atoms(
    x: Float[Array, "batch embed"],
    indices: Int[Array, "batch k"],
    down: Float[Array, "experts sub embed"],
    atom_enc: Float[Array, "experts atoms sub"],
) -> Float[Array, "batch k atoms"]:
    """``atom_enc[e] down[e] x_b`` for the selected experts e of token b."""
    return _encode_fwd(x, indices, down, atom_enc)[0]


def _encode_fwd(x: Array, indices: Array, down: Array, atom_enc: Array) -> tuple[Array, tuple]:
    arguments, experts = (TOKENS, TOKENS, EXPERTS, EXPERTS), down.shape[0]
    pre, kept = spread(encode_forward, arguments, (TOKEN_SUM, OWN), experts)(x, indices, down, atom_enc)
    return pre, (x, down, atom_enc, kept)


def encode_forward(x: Array, indices: Array, down: Array, atom_enc: Array) -> tuple[Array, Kept]:
    """The pre-activations on one device, and what it keeps for the gradients."""
    tiles = group_tiles(indices, down.shape[0], down.shape[2])
    shape = tiles.pair.shape
    x, down = operand(x), operand(down)

    def body(carry: tuple[Array, Array], some: Tiles, first: Array) -> tuple[Array, Array]:
        pre, hidden = carry
        h = dot("ntd,nsd->nts", x[some.token], down[some.expert])
        return store(pre, first, dot("nts,nas->nta", h, atom_enc[some.expert])), store(hidden, first, h)

    init = (jnp.zeros((*shape, atom_enc.shape[1])), jnp.zeros((*shape, down.shape[1])))
    pre, hidden = over_tiles(tiles, group_size(down.shape[2]), body, init)
    return tiles.by_pair(pre), Kept(tiles, hidden)


def encode_backward(
    x: Array, down: Array, atom_enc: Array, kept: Kept, g: Array, weights: Float[Array, "batch k"] | None = None
) -> tuple[Array, Array, Array, Array]:
    """The gradients of `down` and `atom_enc`, and two sums that cost little beside them.

    The third is ``sum over pairs of weights[b, j] x_b`` for each expert (0 without `weights`); the fourth the sum over
    tokens of the gradient of x.
    """
    x, (tiles, hidden) = operand(x), kept
    experts, sub, embed = down.shape

    def body(carry: tuple, some: Tiles, first: Array) -> tuple:
        d_down, d_enc, d_rows, hidden_sum = carry
        gt = some.of_pairs(g)
        h = jax.lax.dynamic_slice_in_dim(hidden, first, some.expert.shape[0])
        dh = dot("nta,nas->nts", gt, atom_enc[some.expert])
        left = dh if weights is None else jnp.concatenate([dh, some.of_pairs(weights)[..., None]], axis=-1)
        sums = over_rows(left, x[some.token])
        if weights is not None:
            d_rows = add(d_rows, some, sums[:, sub])
        d_down, d_enc = add(d_down, some, sums[:, :sub]), add(d_enc, some, over_rows(gt, h))
        return d_down, d_enc, d_rows, add(hidden_sum, some, jnp.sum(dh, axis=1))

    shapes = (down.shape, atom_enc.shape, (experts, embed), (experts, sub))
    init = tuple(jnp.zeros(shape) for shape in shapes)
    d_down, d_enc, d_rows, hidden_sum = over_tiles(tiles, group_size(embed), body, init)
    return d_down, d_enc, d_rows, jnp.einsum("es,esd->d", hidden_sum, down)


def encode_to_input(x: Array, down: Array, atom_enc: Array, kept: Kept, g: Array) -> Float[Array, "batch embed"]:
    """The gradient of x: a loop of its own, which is not run where nobody asks for it."""
    tiles, down = kept.tiles, operand(down)

    def body(dx: Array, some: Tiles, first: Array) -> Array:
        dh = dot("nta,nas->nts", some.of_pairs(g), atom_enc[some.expert])
        return _scatter(dx, some, over_sub(dh, down[some.expert]))

    return over_tiles(tiles, group_size(down.shape[2]), body, jnp.zeros(x.shape))


def _encode_bwd(saved: tuple, g: Float[Array, "batch k atoms"]) -> tuple:
    def gradients(*arguments: Any) -> tuple[Array, Array, Array]:
        return encode_to_input(*arguments), *encode_backward(*arguments)[:2]

    arguments, results = (TOKENS, EXPERTS, EXPERTS, OWN, TOKENS), (TOKEN_SUM, EXPERT_SUM, EXPERT_SUM)
    dx, d_down, d_enc = spread(gradients, arguments, results, saved[1].shape[0])(*saved, g)
    return dx, None, d_down, d_enc


encode_atoms.defvjp(_encode_fwd, _encode_bwd)


def decode_atoms(
    codes: Float[Array, "batch k c"],
    indices: Int[Array, "batch k"],
    up: Float[Array, "experts sub embed"],
    atom_dec: Float[Array, "experts atoms sub"],
    atoms: Int[Array, "batch k c"] | None = None,
) -> Float[Array, "batch embed"]:
    """``sum_j (sum_c codes[b, j, c] atom_dec[e_j, a_c]) up[e_j]``; without `atoms`, `codes` holds every atom."""
    return _decode_atoms(codes, atoms, indices, up, atom_dec)


@jax.custom_vjp
def _decode_atoms(codes: Array, atoms: Array | None, indices: Array, up: Array, atom_dec: Array) -> Array:
    return _decode_fwd(codes, atoms, indices, up, atom_dec)[0]


def _decode_fwd(codes: Array, atoms: Array | None, indices: Array, up: Array, atom_dec: Array) -> tuple[Array, tuple]:
    arguments = (TOKENS, TOKENS, TOKENS, EXPERTS, EXPERTS)
    decode = spread(_decode, arguments, (TOKEN_SUM, OWN), up.shape[0])
    out, tiles = decode(codes, atoms, indices, up, atom_dec)
    return out, (codes, atoms, tiles, up, atom_dec)


def _decode(codes: Array, atoms: Array | None, indices: Array, up: Array, atom_dec: Array) -> tuple[Array, Tiles]:
    experts, _, embed = up.shape
    tiles = group_tiles(indices, experts, embed)
    up = operand(up)

    def body(out: Array, some: Tiles, first: Array) -> Array:
        dense = _all_atoms(some.of_pairs(codes), _chosen(atoms, some, atom_dec))
        inside = dot("nta,nas->nts", dense, atom_dec[some.expert])
        return _scatter(out, some, over_sub(inside, up[some.expert]))

    out = over_tiles(tiles, group_size(embed), body, jnp.zeros((indices.shape[0], embed)))
    return out, tiles


def _decode_bwd(saved: tuple, g: Float[Array, "batch embed"]) -> tuple:
    def gradients(codes: Array, atoms: Array | None, tiles: Tiles, up: Array, atom_dec: Array, g: Array) -> tuple:
        g, up = operand(g), operand(up)
        body = partial(_d_atoms, codes=codes, atoms=atoms, g=g, up=up, atom_dec=atom_dec)
        init = _no_d_atoms(tiles, codes, up, atom_dec)
        d_codes, d_up, d_dec = over_tiles(tiles, group_size(g.shape[-1]), body, init)
        return tiles.by_pair(d_codes), d_up, d_dec

    arguments, results = (TOKENS, TOKENS, OWN, EXPERTS, EXPERTS, TOKENS), (TOKEN_SUM, EXPERT_SUM, EXPERT_SUM)
    d_codes, d_up, d_dec = spread(gradients, arguments, results, saved[3].shape[0])(*saved, g)
    return d_codes, None, None, d_up, d_dec


_decode_atoms.defvjp(_decode_fwd, _decode_bwd)


@jax.custom_vjp
def decode_tree(
    values: Float[Array, "batch k"],
    codes: Float[Array, "batch k c"],
    atoms: Int[Array, "batch k c"] | None,
    indices: Int[Array, "batch k"],
    rows: Float[Array, "experts embed"],
    up: Float[Array, "experts sub embed"],
    atom_dec: Float[Array, "experts atoms sub"],
) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """What the parents add, ``sum_j values[b, j] rows[e_j]``, and what the atoms add: `decode_atoms`.

    One loop computes the gradients of both.
    """
    return _decode_tree_fwd(values, codes, atoms, indices, rows, up, atom_dec)[0]


def _decode_tree_fwd(
    values: Array, codes: Array, atoms: Array | None, indices: Array, rows: Array, up: Array, atom_dec: Array
) -> tuple:
    def decode(
        values: Array, codes: Array, atoms: Array | None, indices: Array, rows: Array, up: Array, atom_dec: Array
    ) -> tuple:
        low, tiles = _decode(codes, atoms, indices, up, atom_dec)
        return weighted_rows(values, indices, rows), low, tiles

    arguments, results = (TOKENS,) * 4 + (EXPERTS,) * 3, (TOKEN_SUM, TOKEN_SUM, OWN)
    both = spread(decode, arguments, results, up.shape[0])
    top, low, tiles = both(values, codes, atoms, indices, rows, up, atom_dec)
    return (top, low), (values, codes, atoms, tiles, rows, up, atom_dec)


def _decode_tree_bwd(saved: tuple, g: tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]) -> tuple:
    arguments = (TOKENS,) * 3 + (OWN,) + (EXPERTS,) * 3 + (TOKENS,) * 2
    results = (TOKEN_SUM,) * 2 + (EXPERT_SUM,) * 3
    d_values, d_codes, *d_weights = spread(_tree_gradients, arguments, results, saved[-1].shape[0])(*saved, *g)
    return d_values, d_codes, None, None, *d_weights


def _tree_gradients(
    values: Array,
    codes: Array,
    atoms: Array | None,
    tiles: Tiles,
    rows: Array,
    up: Array,
    atom_dec: Array,
    g_top: Array,
    g_low: Array,
) -> tuple:
    g_top, g_low, rows, up = map(operand, (g_top, g_low, rows, up))

    def body(carry: tuple, some: Tiles, first: Array) -> tuple:
        d_values, d_rows, *rest = carry
        top = g_top[some.token]
        d_values = store(d_values, first, dot("ntd,nd->nt", top, rows[some.expert]))
        d_rows = add(d_rows, some, over_rows(some.of_pairs(values)[..., None], top)[:, 0])
        return d_values, d_rows, *_d_atoms(tuple(rest), some, first, codes, atoms, g_low, up, atom_dec)

    init = (jnp.zeros(tiles.pair.shape), jnp.zeros(rows.shape), *_no_d_atoms(tiles, codes, up, atom_dec))
    d_values, d_rows, d_codes, d_up, d_dec = over_tiles(tiles, group_size(up.shape[-1]), body, init)
    return tiles.by_pair(d_values), tiles.by_pair(d_codes), d_rows, d_up, d_dec


decode_tree.defvjp(_decode_tree_fwd, _decode_tree_bwd)


def _d_atoms(
    carry: tuple, some: Tiles, first: Array, codes: Array, atoms: Array | None, g: Array, up: Array, atom_dec: Array
) -> tuple[Array, Array, Array]:
    """Adds what these tiles give to the gradients of codes, `up` and `atom_dec`."""
    d_codes, d_up, d_dec = carry
    chosen = _chosen(atoms, some, atom_dec)
    gt, ct, dec = g[some.token], _all_atoms(some.of_pairs(codes), chosen), atom_dec[some.expert]
    d_inside = some.alone(dot("ntd,nsd->nts", gt, up[some.expert]))
    inside = dot("nta,nas->nts", ct, dec)
    dense = dot("nts,nas->nta", d_inside, dec)
    d_slots = dense if chosen is None else jnp.sum(jnp.where(chosen, dense[:, :, None], 0), axis=-1)
    return (
        store(d_codes, first, d_slots),
        add(d_up, some, over_rows(inside, gt)),
        add(d_dec, some, over_rows(ct, d_inside)),
    )


def _chosen(atoms: Array | None, some: Tiles, atom_dec: Array) -> Bool[Array, "group rows c atoms"] | None:
    """Which atom each slot of these pairs stands for; None where every atom has its own."""
    if atoms is None:
        return None
    return atoms.reshape(-1, atoms.shape[-1])[some.pair][..., None] == jnp.arange(atom_dec.shape[1])


def _all_atoms(slots: Float[Array, "group rows c"], chosen: Array | None) -> Float[Array, "group rows atoms"]:
    """The slots at their atoms; those that share one add up."""
    return slots if chosen is None else jnp.sum(jnp.where(chosen, slots[..., None], 0), axis=2)


def _no_d_atoms(tiles: Tiles, codes: Array, up: Array, atom_dec: Array) -> tuple[Array, ...]:
    shapes = ((*tiles.pair.shape, codes.shape[-1]), up.shape, atom_dec.shape)
    return tuple(jnp.zeros(shape) for shape in shapes)


def _scatter(out: Float[Array, "batch d"], some: Tiles, rows: Float[Array, "group rows d"]) -> Float[Array, "batch d"]:
    return out.at[some.token.reshape(-1)].add(rows.reshape(-1, rows.shape[-1]).astype(out.dtype))
