"""Worlds of orthonormal features, and an SAE with any dictionary and any tree, which reads codes off by projection."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.sae import AbstractSAE, Forward
from jhsae.sae.base import TopLevel
from jhsae.usage import Context
from jhsae.worlds import Hierarchy

DEPTH3 = (-1, -1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 5)  # two roots, four children, six grandchildren
EMBED = 16


class ByHand(AbstractSAE):
    """``codes = x @ encoder``, 0 where below `least`; `parents` as given."""

    rows: Float[Array, "features embed"]
    encoder: Float[Array, "embed features"]
    parents: tuple[int, ...] = eqx.field(static=True)
    least: float = eqx.field(static=True, default=0.1)

    @property
    def top_level(self) -> TopLevel:
        return TopLevel(self.encoder.T, self.rows, ())

    def latent_parents(self) -> np.ndarray:
        return np.array(self.parents)

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        values = x @ self.encoder
        codes = Codes(jnp.where(values > self.least, values, 0.0), None, len(self.rows))
        return Forward(x, self.decode(codes), codes, ops.Encoder.from_preactivations(values), context)

    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        return codes.dense() @ self.rows


def by_hand(rows, parents, **options) -> ByHand:
    """The SAE of a dictionary, whose encoder is the pseudoinverse."""
    rows = np.asarray(rows, np.float32)
    return ByHand(jnp.asarray(rows), jnp.asarray(np.linalg.pinv(rows)), tuple(int(p) for p in parents), **options)


def orthonormal(features: int, seed: int = 0, embed: int = EMBED) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(embed, embed)))[0][:features].astype(np.float32)


def magnitudes(hierarchy: Hierarchy, rows: int, seed: int = 0, chance: float = 0.5) -> np.ndarray:
    """Each feature is on with probability `chance` where a parent of it is, with a magnitude of 0.5 to 1.5."""
    rng = np.random.default_rng(seed)
    on = rng.random((rows, hierarchy.size)) < chance
    for i in hierarchy.order:
        if hierarchy.above[i]:
            on[:, i] &= on[:, list(hierarchy.above[i])].any(axis=1)
    return (on * rng.uniform(0.5, 1.5, on.shape)).astype(np.float32)


def cut(x: np.ndarray, codes: np.ndarray, size: int = 100) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x[i : i + size], codes[i : i + size]) for i in range(0, len(x), size)]
