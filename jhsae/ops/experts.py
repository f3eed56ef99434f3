"""The work inside the selected experts, and the sparse decoder of parents and flat SAEs.

For token b and selected expert e = indices[b, j]:
``pre[b, j, a] = atom_enc[e, a] . (down[e] x_b)`` and ``x_hat[b] = sum_j (sum_c v[b,j,c] atom_dec[e, a_c]) up[e]``.

Three kernels compute the same numbers, gradients included:
- ``tiles``: pairs of token and expert sorted by expert (`expert_major`), exact under any imbalance. Work grows with k,
  nothing of size batch x k x embed exists. Rows of flat decoders are gathered token by token (`rows`).
- ``dense``: matrix products with all experts; work grows with their number. For few experts.
- ``gather``: each token gathers the rows of its experts: the plain reference. `chunk` bounds how many tokens are
  gathered at once (batch x k x sub x embed is 38 GB at the headline shape); chunks are recomputed in the backward.
``auto`` takes dense where a token selects a large part of the experts, else tiles.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops import expert_major
from jhsae.ops.chunks import map_chunks
from jhsae.ops.rows import gather_rows

Kernel = Literal["auto", "tiles", "gather", "dense"]
DENSE_BELOW = 8  # experts per selected expert; a guess: where products with all of them begin to win was not measured


def encode_atoms(
    x: Float[Array, "batch embed"],
    indices: Int[Array, "batch k"],
    down: Float[Array, "experts sub embed"],
    atom_enc: Float[Array, "experts atoms sub"],
    kernel: Kernel = "auto",
    chunk: int | None = None,
) -> Float[Array, "batch k atoms"]:
    """Pre-activations of every atom of the selected experts."""

    def gathered(x: Array, indices: Array) -> Array:
        return jnp.einsum("bks,bkas->bka", jnp.einsum("bd,bksd->bks", x, down[indices]), atom_enc[indices])

    match kernel_for(kernel, indices.shape[1], down.shape[0]):
        case "tiles":
            return expert_major.encode_atoms(x, indices, down, atom_enc)
        case "gather":
            return map_chunks(jax.checkpoint(gathered), chunk or x.shape[0], x, indices)
    hidden = jnp.einsum("bd,esd->bes", x, down)
    mine = jnp.take_along_axis(hidden, indices[..., None], axis=1)
    return jnp.einsum("bks,bkas->bka", mine, atom_enc[indices])


def decode_atoms(
    values: Float[Array, "batch k c"],
    atoms: Int[Array, "batch k c"] | None,
    indices: Int[Array, "batch k"],
    up: Float[Array, "experts sub embed"],
    atom_dec: Float[Array, "experts atoms sub"],
    kernel: Kernel = "auto",
    chunk: int | None = None,
) -> Float[Array, "batch embed"]:
    """What the selected atoms add to the reconstruction; with `atoms` None, `values` holds all atoms in order."""

    def inside(values: Array, atoms: Array, indices: Array) -> Array:
        return jnp.einsum("bkc,bkcs->bks", values, atom_dec[indices[..., None], atoms])

    def gathered(values: Array, atoms: Array, indices: Array) -> Array:
        return jnp.einsum("bks,bksd->bd", inside(values, atoms, indices), up[indices])

    chosen = kernel_for(kernel, indices.shape[1], up.shape[0])
    if chosen == "tiles":
        return expert_major.decode_atoms(values, indices, up, atom_dec, atoms)
    if atoms is None:
        atoms = jnp.broadcast_to(jnp.arange(atom_dec.shape[1], dtype=jnp.int32), values.shape)
    match chosen:
        case "gather":
            return map_chunks(jax.checkpoint(gathered), chunk or values.shape[0], values, atoms, indices)
    return jnp.einsum("bes,esd->bd", _spread(inside(values, atoms, indices), indices, up.shape[0]), up)


def decode_rows(
    values: Float[Array, "batch k"],
    indices: Int[Array, "batch k"],
    rows: Float[Array, "features embed"],
    kernel: Kernel = "auto",
    chunk: int | None = None,
) -> Float[Array, "batch embed"]:
    """``sum_j v_j rows[i_j]``."""

    def gathered(values: Array, indices: Array) -> Array:
        return jnp.einsum("bk,bkd->bd", values, rows[indices])

    match kernel_for(kernel, indices.shape[1], rows.shape[0]):
        case "tiles":
            return gather_rows(values, indices, rows)
        case "gather":
            return map_chunks(jax.checkpoint(gathered), chunk or values.shape[0], values, indices)
    return _spread(values, indices, rows.shape[0]) @ rows


def decode_tree(
    parents: Float[Array, "batch k"],
    values: Float[Array, "batch k c"],
    atoms: Int[Array, "batch k c"] | None,
    indices: Int[Array, "batch k"],
    rows: Float[Array, "experts embed"],
    up: Float[Array, "experts sub embed"],
    atom_dec: Float[Array, "experts atoms sub"],
    kernel: Kernel = "auto",
    chunk: int | None = None,
) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """(`decode_rows`, `decode_atoms`): the kernel ``tiles`` computes their gradients together."""
    if kernel_for(kernel, indices.shape[1], up.shape[0]) == "tiles":
        return expert_major.decode_tree(parents, values, atoms, indices, rows, up, atom_dec)
    low = decode_atoms(values, atoms, indices, up, atom_dec, kernel, chunk)
    return decode_rows(parents, indices, rows, kernel, chunk), low


def kernel_for(kernel: Kernel, k: int, features: int) -> Kernel:
    """The kernel that `kernel` means for k selected of so many features."""
    if kernel != "auto":
        return kernel
    return "dense" if features < DENSE_BELOW * k else "tiles"


def _spread(
    values: Float[Array, "batch k *rest"], indices: Int[Array, "batch k"], size: int
) -> Float[Array, "batch size *rest"]:
    """The selected values at their places among zeros; slots that share an index add up."""
    tokens = jnp.arange(values.shape[0])[:, None]
    return jnp.zeros((values.shape[0], size, *values.shape[2:]), values.dtype).at[tokens, indices].add(values)
