"""The expert operations of `expert_major` with TPU kernels (`tile_kernels`): same signatures, numbers and gradients.

``pre = atom_enc[e] down[e] x_b`` and ``x_hat[b] = sum_j (children[b, j] atom_dec[e_j]) up[e_j]``, over tiles of 128
pairs of a block of experts. Each is the other's transpose, so that three kernels serve four passes:

| pass | kernels |
|---|---|
| encode | project |
| its gradient | weights; spread, for the gradient of x |
| decode | spread |
| its gradient | weights, which also projects |

Rows of x are copied into fast memory by the kernels. Spread keeps the sums of some tokens there, which are written
once; it reads the matrices once for each such part of the batch. The kernels equal `expert_major` in Pallas'
interpreter and compile for TPU; no TPU has run or timed them. One core works on all tiles, also where a chip has two.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.ops import expert_major
from jhsae.ops.parameters import Decoder, ExpertEncoders
from jhsae.ops.precision import COMPUTE, once, operand
from jhsae.ops.sharding import shards, to_local_index
from jhsae.ops.tiles import by_number, tile

from . import decoding
from . import tile_kernels as kernels
from .tile_pipeline import LANES, Atoms, Numbers, Source, Table, Wide, check_platform, packed

ROWS = 128  # pairs of a tile
BLOCK, BLOCK_ROWS = 8, 64  # experts of a block, and rows of their wide matrices, where the whole batch is sorted
SPREAD = (16, 64)  # the same for spread, to which fewer pairs of an expert come at a time
SUMS = 38 * 2**20  # bytes of the sums that spread keeps in fast memory


class Residuals(NamedTuple):
    """What the forward pass of an encoding saves for the backward pass, on each device."""

    table: Table
    indices: Int[Array, "batch k"]


def check(embed: int, down: Float[Array, "experts sub embed"]) -> None:
    """Raises UserError where the kernels cannot run: another platform, type or size.

    Args:
        embed: the size of the vectors.
        down: the wide matrices, `down` or `up`.
    """
    check_platform('kernel is "tpu"', "kernel: auto")
    lanes = LANES * (2 if COMPUTE.get() == "bfloat16" else 1)
    if down.dtype != jnp.float32:
        raise UserError(f'kernel "tpu": the matrices of experts are {down.dtype}, expected float32; write kernel: auto')
    if embed % lanes or not embed:
        raise UserError(f'kernel "tpu": embed is {embed}, expected a multiple of {lanes}; write kernel: auto')


def encode_atoms(
    x: Float[Array, "batch embed"], indices: Int[Array, "batch k"], encoders: ExpertEncoders
) -> Float[Array, "batch k atoms"]:
    """``atom_enc[e] down[e] x_b`` for the selected experts e = indices[b, j]."""
    return expert_major.encode_atoms(x, indices, encoders, "tpu")


def encode_forward(x: Array, indices: Array, encoders: ExpertEncoders) -> tuple[Array, Residuals]:
    """The pre-activations on one device, and what their gradients need."""
    down, atoms = encoders.down, encoders.atom_enc.shape[1]
    check(x.shape[1], down)
    table, atom_enc = _table(indices, down, BLOCK, BLOCK_ROWS), _atoms(encoders.atom_enc, BLOCK, BLOCK_ROWS)
    rows = kernels.project(table, _source(x, indices.shape[1]), down, atom_enc, indices.size)
    return _by_slot(rows, indices, len(down))[..., :atoms], Residuals(table, indices)


def encode_backward(
    x: Array, encoders: ExpertEncoders, residuals: Residuals, g: Array, weights: Float[Array, "batch k"] | None = None
) -> tuple[ExpertEncoders, Array, Array]:
    """The gradients of the encoders, and two sums that cost little beside them.

    The second is ``sum over pairs of weights[b, j] x_b`` for each expert (0 without `weights`); the third the sum over
    tokens of the gradient of x.
    """
    (down, atom_enc), (table, indices) = (encoders.down, encoders.atom_enc), residuals
    experts, atoms, _ = atom_enc.shape
    raw = jnp.zeros(indices.shape) if weights is None else weights
    numbers = _numbers(g, raw)
    d_down, d_atoms, d_rows, sums = kernels.weights(
        table,
        _source(x, indices.shape[1]),
        down,
        _atoms(atom_enc, BLOCK, BLOCK_ROWS, numbers.shape[1]),
        numbers,
        projected=False,
        weight=atoms,
    )
    hidden_sum = jnp.einsum("ea,eas->es", sums.reshape(experts, -1)[:, :atoms], atom_enc)
    d_encoders = ExpertEncoders(d_down, _of_experts(d_atoms, atom_enc))
    return d_encoders, d_rows.reshape(experts, -1), jnp.einsum("es,esd->d", hidden_sum, down)


def encode_to_input(x: Array, encoders: ExpertEncoders, residuals: Residuals, g: Array) -> Float[Array, "batch embed"]:
    """The gradient of x: kernels of its own, which are not run where nobody asks for it."""
    return _into_tokens(_numbers(g), residuals.indices, encoders.down, encoders.atom_enc)


def decode_atoms(codes: TreeCodes, decoder: Decoder) -> Float[Array, "batch embed"]:
    """``sum_j (sum_c children[b, j, c] atom_dec[e_j, a_jc]) up[e_j]``: what the atoms alone add."""
    return decoding.decode_atoms(DECODING, codes.children, codes.parents.slot_indices(), decoder.up, decoder.atom_dec)


def decode_tree(codes: TreeCodes, decoder: Decoder) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """What the parents add, ``sum_j parents[b, j] rows[e_j]``, and what the atoms add: `decode_atoms`."""
    return decoding.decode_tree(DECODING, codes, decoder)


def _decode(children: Codes, indices: Array, up: Array, atom_dec: Array) -> Array:
    check(up.shape[2], up)
    return _into_tokens(_dense(children), indices, up, atom_dec)


def _decode_gradients(
    children: Codes, indices: Array, up: Array, atom_dec: Array, g: Array
) -> tuple[Array, Array, Array]:
    d_up, d_atoms, rows = kernels.weights(
        _table(indices, up, BLOCK, BLOCK_ROWS),
        _source(g, indices.shape[1]),
        up,
        _atoms(atom_dec, BLOCK, BLOCK_ROWS),
        _dense(children),
        projected=True,
    )
    return _by_slot(rows, indices, len(up)), d_up, _of_experts(d_atoms, atom_dec)


DECODING = decoding.Decoding(_decode, _decode_gradients)


def _block(experts: int, sub: int, most: int, rows: int) -> int:
    """Experts of a block: a power of two that divides their number, whose matrices have at most so many rows."""
    block = 1
    while experts % (2 * block) == 0 and 2 * block <= most and 2 * block * sub <= rows:
        block *= 2
    return block


def _table(indices: Int[Array, "batch k"], wide: Wide, most: int, rows: int) -> Table:
    experts = len(wide)
    block = _block(experts, wide.shape[1], most, rows)
    tiles = tile(indices // block, experts // block, ROWS, least=1)
    own = jnp.where(tiles.live, (indices % block).astype(jnp.int32).reshape(-1)[tiles.pair], -1)
    count = jnp.sum(tiles.live, axis=1, dtype=jnp.int32)
    return Table(tiles.expert, count, tiles.pair[:, None], own[:, None], tiles.used)


def _atoms(atoms: Float[Array, "experts atoms sub"], most: int, rows: int, lanes: int | None = None) -> Atoms:
    experts, size, sub = atoms.shape
    block = _block(experts, sub, most, rows)
    below = jnp.swapaxes(atoms, 1, 2).reshape(experts // block, block * sub, size)
    return jnp.pad(below, [(0, 0), (0, 0), (0, (lanes or _lanes(size)) - size)])


def _of_experts(atoms: Atoms, like: Float[Array, "experts atoms sub"]) -> Float[Array, "experts atoms sub"]:
    experts, size, sub = like.shape
    return jnp.swapaxes(atoms.reshape(experts, sub, -1)[..., :size], 1, 2)


def _lanes(size: int) -> int:
    return size + -size % LANES


def _source(x: Float[Array, "batch embed"], k: int) -> Source:
    """Rows of tokens in the format of products."""
    return Source(x if COMPUTE.get() == "float32" else once(packed(x)), k)


def _numbers(values: Float[Array, "batch k atoms"], last: Float[Array, "batch k"] | None = None) -> Numbers:
    """The values of every pair, then `last`, then zeros."""
    size = values.shape[-1]
    lanes = _lanes(size + (last is not None))
    padded = jnp.pad(values, [(0, 0), (0, 0), (0, lanes - size)])
    if last is not None:  # not concatenated: that would be written once more
        padded = jnp.where(jnp.arange(lanes) == size, last[..., None], padded)
    return by_number(padded)


def _dense(children: Codes) -> Numbers:
    """The children of every pair at their atoms."""
    return by_number(decoding.all_atoms(children, _lanes(children.size)))


def _by_slot(rows: Numbers, indices: Int[Array, "batch k"], experts: int) -> Float[Array, "batch k lanes"]:
    """Rows of pairs by token; 0 for those of other devices, which no kernel wrote."""
    found = rows.reshape(*indices.shape, -1)
    return found if shards() == 1 else jnp.where((to_local_index(indices, experts) < experts)[..., None], found, 0)


def _into_tokens(
    numbers: Numbers,
    indices: Int[Array, "batch k"],
    wide: Wide,
    atoms: Float[Array, "experts atoms sub"],
) -> Float[Array, "batch embed"]:
    """``(A^T c)^T W`` of every pair, added up by token, some tokens at a time."""
    (batch, k), embed = indices.shape, wide.shape[2]
    parts = -(-batch // max(8, SUMS // (4 * embed) // 8 * 8))
    tokens = -(-batch // (8 * parts)) * 8
    more = parts * tokens - batch
    wide, atoms = operand(wide), _atoms(atoms, *SPREAD, numbers.shape[1])
    numbers = jnp.pad(numbers, [(0, more * k), (0, 0)]) if more else numbers
    # tokens that do not exist have numbers of 0; their experts follow one another, so that none gets all of them
    extra = jnp.arange(more * k, dtype=indices.dtype).reshape(more, k) % len(wide)
    indices = jnp.concatenate([indices, extra]).reshape(parts, tokens, k)

    def some(out: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        first, indices = part
        return kernels.spread(_table(indices, wide, *SPREAD), wide, atoms, numbers, out, first, tokens, k), None

    first = jnp.arange(parts, dtype=jnp.int32) * tokens
    return jax.lax.scan(some, jnp.zeros((parts * tokens, embed)), (first, indices))[0][:batch]
