"""The work inside the selected experts, and the sparse decoder of parents and flat SAEs.

For token b and selected expert e = indices[b, j]:
``pre[b, j, a] = atom_enc[e, a] . (down[e] x_b)`` and ``x_hat[b] = sum_j (sum_c v[b,j,c] atom_dec[e, a_c]) up[e]``.

Two kernels compute the same numbers:
- ``gather``: each token gathers the rows of its experts; work and memory grow with k. `chunk` bounds how many tokens
  are gathered at once (batch x k x sub x embed is 38 GB at the headline shape); chunks are recomputed in the backward.
- ``dense``: matrix products with all experts; work grows with their number. Faster for up to about a thousand
  experts on CPU, where the scatter of the gather kernel's backward pass is serial.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Kernel = Literal["gather", "dense"]


def encode_atoms(
    x: Float[Array, "batch embed"],
    indices: Int[Array, "batch k"],
    down: Float[Array, "experts sub embed"],
    atom_enc: Float[Array, "experts atoms sub"],
    kernel: Kernel = "gather",
    chunk: int | None = None,
) -> Float[Array, "batch k atoms"]:
    """Pre-activations of every atom of the selected experts."""

    def gathered(x: Array, indices: Array) -> Array:
        return jnp.einsum("bks,bkas->bka", jnp.einsum("bd,bksd->bks", x, down[indices]), atom_enc[indices])

    if kernel == "gather":
        return _chunked(gathered, chunk, x, indices)
    hidden = jnp.einsum("bd,esd->bes", x, down)
    mine = jnp.take_along_axis(hidden, indices[..., None], axis=1)
    return jnp.einsum("bks,bkas->bka", mine, atom_enc[indices])


def decode_atoms(
    values: Float[Array, "batch k c"],
    atoms: Int[Array, "batch k c"],
    indices: Int[Array, "batch k"],
    up: Float[Array, "experts sub embed"],
    atom_dec: Float[Array, "experts atoms sub"],
    kernel: Kernel = "gather",
    chunk: int | None = None,
) -> Float[Array, "batch embed"]:
    """What the selected atoms add to the reconstruction."""

    def inside(values: Array, atoms: Array, indices: Array) -> Array:
        return jnp.einsum("bkc,bkcs->bks", values, atom_dec[indices[..., None], atoms])

    def gathered(values: Array, atoms: Array, indices: Array) -> Array:
        return jnp.einsum("bks,bksd->bd", inside(values, atoms, indices), up[indices])

    if kernel == "gather":
        return _chunked(gathered, chunk, values, atoms, indices)
    return jnp.einsum("bes,esd->bd", _spread(inside(values, atoms, indices), indices, up.shape[0]), up)


def decode_rows(
    values: Float[Array, "batch k"],
    indices: Int[Array, "batch k"],
    rows: Float[Array, "features embed"],
    kernel: Kernel = "gather",
    chunk: int | None = None,
) -> Float[Array, "batch embed"]:
    """``sum_j v_j rows[i_j]``."""

    def gathered(values: Array, indices: Array) -> Array:
        return jnp.einsum("bk,bkd->bd", values, rows[indices])

    if kernel == "gather":
        return _chunked(gathered, chunk, values, indices)
    return _spread(values, indices, rows.shape[0]) @ rows


def _spread(
    values: Float[Array, "batch k *rest"], indices: Int[Array, "batch k"], size: int
) -> Float[Array, "batch size *rest"]:
    """The selected values at their places among zeros; slots that share an index add up."""
    tokens = jnp.arange(values.shape[0])[:, None]
    return jnp.zeros((values.shape[0], size, *values.shape[2:]), values.dtype).at[tokens, indices].add(values)


def _chunked(fn: Callable[..., Array], chunk: int | None, *arrays: Any) -> Array:
    """``fn(*arrays)`` in chunks of tokens, rematerialised in the backward pass; a remainder runs on its own."""
    batch = arrays[0].shape[0]
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1 token, or null to gather the whole batch at once")
    if chunk is None or chunk >= batch:
        return fn(*arrays)
    whole = batch - batch % chunk
    # Every n-th token, so that a batch that is split over devices gives each of them a share of every chunk.
    stacked = [a[:whole].reshape(chunk, -1, *a.shape[1:]).swapaxes(0, 1) for a in arrays]
    out = jax.lax.map(lambda parts: jax.checkpoint(fn)(*parts), stacked)
    out = out.swapaxes(0, 1).reshape(whole, *out.shape[2:])
    return out if whole == batch else jnp.concatenate([out, fn(*[a[whole:] for a in arrays])])
