"""The expert operations of `expert_major` with kernels for NVIDIA GPUs (`wide_gpu`): same signatures and numbers.

``pre = atom_enc[e] down[e] x_b`` and ``x_hat[b] = sum_j (children[b, j] atom_dec[e_j]) up[e_j]``. The kernels do what
reads a row of the width of x for every pair; products inside an expert's few dimensions are XLA's:

| pass | kernels |
|---|---|
| encode | project |
| its gradient | weights; spread, for the gradient of x |
| decode | spread |
| its gradient | project, weights |

Pairs are sorted by expert, exact under any imbalance, except in `spread`, which goes token by token. Equal to
`expert_major` in Pallas' interpreters; compiled for an H100 without one. No GPU has run or timed them.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.ops import expert_major
from jhsae.ops.parameters import Decoder, ExpertEncoders
from jhsae.ops.precision import dot, operand, rounded, source
from jhsae.ops.sharding import to_local_index
from jhsae.ops.tiles import Tiles, by_number, tile

from . import decoding
from . import wide_gpu as kernels


class Residuals(NamedTuple):
    """What the forward pass of an encoding saves for the backward pass, on each device."""

    tiles: Tiles
    indices: Int[Array, "batch k"]
    hidden: Float[Array, "tiles rows sub"]
    """The input in the subspace of the tile's expert."""


def check(wide: Float[Array, "experts sub embed"]) -> None:
    """Raises UserError where the kernels cannot run: another platform, type or size.

    Args:
        wide: the wide matrices, `down` or `up`.
    """
    kernels.check_platform('kernel is "gpu"', "kernel: auto")
    _, sub, embed = wide.shape
    if wide.dtype != jnp.float32:
        raise UserError(f'kernel "gpu": the matrices of experts are {wide.dtype}, expected float32; write kernel: auto')
    if embed % kernels.THREADS or not embed:
        raise UserError(f'kernel "gpu": embed is {embed}, expected a multiple of {kernels.THREADS}; write kernel: auto')
    if not 1 <= sub <= kernels.WIDEST:
        raise UserError(f'kernel "gpu": sub is {sub}, expected 1 to {kernels.WIDEST}; write kernel: auto')


def encode_atoms(
    x: Float[Array, "batch embed"], indices: Int[Array, "batch k"], encoders: ExpertEncoders
) -> Float[Array, "batch k atoms"]:
    """``atom_enc[e] down[e] x_b`` for the selected experts e = indices[b, j]."""
    return expert_major.encode_atoms(x, indices, encoders, "gpu")


def encode_forward(x: Array, indices: Array, encoders: ExpertEncoders) -> tuple[Array, Residuals]:
    """The pre-activations on one device, and what their gradients need."""
    down, atom_enc = encoders.down, encoders.atom_enc
    check(down)
    tiles = tile(indices, len(down), kernels.ROWS)
    hidden = _project(tiles, x, down)
    pre = dot("nts,nas->nta", hidden, atom_enc[tiles.expert])
    return tiles.by_pair(pre), Residuals(tiles, indices, hidden)


def encode_backward(
    x: Array, encoders: ExpertEncoders, residuals: Residuals, g: Array, weights: Float[Array, "batch k"] | None = None
) -> tuple[ExpertEncoders, Array, Array]:
    """The gradients of the encoders, and two sums that cost little beside them.

    The second is ``sum over pairs of weights[b, j] x_b`` for each expert (0 without `weights`); the third the sum over
    tokens of the gradient of x.
    """
    (down, atom_enc), (tiles, _, hidden) = (encoders.down, encoders.atom_enc), residuals
    (experts, sub, embed), gt = down.shape, tiles.of_pairs(by_number(g))
    dh = dot("nta,nas->nts", gt, atom_enc[tiles.expert])
    left = dh if weights is None else _beside(dh, tiles.of_pairs(by_number(weights)))
    sums = _weights(tiles, x, left, experts)
    d_rows = jnp.zeros((experts, embed)) if weights is None else sums[:, sub]
    d_enc, hidden_sum = _by_expert(tiles, experts, dot("nta,nts->nas", gt, hidden), jnp.sum(dh, axis=1))
    return ExpertEncoders(sums[:, :sub], d_enc), d_rows, jnp.einsum("es,esd->d", hidden_sum, down)


def encode_to_input(x: Array, encoders: ExpertEncoders, residuals: Residuals, g: Array) -> Float[Array, "batch embed"]:
    """The gradient of x: a kernel of its own, which is not run where nobody asks for it."""
    (down, atom_enc), (tiles, indices, _) = (encoders.down, encoders.atom_enc), residuals
    dh = dot("nta,nas->nts", tiles.of_pairs(by_number(g)), atom_enc[tiles.expert])
    return _spread(tiles, indices, dh, down)


