"""Is a child's delta orthogonal to its parent, more than chance makes it?

For every atom that fired, the angle between its expert's decoder row and its own row of the dictionary (both residual
vectors), in a metric; the distance from 90 degrees is two-sided. The null pairs the same atoms with the parents of
other experts. (A one-sided test "angle >= 80 degrees" on child minus parent cannot fail: for unit vectors at angle t
that angle is 90 + t/2.)
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.metric import AbstractMetric
from jhsae.sae import HierarchicalSAE

NULLS = 20


def orthogonality(
    sae: HierarchicalSAE, metric: AbstractMetric, frequency: Float[np.ndarray, "features"], seed: int = 0
) -> dict[str, float]:
    """Median and mean distance from 90 degrees over live atoms, and the same for 20 random re-pairings of experts.

    `parent_child_z` is how many standard deviations of the null's mean the value lies below (negative) or above it.
    """
    alive = frequency[sae.experts :].reshape(sae.experts, sae.atoms) > 0
    parents = ops.unit_rows(metric.whiten(sae.router_dec))
    atoms = ops.unit_rows(metric.whiten(sae.dictionary()[sae.experts :])).reshape(sae.experts, sae.atoms, -1)
    rng = np.random.default_rng(seed)
    own = _off_right_angle(parents, atoms)[alive]
    nulls = [
        _off_right_angle(jnp.roll(parents, int(shift), axis=0), atoms)[alive]
        for shift in rng.permutation(np.arange(1, sae.experts))[:NULLS]
    ]
    means = np.array([null.mean() for null in nulls])
    return {
        "parent_child_off_90": float(np.median(own)),
        "parent_child_off_90_mean": float(own.mean()),
        "parent_child_off_90_null": float(np.median(np.concatenate(nulls))),
        "parent_child_off_90_null_mean": float(means.mean()),
        "parent_child_z": float((own.mean() - means.mean()) / max(means.std(), 1e-12)),
        "live_atoms": int(alive.sum()),
    }


def _off_right_angle(parents: Float[Array, "experts embed"], atoms: Float[Array, "experts atoms embed"]) -> np.ndarray:
    cosines = np.asarray(jnp.einsum("ed,ead->ea", parents, atoms), np.float64)
    return np.abs(np.degrees(np.arccos(np.clip(cosines, -1, 1))) - 90)
