"""The work inside the selected experts: project down, encode to atoms; decode atoms, project up.

For token b and selected expert e = indices[b, j]:
``pre[b, j, a] = atom_enc[e, a] . (down[e] x_b)`` and ``x_hat[b] = sum_j (sum_c v[b,j,c] atom_dec[e, a_c]) up[e]``.
Rows are gathered per token. `chunk` bounds how many tokens are gathered at once: a batch x k x sub x embed array at
the headline shape is 38 GB. The chunks are recomputed in the backward pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def encode_atoms(
    x: Float[Array, "batch embed"],
    indices: Int[Array, "batch k"],
    down: Float[Array, "experts sub embed"],
    atom_enc: Float[Array, "experts atoms sub"],
    chunk: int | None = None,
) -> Float[Array, "batch k atoms"]:
    """Pre-activations of every atom of the selected experts."""

    def some(x: Array, indices: Array) -> Array:
        hidden = jnp.einsum("bd,bksd->bks", x, down[indices])
        return jnp.einsum("bks,bkas->bka", hidden, atom_enc[indices])

    return _chunked(some, chunk, x, indices)


def decode_atoms(
    values: Float[Array, "batch k c"],
    atoms: Int[Array, "batch k c"],
    indices: Int[Array, "batch k"],
    up: Float[Array, "experts sub embed"],
    atom_dec: Float[Array, "experts atoms sub"],
    chunk: int | None = None,
) -> Float[Array, "batch embed"]:
    """What the selected atoms add to the reconstruction."""

    def some(values: Array, atoms: Array, indices: Array) -> Array:
        inside = jnp.einsum("bkc,bkcs->bks", values, atom_dec[indices[..., None], atoms])
        return jnp.einsum("bks,bksd->bd", inside, up[indices])

    return _chunked(some, chunk, values, atoms, indices)


def decode_rows(
    values: Float[Array, "batch k"],
    indices: Int[Array, "batch k"],
    rows: Float[Array, "features embed"],
    chunk: int | None = None,
) -> Float[Array, "batch embed"]:
    """``sum_j v_j rows[i_j]``: the sparse decoder of parents and of flat SAEs."""

    def some(values: Array, indices: Array) -> Array:
        return jnp.einsum("bk,bkd->bd", values, rows[indices])

    return _chunked(some, chunk, values, indices)


def _chunked(fn: Callable[..., Array], chunk: int | None, *arrays: Any) -> Array:
    """``fn(*arrays)`` in chunks of tokens, rematerialised in the backward pass; a remainder runs on its own."""
    batch = arrays[0].shape[0]
    if chunk is None or chunk >= batch:
        return fn(*arrays)
    whole = batch - batch % chunk
    stacked = [a[:whole].reshape(-1, chunk, *a.shape[1:]) for a in arrays]
    out = jax.lax.map(lambda parts: jax.checkpoint(fn)(*parts), stacked)
    out = out.reshape(whole, *out.shape[2:])
    return out if whole == batch else jnp.concatenate([out, fn(*[a[whole:] for a in arrays])])
