"""The dictionary of an SAE as directions of the residual stream, in the units of the language model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jhsae.data import AbstractNormalizer, times
from jhsae.sae import AbstractSAE

MOST_COSINES = 2**25


def raw_rows(sae: AbstractSAE, normalizer: AbstractNormalizer) -> Float32[np.ndarray, "features embed"]:
    """One row per feature: what a code of 1 adds to the residual stream.

    An affine normaliser ``x = times(x', inverse) + shift`` turns a row into ``times(row, inverse)``. Where the scale
    depends on the token (unit norm, layer norm) the rows stand as they are: their direction holds for every token,
    and what a code adds is that row times the token's own scale.
    """
    rows = sae.dictionary()
    affine = normalizer.affine()
    return np.asarray(rows if affine is None else times(rows, affine.inverse), np.float32)


def directions(rows: Float32[np.ndarray, "features embed"]) -> Float[Array, "features embed"]:
    """The rows at norm 1; a row of zeros stays one."""
    return jnp.asarray(rows) / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def nearest(
    unit: Float[Array, "features embed"], chosen: Int[np.ndarray, " chosen"], k: int
) -> tuple[Int[np.ndarray, "chosen k"], Float32[np.ndarray, "chosen k"]]:
    """For each chosen one of the `directions` the k others of largest cosine, largest first, and the cosines."""
    step = max(1, MOST_COSINES // len(unit))
    blocks = [_nearest(unit, jnp.asarray(chosen[i : i + step]), k) for i in range(0, max(len(chosen), 1), step)]
    ids, cosines = (np.concatenate([np.asarray(a) for a in part]) for part in zip(*blocks, strict=True))
    return ids, cosines


def aligned_dimensions(
    row: Float[np.ndarray, " embed"], k: int = 3
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The k largest entries of a row: their dimensions, values, and shares of the row's L1 norm."""
    best = np.argsort(-row, kind="stable")[:k]
    return best, row[best], np.abs(row[best]) / max(float(np.abs(row).sum()), 1e-30)


@partial(jax.jit, static_argnames="k")
def _nearest(unit: Array, chosen: Array, k: int) -> tuple[Array, Array]:
    cosines = jnp.matmul(unit[chosen], unit.T, precision=jax.lax.Precision.HIGHEST)
    values, ids = jax.lax.top_k(cosines.at[jnp.arange(len(chosen)), chosen].set(-jnp.inf), k)
    return ids, values
