"""The expert operations of `expert_major` with TPU kernels (`tile_kernels`): same signature, numbers and gradients.

``pre = atom_enc[e] down[e] x_b`` and ``x_hat[b] = sum_j (children[b, j] atom_dec[e_j]) up[e_j]``, over tiles of 128
pairs. Each is the other's transpose, so that three kernels serve four passes:

| pass | kernels |
|---|---|
| encode | project |
| its gradient | weights; spread, for the gradient of x |
| decode | spread |
| its gradient | weights, which also projects |

Rows of x are copied into fast memory by the kernels. Spread writes its rows to memory a group of tiles at a time, and
XLA adds them into the tokens. Not the default anywhere: the kernels equal `expert_major` in Pallas' interpreter and
compile for TPU, and no TPU has run or timed them. One core works on all tiles, also where a chip has two.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.codes import TreeCodes
from jhsae.ops.parameters import Decoder, ExpertEncoders
from jhsae.ops.tiles import Tiles, by_number, group_size, over_tiles, tile

from . import tile_kernels as kernels

LANES = 128


def encode_atoms(
    x: Float[Array, "batch embed"],
    indices: Int[Array, "batch k"],
    encoders: ExpertEncoders,
    *,
    rows: int = LANES,
    interpret: kernels.Interpret = False,
) -> Float[Array, "batch k atoms"]:
    """``atom_enc[e] down[e] x_b`` for the selected experts e of token b; float32. `rows`: pairs of a tile.

    `interpret`: run in Pallas' interpreter. Raises ValueError for other types, and for an embed or rows that 128 does
    not divide.
    """
    down, atom_enc = encoders.down, encoders.atom_enc
    _check("encode_atoms", rows, x, down, atom_enc)
    return _encode(x, down, jnp.swapaxes(atom_enc, 1, 2), tile(indices, down.shape[0], rows), interpret)


def decode_atoms(
    codes: TreeCodes, decoder: Decoder, *, rows: int = LANES, interpret: kernels.Interpret = False
) -> Float[Array, "batch embed"]:
    """``sum_j (children[b, j] atom_dec[e_j]) up[e_j]``; float32; the children are dense: every atom has a slot.

    `rows`: pairs of a tile. `interpret`: run in Pallas' interpreter. Raises ValueError for other types, for children
    with indices, and for an embed or rows that 128 does not divide.
    """
    children, up, atom_dec = codes.children, decoder.up, decoder.atom_dec
    if children.indices is not None:
        raise ValueError(
            "tpu decode_atoms: the children have indices, expected a slot for every atom; write "
            "expert_major.decode_atoms"
        )
    _check("decode_atoms", rows, children.values, up, atom_dec)
    tiles = tile(codes.parents.slot_indices(), up.shape[0], rows)
    return _decode(children.values, up, jnp.swapaxes(atom_dec, 1, 2), tiles, interpret)


def _check(name: str, rows: int, numbers: Array, wide: Array, atoms: Array) -> None:
    types = [str(a.dtype) for a in (numbers, wide, atoms)]
    if set(types) != {"float32"}:
        raise ValueError(f"tpu {name}: the arrays are {', '.join(types)}, expected float32; write expert_major.{name}")
    for what, size in (("embed", wide.shape[2]), ("rows", rows)):
        if size % LANES or not size:
            write = f"expert_major.{name}" if what == "embed" else f"rows={max(1, round(rows / LANES)) * LANES}"
            raise ValueError(f"tpu {name}: {what} is {size}, expected a multiple of {LANES}; write {write}")


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _encode(x: Array, down: Array, atoms: Array, tiles: Tiles, interpret: kernels.Interpret) -> Array:
    return _by_pair(kernels.project(_table(tiles), x, down, atoms, interpret), tiles)


def _encode_fwd(x: Array, down: Array, atoms: Array, tiles: Tiles, interpret: kernels.Interpret) -> tuple[Array, tuple]:
    return _encode(x, down, atoms, tiles, interpret), (x, down, atoms, tiles)


def _encode_bwd(interpret: kernels.Interpret, saved: tuple, g: Float[Array, "batch k atoms"]) -> tuple:
    x, down, atoms, tiles = saved
    table, numbers = _table(tiles), _by_slot(g, tiles)
    d_down, d_atoms = kernels.weights(table, x, down, atoms, numbers, interpret, with_projection=False)
    dx = _into_tokens(down, atoms, g, tiles, interpret)  # XLA drops it where nobody asks for it
    return dx, d_down, d_atoms, None


_encode.defvjp(_encode_fwd, _encode_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _decode(codes: Array, up: Array, atoms: Array, tiles: Tiles, interpret: kernels.Interpret) -> Array:
    return _into_tokens(up, atoms, codes, tiles, interpret)


def _decode_fwd(
    codes: Array, up: Array, atoms: Array, tiles: Tiles, interpret: kernels.Interpret
) -> tuple[Array, tuple]:
    return _decode(codes, up, atoms, tiles, interpret), (codes, up, atoms, tiles)


def _decode_bwd(interpret: kernels.Interpret, saved: tuple, g: Float[Array, "batch embed"]) -> tuple:
    codes, up, atoms, tiles = saved
    table, numbers = _table(tiles), _by_slot(codes, tiles)
    d_up, d_atoms, d_codes = kernels.weights(table, g, up, atoms, numbers, interpret, with_projection=True)
    return _by_pair(d_codes, tiles), d_up, d_atoms, None


_decode.defvjp(_decode_fwd, _decode_bwd)


def _table(tiles: Tiles) -> kernels.Table:
    count = jnp.sum(tiles.live, axis=1, dtype=jnp.int32)
    return kernels.Table(tiles.expert, count, tiles.token[:, None], tiles.used)


def _by_pair(numbers: Float[Array, "atoms slots"], tiles: Tiles) -> Float[Array, "batch k atoms"]:
    return numbers.T[tiles.place]


def _by_slot(numbers: Float[Array, "batch k atoms"], tiles: Tiles) -> Float[Array, "atoms slots"]:
    """Numbers of the pairs along lanes, 0 in slots not in use; their number is rounded up."""
    rows = tiles.pair.shape[1]
    values = by_number(numbers)
    tiles, group = _in_groups(tiles, LANES)  # XLA gathers them along sublanes, a row of lanes for each pair

    def body(out: Array, some: Tiles, first: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(out, _of(some, values), first * rows, axis=1)

    return over_tiles(tiles, group, body, jnp.zeros((numbers.shape[-1], tiles.pair.size), jnp.float32))


def _of(some: Tiles, numbers: Float[Array, "pairs atoms"]) -> Float[Array, "atoms slots"]:
    return some.of_pairs(numbers).reshape(-1, numbers.shape[-1]).T


def _in_groups(tiles: Tiles, width: int) -> tuple[Tiles, int]:
    group = min(group_size(width, tiles.pair.shape[1]), len(tiles.expert))
    return tiles.padded(group), group


def _into_tokens(
    wide: kernels.Wide,
    atoms: kernels.Atoms,
    numbers: Float[Array, "batch k atoms"],
    tiles: Tiles,
    interpret: kernels.Interpret,
) -> Float[Array, "batch embed"]:
    """``(A^T c)^T W`` of every pair, added up by token."""
    batch, embed = len(numbers), wide.shape[2]
    tiles, group = _in_groups(tiles, embed)
    values = by_number(numbers)

    def body(out: Array, some: Tiles, first: Array) -> Array:
        token = jnp.where(some.live, some.token, batch).reshape(-1)
        rows = kernels.spread(some.expert, wide, atoms, _of(some, values), interpret)
        return out.at[token].add(rows, mode="drop")

    return over_tiles(tiles, group, body, jnp.zeros((batch, embed), jnp.float32))
