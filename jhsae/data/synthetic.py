"""Synthetic activations with a known hierarchy: ground truth for tests and examples.

Parents fire independently, x = sum over active p of m_p (d_p + r_c d_pc), where at most one child c of an
active parent fires (mutual exclusion), m_p > 0 and r_c > 0 are magnitudes, d_p unit directions, and d_pc
unit directions orthogonal to d_p (hierarchical orthogonality, Park et al., arXiv 2406.01506). Firing rates
are Zipf distributed. Structure after SynthSAEBench (Chanin and Garriga-Alonso, arXiv 2602.14687):
magnitudes relu(mu + sigma eps), and a child's magnitude scales with its parent's.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Tree(eqx.Module):
    """True directions, all of unit norm; ``children[p, c]`` is orthogonal to ``parents[p]``."""

    parents: Float[Array, "parents embed"]
    children: Float[Array, "parents children embed"]

    def features(self) -> Float[Array, "features embed"]:
        """Parents first, then child c of parent p in row P + p*C + c: the order of ``TreeCodes.flat()``."""
        return jnp.concatenate([self.parents, self.children.reshape(-1, self.children.shape[-1])])


class TrueCodes(eqx.Module):
    """The true codes of the samples. A magnitude is 0 where the feature is off."""

    parents: Float[Array, "batch parents"]
    children: Float[Array, "batch parents children"]

    def dense(self) -> Float[Array, "batch features"]:
        """Over the rows of ``Tree.features()``, so that x = ``dense() @ features()`` without noise."""
        return jnp.concatenate([self.parents, self.children.reshape(len(self.parents), -1)], axis=1)


@eqx.filter_jit
def tree(key: Key[Array, ""], embed: int, parents: int, children_per_parent: int) -> Tree:
    """Random directions. `embed` must be at least 2."""
    key_parents, key_children = jax.random.split(key)
    top = _unit(jax.random.normal(key_parents, (parents, embed)))
    low = jax.random.normal(key_children, (parents, children_per_parent, embed))
    along = jnp.einsum("pce,pe->pc", low, top)
    return Tree(top, _unit(low - along[..., None] * top[:, None, :]))


def zipf(count: int, exponent: float, highest: float, lowest: float) -> Float[Array, "count"]:
    """Firing rates from `highest` down to `lowest`, falling as rank^-exponent in between."""
    rank = jnp.arange(1, count + 1, dtype=jnp.float32) ** -exponent
    span = jnp.maximum(rank[0] - rank[-1], jnp.finfo(jnp.float32).tiny)
    return lowest + (highest - lowest) * (rank - rank[-1]) / span


@eqx.filter_jit
def sample(
    key: Key[Array, ""],
    truth: Tree,
    n: int,
    *,
    exponent: float = 0.5,
    highest: float = 0.4,
    lowest: float = 0.02,
    child_rate: float = 0.8,
    magnitude: float = 1.0,
    spread: float = 0.15,
    child_magnitude: float = 0.7,
    noise: float = 0.0,
) -> tuple[Float[Array, "n embed"], TrueCodes]:
    """`n` activations and their true codes, deterministic in `key`.

    Parents fire at Zipf rates from `highest` to `lowest`. Under an active parent some child fires with
    probability `child_rate`, which one is Zipf distributed too. Magnitudes: relu of normal(`magnitude`,
    `spread`); a child's is its parent's times relu of normal(`child_magnitude`, `spread`). `noise`:
    standard deviation per coordinate.
    """
    parents, children, embed = truth.children.shape
    key_fires, key_magnitudes, key_noise = jax.random.split(key, 3)
    parent_draw, some_draw, which_draw = jax.random.uniform(key_fires, (3, n, parents))
    normal, child_normal = jax.random.normal(key_magnitudes, (2, n, parents))
    fires = parent_draw < zipf(parents, exponent, highest, lowest)
    active = jnp.where(fires, jax.nn.relu(magnitude + spread * normal), 0.0)
    ratio = jnp.where(some_draw < child_rate, jax.nn.relu(child_magnitude + spread * child_normal), 0.0)
    share = jnp.arange(1, children + 1, dtype=jnp.float32) ** -exponent
    upto = jnp.cumsum(share) / jnp.sum(share)
    which = jnp.sum(which_draw[..., None] >= upto[:-1], axis=-1)
    labels = TrueCodes(active, jax.nn.one_hot(which, children) * (active * ratio)[..., None])
    return labels.dense() @ truth.features() + noise * jax.random.normal(key_noise, (n, embed)), labels


def _unit(x: Float[Array, "*rows embed"]) -> Float[Array, "*rows embed"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
