"""Feature vectors: random directions, made more orthogonal, children placed towards or away from their parents.

The loss is that of SynthSAEBench (arXiv 2602.14687): sum over i != j of (e_i . e_j)^2 + features * sum of
(|e_i|^2 - 1)^2. Its first part is ||E^T E||^2 - sum of |e_i|^4, so a step needs embed x embed numbers and no pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32

from jhsae import ops
from jhsae.errors import UserError
from jhsae.ranges import Natural, Positive
from jhsae.worlds.hierarchy import Hierarchy

CHUNK = 2**24  # cosines at a time


def random_directions(rng: np.random.Generator, features: int, embed: int) -> Float32[np.ndarray, "features embed"]:
    """Uniform on the sphere."""
    return _unit(rng.normal(size=(features, embed))).astype(np.float32)


def orthogonalize(
    vectors: Float32[np.ndarray, "features embed"], steps: Natural, learning_rate: Positive
) -> Float32[np.ndarray, "features embed"]:
    """The vectors after `steps` of Adam on the squared cosines between them, at unit norm."""
    count = len(vectors)

    def loss(e: Float[Array, "features embed"]) -> Float[Array, ""]:
        squares = jnp.sum(e * e, axis=1)
        pairs = ops.sum_of_squared_inner(e, e) - jnp.sum(squares**2)
        return pairs + count * jnp.sum((squares - 1) ** 2)

    adam = optax.adam(learning_rate)

    def step(_: int | Array, carry: tuple) -> tuple:
        e, state = carry
        updates, state = adam.update(jax.grad(loss)(e), state)
        return optax.apply_updates(e, updates), state

    @jax.jit
    def run(e: Float[Array, "features embed"]) -> Float[Array, "features embed"]:
        return jax.lax.fori_loop(0, steps, step, (e, adam.init(e)))[0]

    return _unit(np.asarray(run(jnp.asarray(_unit(vectors.astype(np.float64)), jnp.float32)), np.float64)).astype(
        np.float32
    )


def towards_parents(
    vectors: Float32[np.ndarray, "features embed"], hierarchy: Hierarchy, cosine: float
) -> Float32[np.ndarray, "features embed"]:
    """Turns the vector of each child so that its cosine with its parent's, or the sum of several, is `cosine`.

    The rest of it stays orthogonal to all of its ancestors; with cosine 0 the whole vector is.

    Raises:
        UserError: A feature whose ancestors span the whole space.
    """
    out = _unit(vectors.astype(np.float64))
    above: dict[int, set[int]] = {}
    for i in hierarchy.order:
        parents = hierarchy.above[i]
        above[i] = set(parents).union(*(above[p] for p in parents))
        if not parents:
            continue
        basis, _ = np.linalg.qr(out[sorted(above[i])].T)
        rest = out[i] - basis @ (basis.T @ out[i])
        rest -= basis @ (basis.T @ rest)  # again, for what rounding left
        if basis.shape[1] >= out.shape[1] or np.linalg.norm(rest) < 1e-6:
            raise UserError(
                f"feature {i} has {len(above[i])} ancestors in {out.shape[1]} dimensions, which leave no direction "
                "orthogonal to them; write a larger embed, or child_cosine=null"
            )
        out[i] = cosine * _unit(out[list(parents)].sum(axis=0)) + np.sqrt(1 - cosine**2) * _unit(rest)
    return out.astype(np.float32)


def largest_cosines(vectors: Float[np.ndarray, "features embed"]) -> Float32[np.ndarray, "features"]:
    """For each vector the largest absolute cosine with another one; 0 for one that is alone.

    Args:
        vectors: [features, embed].
    """
    unit = jnp.asarray(_unit(vectors.astype(np.float64)), jnp.float32)
    step = max(1, CHUNK // max(len(unit), 1))
    parts = [_largest(unit, unit[i : i + step], i) for i in range(0, len(unit), step)]
    return np.concatenate([np.zeros(0, np.float32), *map(np.asarray, parts)])


@jax.jit
def _largest(
    unit: Float[Array, "features embed"], some: Float[Array, "some embed"], start: int | Array
) -> Float[Array, "some"]:
    others = jnp.arange(len(some))[:, None] + start != jnp.arange(len(unit))
    return jnp.max(jnp.where(others, jnp.abs(some @ unit.T), 0.0), axis=1)


def _unit(x: Float[np.ndarray, "*n embed"]) -> Float[np.ndarray, "*n embed"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
