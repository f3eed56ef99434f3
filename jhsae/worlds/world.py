"""Worlds to draw from: sparse codes with a known hierarchy, times known feature vectors.

The generator of SynthSAEBench (Chanin and Garriga-Alonso, arXiv 2602.14687), for any directed acyclic graph. A token:

1. Feature i fires with probability p_i, independently of the others, or by a Gaussian copula of low rank: where
   (F eps)_i + sqrt(diag_i) eta_i > Phi^-1(1 - p_i). If it fires, its value is relu(mean_i + std_i eps_i).
2. From the roots down, level by level: a feature with parents keeps its value if at least one of them is active. Below
   a `scaled` parent the value is multiplied by (parent's value) / (parent's mean); where several parents are active, by
   the mean of their factors. Of the children of an active `exclusive` parent that fire one stays, chosen uniformly.
3. x = codes @ features + bias + noise.

Rows are drawn from keys of their own, so a batch is the same on any number of devices, up to rounding.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jhsae.errors import UserError
from jhsae.ranges import NonNegative, Ranged
from jhsae.worlds.hierarchy import Hierarchy

UNIT = 1e-3  # how far the norm of a feature vector may be from 1


def _float32(x: Any) -> Any:
    return None if x is None else jnp.asarray(x, jnp.float32)


class World(Ranged, eqx.Module):
    """Feature vectors and the distribution of their codes.

    Args:
        features: the feature vectors, rows of unit norm.
        bias: added to every activation.
        probabilities: of firing, before the hierarchy removes what has no active parent.
        means: of the values of features that fire, before the ReLU.
        stds: their standard deviations.
        hierarchy: which feature needs which.
        correlation_factor: the low-rank factor of the correlation of firings; None for independent firings.
        correlation_diag: the rest of each feature's variance, 1 - sum of its squared factors.
        noise: standard deviation of Gaussian noise per coordinate of x.

    Raises:
        UserError: sizes that differ, numbers that are not finite or out of range, vectors that are not of unit norm.
    """

    features: Float[Array, "features embed"] = eqx.field(converter=_float32)
    bias: Float[Array, "embed"] = eqx.field(converter=_float32)
    probabilities: Float[Array, "features"] = eqx.field(converter=_float32)
    means: Float[Array, "features"] = eqx.field(converter=_float32)
    stds: Float[Array, "features"] = eqx.field(converter=_float32)
    hierarchy: Hierarchy = eqx.field(static=True)
    correlation_factor: Float[Array, "features rank"] | None = eqx.field(default=None, converter=_float32)
    correlation_diag: Float[Array, "features"] | None = eqx.field(default=None, converter=_float32)
    noise: NonNegative = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self)):
            check({name: np.asarray(value) for name, value in arrays(self).items()}, self.hierarchy, "the world")

    @property
    def size(self) -> int:
        """The number of features."""
        return self.features.shape[0]

    @property
    def embed(self) -> int:
        """The width of an activation."""
        return self.features.shape[1]

    @eqx.filter_jit
    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n embed"], Float[Array, "n features"]]:
        """Draws activations and their codes.

        Args:
            key: determines the sample.
            n: the number of rows.

        Returns:
            Activations and codes. A code is 0 where its feature is off.
        """
        return self.rows(jax.random.split(key, n))

    def rows(self, keys: Key[Array, "n"]) -> tuple[Float[Array, "n embed"], Float[Array, "n features"]]:
        """One activation and its codes for each key; traceable by JAX."""
        parts = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
        fires = self._fires(parts[:, 0])
        values = jnp.where(fires, jax.nn.relu(self.means + self.stds * _normal(parts[:, 1], self.size)), 0.0)
        codes = self._gated(values, parts[:, 2])
        x = codes @ self.features + self.bias
        return (x + self.noise * _normal(parts[:, 3], self.embed) if self.noise else x), codes

    def _fires(self, keys: Key[Array, "n"]) -> Bool[Array, "n features"]:
        if self.correlation_factor is None or self.correlation_diag is None:
            return jax.vmap(lambda key: jax.random.uniform(key, (self.size,)))(keys) < self.probabilities
        rank = self.correlation_factor.shape[1]
        drawn = _normal(keys, rank + self.size)
        latent = drawn[:, :rank] @ self.correlation_factor.T + jnp.sqrt(self.correlation_diag) * drawn[:, rank:]
        return latent > -ndtri(self.probabilities)

    def _gated(self, values: Float[Array, "n features"], keys: Key[Array, "n"]) -> Float[Array, "n features"]:
        """The values that the hierarchy leaves, level by level."""
        for depth, level in enumerate(_levels(self.hierarchy)):
            if len(level.features):
                factors = self._factors(values, level)
                values = values.at[:, level.features].multiply(factors)
            if len(level.groups):
                level_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, depth)
                values = _one_of_each(values, level, level_keys)
        return values

    def _factors(self, values: Float[Array, "n features"], level: "_Level") -> Float[Array, "n level"]:
        """What the values of the features of a level are multiplied by: 0 without an active parent."""
        above = values.at[:, level.parents].get(mode="fill", fill_value=0.0)  # [n, level, parents]
        means = self.means.at[level.parents].get(mode="fill", fill_value=1.0)
        active = above > 0
        factor = jnp.where(active & level.scaled, above / jnp.where(level.scaled, means, 1.0), active)
        return jnp.sum(factor, axis=-1) / jnp.maximum(jnp.sum(active, axis=-1), 1)


def arrays(world: World) -> dict[str, Shaped[Array, "..."]]:
    """The arrays of a world by name; those of the correlation only where there are some."""
    names = ("features", "bias", "probabilities", "means", "stds", "correlation_factor", "correlation_diag")
    return {name: getattr(world, name) for name in names if getattr(world, name) is not None}


def check(found: dict[str, np.ndarray], hierarchy: Hierarchy, where: str) -> None:
    """Raises `UserError`, with the place `where`, for arrays that make no world."""
    features, embed = found["features"].shape if found["features"].ndim == 2 else (0, 0)
    if not features or not embed:
        got = list(found["features"].shape)
        raise UserError(f"{where}: features has shape {got}, expected at least one row of one number")
    rank = found["correlation_factor"].shape[-1] if "correlation_factor" in found else 0
    shapes: dict[str, tuple[int, ...]] = {
        "features": (features, embed),
        "bias": (embed,),
        "correlation_factor": (features, rank),
    }
    for name, array in found.items():
        if array.shape != (shape := shapes.get(name, (features,))):
            raise UserError(f"{where}: {name} has shape {list(array.shape)}, expected {list(shape)}")
        if not np.isfinite(array).all():
            raise UserError(f"{where}: {name} is not finite everywhere; make the world again")
    if hierarchy.size != features:
        raise UserError(f"{where}: the hierarchy has {hierarchy.size} features, the vectors are {features}")
    if ("correlation_factor" in found) != ("correlation_diag" in found):
        raise UserError(f"{where} has only one of correlation_factor and correlation_diag, expected both or neither")
    _check_numbers(found, hierarchy, where)


def _check_numbers(found: dict[str, np.ndarray], hierarchy: Hierarchy, where: str) -> None:
    probabilities, means = found["probabilities"], found["means"]
    if (outside := (probabilities < 0) | (probabilities > 1)).any():
        i = int(np.argmax(outside))
        raise UserError(f"{where}: feature {i} fires with probability {probabilities[i]:g}, expected 0 to 1")
    if (found["stds"] < 0).any():
        raise UserError(f"{where}: a standard deviation is {found['stds'].min():g}, expected at least 0")
    if "correlation_diag" in found and (found["correlation_diag"] <= 0).any():
        raise UserError(f"{where}: correlation_diag is {found['correlation_diag'].min():g} somewhere, expected above 0")
    norms = np.linalg.norm(found["features"].astype(np.float64), axis=1)
    if (far := np.abs(norms - 1) > UNIT).any():
        i = int(np.argmax(far))
        raise UserError(
            f"{where}: feature vector {i} has norm {norms[i]:.4g}, expected unit norm; divide it by its norm and "
            "multiply the mean and the standard deviation of the feature by it"
        )
    scales = [p for p in sorted(hierarchy.scaled) if hierarchy.below[p]]
    if bad := [p for p in scales if means[p] <= 0]:
        raise UserError(
            f"{where}: feature {bad[0]} scales its children by value / mean, but its mean is {means[bad[0]]:g}; write "
            "a mean above 0"
        )


@dataclass(frozen=True, eq=False)
class _Level:
    """The features of a level that have parents, and the groups of children of its exclusive parents.

    Rows are padded with `size`, which is no feature.
    """

    features: Int[np.ndarray, "level"]
    parents: Int[np.ndarray, "level parents"]
    scaled: Bool[np.ndarray, "level parents"]
    exclusive: Int[np.ndarray, "groups"]
    groups: Int[np.ndarray, "groups children"]


@cache
def _levels(hierarchy: Hierarchy) -> tuple[_Level, ...]:
    levels = []
    scaled = np.zeros(hierarchy.size + 1, bool)
    scaled[list(hierarchy.scaled)] = True
    for depth in range(int(hierarchy.levels.max(initial=-1)) + 1):
        here = np.flatnonzero(hierarchy.levels == depth)
        below = [i for i in here if hierarchy.above[i]]
        exclusive = [i for i in here if i in hierarchy.exclusive and len(hierarchy.below[i]) > 1]
        parents = _padded([hierarchy.above[i] for i in below], hierarchy.size)
        groups = _padded([hierarchy.below[i] for i in exclusive], hierarchy.size)
        levels.append(_Level(np.array(below, int), parents, scaled[parents], np.array(exclusive, int), groups))
    return tuple(levels)


def _padded(rows: list[tuple[int, ...]], fill: int) -> Int[np.ndarray, "rows width"]:
    out = np.full((len(rows), max(map(len, rows), default=0)), fill, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _one_of_each(
    values: Float[Array, "n features"], level: _Level, keys: Key[Array, "n"]
) -> Float[Array, "n features"]:
    """Leaves one of the children that fire below each active exclusive parent of a level.

    They are one level further down or more, and not gated yet; what is above them lets them through, as this parent is
    active. A child of two such parents must be the one that stays in both groups.
    """
    candidates = values.at[:, level.groups].get(mode="fill", fill_value=0.0) > 0
    scores = jax.vmap(lambda key: jax.random.uniform(key, level.groups.shape))(keys)
    best = jnp.argmax(jnp.where(candidates, scores, -1.0), axis=-1)
    stays = jax.nn.one_hot(best, level.groups.shape[1], dtype=values.dtype)
    idle = values[:, level.exclusive] == 0
    return values.at[:, level.groups].multiply(jnp.where(idle[..., None], 1.0, stays), mode="drop")


def _normal(keys: Key[Array, "n"], width: int) -> Float[Array, "n width"]:
    return jax.vmap(lambda key: jax.random.normal(key, (width,)))(keys)
