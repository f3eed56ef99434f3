"""The expert operations with pairs sorted by expert (`tiles`): exact, with gradients of their own.

The forward and the backward pass are loops over groups of tiles: gather the tokens of a tile, multiply by its expert,
add into the tokens. Nothing of the size batch x k x embed or batch x experts exists at any time. Numbers per pair are
small: k x (sub + atoms) for each token.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops.rows import weighted_rows
from jhsae.ops.tiles import Tiles, add, group_size, group_tiles, over_tiles, store

_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def encode_atoms(
    x: Float[Array, "batch embed"],
    indices: Int[Array, "batch k"],
    down: Float[Array, "experts sub embed"],
    atom_enc: Float[Array, "experts atoms sub"],
) -> Float[Array, "batch k atoms"]:
    """``atom_enc[e] down[e] x_b`` for the selected experts e of token b."""
    return encode_forward(x, indices, down, atom_enc)[0]


def encode_forward(x: Array, indices: Array, down: Array, atom_enc: Array) -> tuple[Array, tuple]:
    """The pre-activations, and what `encode_backward` needs."""
    tiles = group_tiles(indices, down.shape[0], down.shape[2])
    shape = tiles.pair.shape

    def body(carry: tuple[Array, Array], some: Tiles, first: Array) -> tuple[Array, Array]:
        pre, hidden = carry
        h = _dot("ntd,nsd->nts", x[some.token], down[some.expert])
        return store(pre, first, _dot("nts,nas->nta", h, atom_enc[some.expert])), store(hidden, first, h)

    init = (jnp.zeros((*shape, atom_enc.shape[1]), x.dtype), jnp.zeros((*shape, down.shape[1]), x.dtype))
    pre, hidden = over_tiles(tiles, group_size(down.shape[2]), body, init)
    return tiles.by_pair(pre), (x, tiles, down, atom_enc, hidden)


def encode_backward(
    saved: tuple, g: Float[Array, "batch k atoms"], weights: Float[Array, "batch k"] | None = None
) -> tuple[Array, Array, Array, Array]:
    """The gradients of `down` and `atom_enc`, and two sums that cost little beside them.

    The third is ``sum over pairs of weights[b, j] x_b`` for each expert (0 without `weights`); the fourth the sum over
    tokens of the gradient of x.
    """
    x, tiles, down, atom_enc, hidden = saved
    experts, sub, embed = down.shape

    def body(carry: tuple, some: Tiles, first: Array) -> tuple:
        d_down, d_enc, d_rows, hidden_sum = carry
        gt = some.of_pairs(g)
        h = jax.lax.dynamic_slice_in_dim(hidden, first, some.expert.shape[0])
        dh = _dot("nta,nas->nts", gt, atom_enc[some.expert])
        left = dh if weights is None else jnp.concatenate([dh, some.of_pairs(weights)[..., None]], axis=-1)
        sums = _dot("nts,ntd->nsd", left, x[some.token])
        if weights is not None:
            d_rows = add(d_rows, some, sums[:, sub])
        d_down, d_enc = add(d_down, some, sums[:, :sub]), add(d_enc, some, _dot("nta,nts->nas", gt, h))
        return d_down, d_enc, d_rows, add(hidden_sum, some, jnp.sum(dh, axis=1))

    init = (jnp.zeros_like(down), jnp.zeros_like(atom_enc), jnp.zeros((experts, embed)), jnp.zeros((experts, sub)))
    d_down, d_enc, d_rows, hidden_sum = over_tiles(tiles, group_size(embed), body, init)
    return d_down, d_enc, d_rows, jnp.einsum("es,esd->d", hidden_sum, down)


def encode_to_input(saved: tuple, g: Float[Array, "batch k atoms"]) -> Float[Array, "batch embed"]:
    """The gradient of x: a loop of its own, which is not run where nobody asks for it."""
    x, tiles, down, atom_enc, _ = saved

    def body(dx: Array, some: Tiles, first: Array) -> Array:
        dh = _dot("nta,nas->nts", some.of_pairs(g), atom_enc[some.expert])
        return _scatter(dx, some, _dot("nts,nsd->ntd", dh, down[some.expert]))

    return over_tiles(tiles, group_size(down.shape[2]), body, jnp.zeros_like(x))


def _encode_bwd(saved: tuple, g: Float[Array, "batch k atoms"]) -> tuple:
    d_down, d_enc, _, _ = encode_backward(saved, g)
    return encode_to_input(saved, g), None, d_down, d_enc


encode_atoms.defvjp(encode_forward, _encode_bwd)


@jax.custom_vjp
def decode_atoms(
    codes: Float[Array, "batch k atoms"],
    indices: Int[Array, "batch k"],
    up: Float[Array, "experts sub embed"],
    atom_dec: Float[Array, "experts atoms sub"],
) -> Float[Array, "batch embed"]:
    """``sum_j (codes[b, j] atom_dec[e_j]) up[e_j]``; `codes` holds every atom of the selected experts."""
    return _decode(codes, indices, up, atom_dec)[0]


def _decode(codes: Array, indices: Array, up: Array, atom_dec: Array) -> tuple[Array, tuple]:
    experts, _, embed = up.shape
    tiles = group_tiles(indices, experts, embed)

    def body(out: Array, some: Tiles, first: Array) -> Array:
        inside = _dot("nta,nas->nts", some.of_pairs(codes), atom_dec[some.expert])
        return _scatter(out, some, _dot("nts,nsd->ntd", inside, up[some.expert]))

    out = over_tiles(tiles, group_size(embed), body, jnp.zeros((indices.shape[0], embed), codes.dtype))
    return out, (codes, tiles, up, atom_dec)


def _decode_bwd(saved: tuple, g: Float[Array, "batch embed"]) -> tuple:
    codes, tiles, up, atom_dec = saved
    body = partial(_d_atoms, codes=codes, g=g, up=up, atom_dec=atom_dec)
    init = _no_d_atoms(tiles, codes, up, atom_dec)
    d_codes, d_up, d_dec = over_tiles(tiles, group_size(g.shape[-1]), body, init)
    return tiles.by_pair(d_codes), None, d_up, d_dec


decode_atoms.defvjp(_decode, _decode_bwd)


@jax.custom_vjp
def decode_tree(
    values: Float[Array, "batch k"],
    codes: Float[Array, "batch k atoms"],
    indices: Int[Array, "batch k"],
    rows: Float[Array, "experts embed"],
    up: Float[Array, "experts sub embed"],
    atom_dec: Float[Array, "experts atoms sub"],
) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """What the parents add, ``sum_j values[b, j] rows[e_j]``, and what the atoms add: `decode_atoms`.

    One loop computes the gradients of both.
    """
    return weighted_rows(values, indices, rows), _decode(codes, indices, up, atom_dec)[0]


def _decode_tree(values: Array, codes: Array, indices: Array, rows: Array, up: Array, atom_dec: Array) -> tuple:
    low, (_, tiles, _, _) = _decode(codes, indices, up, atom_dec)
    return (weighted_rows(values, indices, rows), low), (values, codes, tiles, rows, up, atom_dec)


def _decode_tree_bwd(saved: tuple, g: tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]) -> tuple:
    values, codes, tiles, rows, up, atom_dec = saved
    g_top, g_low = g

    def body(carry: tuple, some: Tiles, first: Array) -> tuple:
        d_values, d_rows, *rest = carry
        top = g_top[some.token]
        d_values = store(d_values, first, _dot("ntd,nd->nt", top, rows[some.expert]))
        d_rows = add(d_rows, some, _dot("nt,ntd->nd", some.of_pairs(values), top))
        return d_values, d_rows, *_d_atoms(tuple(rest), some, first, codes, g_low, up, atom_dec)

    shape = tiles.pair.shape
    init = (jnp.zeros(shape, values.dtype), jnp.zeros_like(rows), *_no_d_atoms(tiles, codes, up, atom_dec))
    d_values, d_rows, d_codes, d_up, d_dec = over_tiles(tiles, group_size(up.shape[-1]), body, init)
    return tiles.by_pair(d_values), tiles.by_pair(d_codes), None, d_rows, d_up, d_dec


decode_tree.defvjp(_decode_tree, _decode_tree_bwd)


def _d_atoms(
    carry: tuple, some: Tiles, first: Array, codes: Array, g: Array, up: Array, atom_dec: Array
) -> tuple[Array, Array, Array]:
    """Adds what these tiles give to the gradients of codes, `up` and `atom_dec`."""
    d_codes, d_up, d_dec = carry
    gt, ct, dec = g[some.token], some.of_pairs(codes), atom_dec[some.expert]
    d_inside = some.alone(_dot("ntd,nsd->nts", gt, up[some.expert]))
    inside = _dot("nta,nas->nts", ct, dec)
    return (
        store(d_codes, first, _dot("nts,nas->nta", d_inside, dec)),
        add(d_up, some, _dot("nts,ntd->nsd", inside, gt)),
        add(d_dec, some, _dot("nta,nts->nas", ct, d_inside)),
    )


def _no_d_atoms(tiles: Tiles, codes: Array, up: Array, atom_dec: Array) -> tuple[Array, Array, Array]:
    d_codes = jnp.zeros((*tiles.pair.shape, codes.shape[-1]), codes.dtype)
    return d_codes, jnp.zeros_like(up), jnp.zeros_like(atom_dec)


def _scatter(out: Float[Array, "batch d"], some: Tiles, rows: Float[Array, "group rows d"]) -> Float[Array, "batch d"]:
    return out.at[some.token].add(rows.astype(out.dtype))