def decode_atoms(codes: TreeCodes, decoder: Decoder) -> Float[Array, "batch embed"]:
    """``sum_j (sum_c children[b, j, c] atom_dec[e_j, a_jc]) up[e_j]``: what the atoms alone add."""
    return decoding.decode_atoms(DECODING, codes.children, codes.parents.slot_indices(), decoder.up, decoder.atom_dec)


def decode_tree(codes: TreeCodes, decoder: Decoder) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """What the parents add, ``sum_j parents[b, j] rows[e_j]``, and what the atoms add: `decode_atoms`."""
    return decoding.decode_tree(DECODING, codes, decoder)


def _decode(children: Codes, indices: Array, up: Array, atom_dec: Array) -> Float[Array, "batch embed"]:
    check(up)
    tiles, dense = _with_atoms(children, indices, len(up))
    return _spread(tiles, indices, dot("nta,nas->nts", dense, atom_dec[tiles.expert]), up)


def _decode_gradients(
    children: Codes, indices: Array, up: Array, atom_dec: Array, g: Array
) -> tuple[Array, Array, Array]:
    experts = len(up)
    tiles, dense = _with_atoms(children, indices, experts)
    dec = atom_dec[tiles.expert]
    d_inside = _project(tiles, g, up)
    d_up = _weights(tiles, g, dot("nta,nas->nts", dense, dec), experts)
    (d_dec,) = _by_expert(tiles, experts, dot("nta,nts->nas", dense, d_inside))
    return tiles.by_pair(dot("nts,nas->nta", d_inside, dec)), d_up, d_dec


DECODING = decoding.Decoding(_decode, _decode_gradients)


def _with_atoms(children: Codes, indices: Array, experts: int) -> tuple[Tiles, Float[Array, "tiles rows atoms"]]:
    """The tiles, and the children of their pairs at their atoms."""
    tiles = tile(indices, experts, kernels.ROWS)
    return tiles, tiles.of_pairs(by_number(decoding.all_atoms(children, children.size)))


def _project(tiles: Tiles, x: Array, wide: Array) -> Float[Array, "tiles rows sub"]:
    in_use = jnp.sum(tiles.live, axis=1, dtype=jnp.int32)
    return kernels.project(source(x), wide, tiles.expert, in_use, tiles.token)


def _weights(tiles: Tiles, x: Array, left: Float[Array, "tiles rows sub"], experts: int) -> Array:
    """``sum over the pairs of an expert of left x^T``; rows of its tiles follow one another, those in use first."""
    pairs = jnp.zeros(experts, jnp.int32).at[tiles.expert].add(jnp.sum(tiles.live, axis=1, dtype=jnp.int32))
    groups = kernels.Groups(_tiles_of(tiles, experts).first * tiles.pair.shape[1], pairs)
    left = rounded(left).reshape(-1, left.shape[-1])
    return kernels.weights(source(x), left, tiles.token.reshape(-1), groups)


def _spread(
    tiles: Tiles, indices: Int[Array, "batch k"], inside: Float[Array, "tiles rows sub"], wide: Array
) -> Float[Array, "batch embed"]:
    here = to_local_index(indices, len(wide))
    here = jnp.where(here < len(wide), here, 0)  # of another device's expert the numbers are 0
    return kernels.spread(rounded(tiles.by_pair(inside)), here.astype(jnp.int32), operand(wide))


def _tiles_of(tiles: Tiles, experts: int) -> kernels.Groups:
    """The tiles of each expert."""
    used = (jnp.arange(len(tiles.expert)) < tiles.used).astype(jnp.int32)
    count = jnp.zeros(experts, jnp.int32).at[tiles.expert].add(used)
    return kernels.Groups(jnp.cumsum(count) - count, count)


def _by_expert(tiles: Tiles, experts: int, *parts: Array) -> list[Array]:
    """Sums over the tiles of each expert, in their order: a scatter's would depend on the order of its atomics."""
    flat = [part.reshape(len(part), -1) for part in parts]
    width = sum(part.shape[1] for part in flat)
    columns = jnp.pad(jnp.concatenate(flat, axis=1), [(0, 0), (0, -width % kernels.THREADS)])
    ones, number = jnp.ones((len(columns), 1)), jnp.arange(len(columns), dtype=jnp.int32)
    sums = kernels.weights(columns, ones, number, _tiles_of(tiles, experts))[:, 0]
    found, start = [], 0
    for part, shape in zip(flat, (part.shape[1:] for part in parts), strict=True):
        found.append(sums[:, start : start + part.shape[1]].reshape(experts, *shape))
        start += part.shape[1]
    return found


def _beside(a: Float[Array, "tiles rows sub"], last: Float[Array, "tiles rows"]) -> Float[Array, "tiles rows more"]:
    return jnp.concatenate([a, last[..., None]], axis=-1)
