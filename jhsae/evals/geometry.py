"""Orthogonality of a child's delta to its parent, beside a null of random pairings.

For every atom that fired, the angle between its expert's decoder row and its own row of the dictionary (both residual
vectors), in a metric; the distance from 90 degrees is two-sided. The null pairs the same atoms with the parents of
other experts. (A one-sided test "angle >= 80 degrees" on child minus parent cannot fail: for unit vectors at angle t
that angle is 90 + t/2.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jhsae import ops
from jhsae.evals.fidelity import ratio
from jhsae.metric import AbstractMetric
from jhsae.sae import HierarchicalSAE

NULLS = 20


def orthogonality(
    sae: HierarchicalSAE, metric: AbstractMetric, frequency: Float[np.ndarray, "features"], seed: int = 0
) -> dict[str, float | None]:
    """Median and mean distance from 90 degrees over live atoms, and the same for 20 random re-pairings of experts.

    A live atom whose row is 0, or whose expert's is, has no angle and does not count.

    Args:
        sae: a trained SAE.
        metric: of residual vectors, in which angles are measured.
        frequency: how often each feature fired, [features]; above 0 for a live one.
        seed: of the re-pairings.

    Returns:
        `parent_child_off_90`, the median, and its `_mean`, `_null` and `_null_mean`, in degrees; `parent_child_z`, by
        how many standard deviations of the null's means the mean lies above (below: negative) theirs; `live_atoms`, the
        number of atoms that fired. None where a value is not defined.
    """
    found = orthogonality_units(sae, metric, frequency, seed)
    own, nulls = found.own, found.nulls
    means = found.null_means
    mean, null_mean = _of(np.mean, own), _of(np.mean, means)
    return {
        "parent_child_off_90": _of(np.median, own),
        "parent_child_off_90_mean": mean,
        "parent_child_off_90_null": _of(np.median, np.concatenate([own[:0], *nulls])),
        "parent_child_off_90_null_mean": null_mean,
        "parent_child_z": None if mean is None or null_mean is None else ratio(mean - null_mean, means.std()),
        "live_atoms": found.live_atoms,
    }


@dataclass(frozen=True, eq=False)
class OrthogonalityUnits:
    """What `nulls.compare` takes: ``compare(u.own, u.null_means, alternative="less", groups=u.experts)``.

    Args:
        own: the distance from 90 degrees of each live atom that has an angle.
        experts: the expert of each of them.
        nulls: the distances of the same atoms from other experts, one array per re-pairing, none of them empty.
        live_atoms: the number of atoms that fired.
    """

    own: Float[np.ndarray, " atoms"]
    experts: Int[np.ndarray, " atoms"]
    nulls: list[np.ndarray]
    live_atoms: int

    @property
    def null_means(self) -> Float[np.ndarray, " draws"]:
        """The mean distance of each re-pairing."""
        return np.array([null.mean() for null in self.nulls])


def orthogonality_units(
    sae: HierarchicalSAE,
    metric: AbstractMetric,
    frequency: Float[np.ndarray, "features"],
    seed: int = 0,
    most: int = NULLS,
) -> OrthogonalityUnits:
    """The distances that `orthogonality` summarises, in degrees. A re-pairing shifts the experts round.

    Args:
        sae: a trained SAE.
        metric: of residual vectors, in which angles are measured.
        frequency: how often each feature fired, [features]; above 0 for a live one.
        seed: of the re-pairings.
        most: the number of re-pairings; of fewer experts all there are.
    """
    alive = frequency[sae.experts :].reshape(sae.experts, sae.atoms) > 0
    router, rows = metric.whiten(sae.router_dec), metric.whiten(sae.dictionary()[sae.experts :])
    parents, atoms = ops.unit_rows(router), ops.unit_rows(rows).reshape(sae.experts, sae.atoms, -1)
    has_parent = np.asarray(jnp.any(router != 0, axis=-1))
    has_row = alive & np.asarray(jnp.any(rows != 0, axis=-1)).reshape(alive.shape)
    rng = np.random.default_rng(seed)

    def angles(shift: int) -> tuple[np.ndarray, np.ndarray]:
        kept = has_row & np.roll(has_parent, shift)[:, None]
        cosines = jnp.einsum("ed,ead->ea", jnp.roll(parents, shift, axis=0), atoms)
        return off_right_angle(np.asarray(cosines, np.float64))[kept], np.nonzero(kept)[0]

    own, experts = angles(0)
    nulls = [angles(int(shift))[0] for shift in rng.permutation(np.arange(1, sae.experts))[:most]]
    return OrthogonalityUnits(own, experts, [null for null in nulls if len(null)], int(alive.sum()))


def delta_off_90(
    rows: Float[np.ndarray, "nodes embed"], parents: Int[np.ndarray, "nodes"]
) -> Float[np.ndarray, " children"]:
    """The distance from 90 degrees between child minus parent and parent, of each node that has a parent.

    For vectors of concepts in absolute position, whose norms mean something (Park et al., arXiv 2406.01506): of unit
    vectors the angle is above 90 degrees whatever they are. Its null computes this again with other parents
    (`nulls.permuted_parents`). A pair in which either vector is 0 has no angle and is left out.

    Args:
        rows: one vector per node, in the metric in which the angle is measured.
        parents: of each node, -1 for none.
    """
    child = np.flatnonzero(parents >= 0)
    parent = rows[parents[child]].astype(np.float64)
    delta = rows[child] - parent
    norms = np.linalg.norm(parent, axis=1) * np.linalg.norm(delta, axis=1)
    kept = norms > 0
    return off_right_angle(np.sum(parent[kept] * delta[kept], axis=1) / norms[kept])


def off_right_angle(cosines: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The distance of an angle from 90 degrees, two-sided, in degrees."""
    return np.abs(np.degrees(np.arccos(np.clip(cosines, -1, 1))) - 90)


def _of(statistic: Callable[[np.ndarray], np.floating], values: np.ndarray) -> float | None:
    """A statistic; None of no values."""
    return float(statistic(values)) if len(values) else None
