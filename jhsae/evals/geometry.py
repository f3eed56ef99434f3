"""Orthogonality of a child's delta to its parent, beside a null of random pairings; and how alike siblings are.

For every atom that fired, the angle between its expert's decoder row and its own row of the dictionary (both residual
vectors), in a metric; the distance from 90 degrees is two-sided. The null pairs the same atoms with other experts. In a
deeper tree these are all rows but the roots, each with its direct parent, and in the null with others of that level.
(A one-sided test "angle >= 80 degrees" on child minus parent cannot fail: for unit vectors at angle t that angle is 90
+ t/2.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jhsae import ops
from jhsae.errors import UserError
from jhsae.evals.fidelity import ratio
from jhsae.evals.truth.interference import siblings
from jhsae.metric import AbstractMetric
from jhsae.ops.forest import Block
from jhsae.sae import AbstractSAE

NULLS = 20
MOST_ROOTS = 2**14  # whose cosines are a table of 1 GiB


def orthogonality(
    sae: AbstractSAE, metric: AbstractMetric, frequency: Float[np.ndarray, "features"], seed: int = 0
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
        experts: the parent of each of them.
        nulls: the distances of the same atoms from other parents, one array per re-pairing, none of them empty.
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
    sae: AbstractSAE,
    metric: AbstractMetric,
    frequency: Float[np.ndarray, "features"],
    seed: int = 0,
    most: int = NULLS,
) -> OrthogonalityUnits:
    """The distances that `orthogonality` summarises, in degrees. A re-pairing shifts the parents round.

    Args:
        sae: a trained SAE.
        metric: of residual vectors, in which angles are measured.
        frequency: how often each feature fired, [features]; above 0 for a live one.
        seed: of the re-pairings.
        most: the number of re-pairings; of fewer parents all there are.

    Raises:
        UserError: a flat SAE.
    """
    tree = sae.tree
    if tree is None:
        raise UserError(f"orthogonality is of children to parents, but this {type(sae).__name__} is flat; leave it out")
    rows = metric.whiten(sae.dictionary())
    unit, there = ops.unit_rows(rows), np.asarray(jnp.any(rows != 0, axis=-1))
    alive = np.asarray(frequency) > 0
    rng = np.random.default_rng(seed)

    def angles(above: Block, block: Block, shift: int) -> tuple[np.ndarray, np.ndarray]:
        parents, children = slice(above.start, above.end), slice(block.start, block.end)
        kept = (alive & there)[children].reshape(-1, block.each) & np.roll(there[parents], shift)[:, None]
        families = unit[children].reshape(-1, block.each, unit.shape[1])
        cosines = jnp.einsum("ed,ead->ea", jnp.roll(unit[parents], shift, axis=0), families)
        return off_right_angle(np.asarray(cosines, np.float64))[kept], above.start + np.nonzero(kept)[0]

    pairs = list(pairwise(tree.blocks))
    own, experts = (np.concatenate(part) for part in zip(*(angles(*pair, 0) for pair in pairs), strict=True))
    shifts = [rng.permutation(np.arange(1, above.end - above.start))[:most].tolist() for above, _ in pairs]
    draws = zip(*shifts, strict=False)  # as many as the level of fewest parents has
    nulls = [np.concatenate([angles(*pair, s)[0] for pair, s in zip(pairs, draw, strict=True)]) for draw in draws]
    live = int(alive[tree.roots :].sum())
    return OrthogonalityUnits(own, experts, [null for null in nulls if len(null)], live)


def likeness(sae: AbstractSAE, cosine: float = 0.4) -> dict[str, float | int | None]:
    """How alike siblings are, and how many roots merging the look-alike ones among them would leave.

    `sibling_cosine` is the median, over the parents of at least two rows, of the largest absolute cosine between two of
    their children, and `sibling_cosine_mean` the mean of all of them. `roots` are the rows without a parent. Merging
    (`jhsae.resampling.MergeAlike`) makes one of the two most alike roots until none has a cosine above `cosine`; each
    counts alike. More than `MOST_ROOTS` are not tried, and `roots_after_merging` is None. Empty slots do not count.

    Args:
        sae: a hierarchical SAE.
        cosine: above which roots are merged.
    """
    rows, parents = np.asarray(sae.dictionary()), sae.latent_parents()
    roots = rows[(parents < 0) & rows.any(axis=1)]
    alike = siblings(rows, parents)
    return {
        "sibling_cosine": alike["largest"],
        "sibling_cosine_mean": alike["mean"],
        "roots": len(roots),
        "roots_after_merging": _left(roots, cosine) if len(roots) <= MOST_ROOTS else None,
    }


def _left(rows: Float[np.ndarray, "roots embed"], cosine: float) -> int:
    """How many rows are left after merging the most alike two again and again."""
    rows = np.asarray(ops.unit_rows(jnp.asarray(rows))).copy()
    weights, left = np.ones(len(rows)), len(rows)
    table = rows @ rows.T
    np.fill_diagonal(table, -np.inf)
    partner = table.argmax(axis=1) if left else np.zeros(0, int)
    best = table[np.arange(left), partner]
    while left > 1 and best.max() > cosine:
        one = int(best.argmax())
        other = int(partner[one])
        merged = weights[one] * rows[one] + weights[other] * rows[other]
        rows[one], weights[one] = merged / np.linalg.norm(merged), weights[one] + weights[other]
        table[one] = table[:, one] = np.where(np.isneginf(table[one]), -np.inf, rows @ rows[one])
        table[other], table[:, other], left = -np.inf, -np.inf, left - 1
        table[one, other] = table[other, one] = -np.inf
        stale = np.flatnonzero((partner == one) | (partner == other) | (np.arange(len(rows)) == one))
        partner[stale], best[other] = table[stale].argmax(axis=1), -np.inf
        nearer = table[:, one] > best
        partner[nearer] = one
        best = table[np.arange(len(rows)), partner]
    return left


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
