"""The batch of a benchmark: unit vectors, each the sum of a few directions, some of which are far more common.

Common directions make some experts busy and leave others idle, as text does. A code that lies on a threshold, or two
that tie, may be selected by one program and not by another that adds up in another order, and then gradients differ
by a whole token; so rows are drawn in excess, and those whose selections are the least clear are left out.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from jhsae.bench.original import SLOPE
from jhsae.bench.shape import Shape
from jhsae.sae import HierarchicalSAE

PARTS, NOISE, CHUNK, EXCESS = 12, 0.3, 256, 1.25


class Load(NamedTuple):
    """How the experts of the starting SAE are used by the batch."""

    parents_per_token: float
    experts_over_threshold: float
    busiest_over_mean: float
    idle_share: float


def random_rows(rows: int, embed: int, seed: int = 0) -> Float32[np.ndarray, "rows embed"]:
    """Unit rows: sums of 12 of 4 x embed directions, the i-th with probability proportional to 1 / (i + 10)."""
    rng = np.random.default_rng([seed, embed])
    directions = _unit(rng.standard_normal((4 * embed, embed), np.float32))
    common = 1 / (np.arange(len(directions)) + 10)
    out = np.empty((rows, embed), np.float32)
    for start in range(0, rows, CHUNK):
        size = min(CHUNK, rows - start)
        chosen = rng.choice(len(directions), (size, PARTS), p=common / common.sum())
        sums = np.einsum("rp,rpd->rd", rng.random((size, PARTS), np.float32), directions[chosen])
        noise = NOISE * _unit(rng.standard_normal((size, embed), np.float32))
        out[start : start + size] = _unit(sums + noise)
    return out


def make_batch(shape: Shape, sae: HierarchicalSAE) -> tuple[Float32[np.ndarray, "batch embed"], Load]:
    """The batch, and how the starting `sae` (the faithful one) uses its experts on it."""
    rows = random_rows(int(shape.batch * EXCESS) + 1, shape.embed)
    look = partial(_look, k=shape.k, offset=shape.offset)
    with jax.default_matmul_precision("highest"):
        seen = [jax.device_get(look(sae, jnp.asarray(rows[i : i + CHUNK]))) for i in range(0, len(rows), CHUNK)]
    margins, indices, over = (np.concatenate(part) for part in zip(*seen, strict=True))
    kept = np.sort(np.argsort(-margins, kind="stable")[: shape.batch])
    used = indices[kept]
    counts = np.bincount(used[used >= 0], minlength=shape.experts)
    load = Load(
        float((used >= 0).sum(axis=1).mean()),
        float(over[kept].mean()),
        float(counts.max() / max(counts.mean(), 1e-9)),
        float((counts == 0).mean()),
    )
    return rows[kept], load


@eqx.filter_jit
def _look(sae: HierarchicalSAE, x: Float[Array, "rows embed"], k: int, offset: float) -> tuple[Array, Array, Array]:
    """How clear each row's selections are, its active experts (-1: none), and how many clear the threshold.

    Plain arithmetic, so that no implementation under test decides what it is tested on.
    """
    router_enc, down, atom_enc = sae.encoders()
    pre = x @ router_enc.T
    ranked, indices = jax.lax.top_k(jnp.where(pre >= offset, pre, 0.0), min(k + 1, pre.shape[1]))
    values, indices = ranked[:, :k], indices[:, :k]
    hidden = jnp.einsum("bd,bksd->bks", x, down[indices])
    atoms = jnp.einsum("bks,bkas->bka", hidden, atom_enc[indices])
    best, _ = jax.lax.top_k(jnp.where(atoms >= offset, atoms, SLOPE * atoms), min(2, atoms.shape[-1]))
    margins = [
        _least(pre - offset),
        _least((atoms - offset).reshape(len(x), -1)),
        _gap(values[:, -1], ranked[:, -1], pre.shape[1] > k),
        jnp.min(_gap(best[..., 0], best[..., -1], atoms.shape[-1] > 1), axis=-1),
    ]
    margin = jnp.min(jnp.stack(margins), axis=0)
    return margin, jnp.where(values > 0, indices, -1), jnp.sum(pre >= offset, axis=-1)


def _gap(last_in: Array, first_out: Array, left_out: bool) -> Array:
    """How far the first that is left out falls behind; slots of value 0 may change places."""
    return jnp.where(left_out & (last_in != 0), last_in - first_out, jnp.inf)


def _least(a: Float[Array, "rows n"]) -> Float[Array, "rows"]:
    return jnp.min(jnp.abs(a), axis=-1)


def _unit(a: Float32[np.ndarray, "rows embed"]) -> Float32[np.ndarray, "rows embed"]:
    return a / np.linalg.norm(a, axis=1, keepdims=True)
