"""Orthogonality of a child's delta to its parent, beside a null of random pairings.

For every atom that fired, the angle between its expert's decoder row and its own row of the dictionary (both residual
vectors), in a metric; the distance from 90 degrees is two-sided. The null pairs the same atoms with the parents of
other experts. (A one-sided test "angle >= 80 degrees" on child minus parent cannot fail: for unit vectors at angle t
that angle is 90 + t/2.)
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.evals.fidelity import ratio
from jhsae.metric import AbstractMetric
from jhsae.sae import HierarchicalSAE

NULLS = 20


def orthogonality(
    sae: HierarchicalSAE, metric: AbstractMetric, frequency: Float[np.ndarray, "features"], seed: int = 0
) -> dict[str, float | None]:
    """Median and mean distance from 90 degrees over live atoms, and the same for 20 random re-pairings of experts.

    `parent_child_z` is how many standard deviations of the null's mean the value lies below (negative) or above it.
    A live atom whose row is 0, or whose expert's is, has no angle and does not count; what has none to count is None.
    """
    alive = frequency[sae.experts :].reshape(sae.experts, sae.atoms) > 0
    router, rows = metric.whiten(sae.router_dec), metric.whiten(sae.dictionary()[sae.experts :])
    parents, atoms = ops.unit_rows(router), ops.unit_rows(rows).reshape(sae.experts, sae.atoms, -1)
    has_parent = np.asarray(jnp.any(router != 0, axis=-1))
    has_row = alive & np.asarray(jnp.any(rows != 0, axis=-1)).reshape(alive.shape)
    rng = np.random.default_rng(seed)

    def angles(shift: int) -> np.ndarray:
        paired = np.roll(has_parent, shift)[:, None]
        return _off_right_angle(jnp.roll(parents, shift, axis=0), atoms)[has_row & paired]

    own = angles(0)
    nulls = [angles(int(shift)) for shift in rng.permutation(np.arange(1, sae.experts))[:NULLS]]
    nulls = [null for null in nulls if len(null)]
    means = np.array([null.mean() for null in nulls])
    mean, null_mean = _of(np.mean, own), _of(np.mean, means)
    return {
        "parent_child_off_90": _of(np.median, own),
        "parent_child_off_90_mean": mean,
        "parent_child_off_90_null": _of(np.median, np.concatenate([own[:0], *nulls])),
        "parent_child_off_90_null_mean": null_mean,
        "parent_child_z": None if mean is None or null_mean is None else ratio(mean - null_mean, means.std()),
        "live_atoms": int(alive.sum()),
    }


def _of(statistic: Callable[[np.ndarray], np.floating], values: np.ndarray) -> float | None:
    """A statistic; None of no values."""
    return float(statistic(values)) if len(values) else None


def _off_right_angle(parents: Float[Array, "experts embed"], atoms: Float[Array, "experts atoms embed"]) -> np.ndarray:
    cosines = np.asarray(jnp.einsum("ed,ead->ea", parents, atoms), np.float64)
    return np.abs(np.degrees(np.arccos(np.clip(cosines, -1, 1))) - 90)
