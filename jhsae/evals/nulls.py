"""Significance: a measured value beside its null, with an interval, an effect size, a p-value and a sentence.

The test is a permutation test, ``p = (1 + #{null at least as extreme}) / (1 + draws)`` (Phipson & Smyth 2010). It is
exact where the measured value and the null are exchangeable: the null has to draw anew whatever ties a unit to its
label or parent, and to compute from that draw everything that is computed for the measured value. (A null that re-pairs
parents but keeps ``child - own parent`` is not exchangeable: the difference is at 135 degrees to its own parent and at
90 to any other, for random unit vectors too.) The rule: where p is 0.05 or more the value is not distinguishable from
chance.
``experiments/nulls`` measures how often that is said of random vectors, permuted hierarchies and planted ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from jaxtyping import Bool, Float, Int, Shaped

from jhsae.errors import UserError
from jhsae.ranges import Seed, ranged
from jhsae.worlds import Hierarchy

Alternative = Literal["greater", "less", "two-sided"]
Resamples = Annotated[int, Ge(2000)]
Values = Float[np.ndarray, "..."] | Int[np.ndarray, "..."] | Bool[np.ndarray, "..."]
LEVEL = 0.05
FLIPS = 999  # draws of the null of paired differences
BLOCK = 2**22  # random numbers that a bootstrap holds at once


@dataclass(frozen=True)
class Comparison:
    """A measured mean and its null.

    Args:
        estimate: the mean over units.
        low: the lower end of the 95 % confidence interval of `estimate`.
        high: the upper end.
        null: the mean of the null.
        difference: `estimate` less `null`, in the units of the values.
        effect: `difference` over the standard deviation of one unit (that of the null's units where they are known,
            else of the measured ones), which does not grow with the number of units; None where they are all equal.
        z: `difference` over the standard deviation of the null statistic; None where that does not vary.
        p: the permutation p-value.
        alternative: "greater" or "less" for a one-sided test, or "two-sided".
        units: the number of values.
        groups: the number of groups that were resampled; `units` without groups.
        draws: the number of values of the null statistic.
    """

    estimate: float
    low: float
    high: float
    null: float
    difference: float
    effect: float | None
    z: float | None
    p: float
    alternative: Alternative
    units: int
    groups: int
    draws: int

    @property
    def significant(self) -> bool:
        """Whether p is below 0.05."""
        return self.p < LEVEL


@ranged
def compare(
    measured: Values,
    null: Values,
    *,
    alternative: Alternative,
    groups: Shaped[np.ndarray, " units"] | None = None,
    resamples: Resamples = 2000,
    seed: Seed = 0,
) -> Comparison:
    """Compares the mean of `measured` with a null.

    The interval is a percentile bootstrap over units, or over whole `groups` where units are nested (the atoms of one
    expert, the tokens of one document): values of a group move together, and an interval over units is too short.

    Args:
        measured: one value per unit, ``[units]``; booleans count as 0 and 1.
        null: the statistic under each draw of the null, ``[draws]``, or the value of each unit, ``[draws, units]``.
        alternative: the direction that was predicted before looking; "two-sided" if none was.
        groups: the group of each unit.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: no values, values that are not finite, a null of too few draws for any p below 0.05, or groups of
            another number than the units.
    """
    values, drawn = _checked(measured, "measured", 1), _checked(null, "null", null.ndim)
    if groups is not None and groups.shape != values.shape:
        raise UserError(
            f"groups has shape {groups.shape}, but there are {len(values)} values; write one group per value"
        )
    if drawn.ndim > 2 or (drawn.ndim == 2 and drawn.shape[1] != len(values)):
        raise UserError(f"null has shape {drawn.shape}, expected [draws] or [draws, {len(values)}]")
    statistics = drawn.mean(axis=1) if drawn.ndim == 2 else drawn
    least = 39 if alternative == "two-sided" else 20
    if len(statistics) < least:
        raise UserError(
            f"null has {len(statistics)} draws, of which no {alternative} p-value below {LEVEL} can come; write at "
            f"least {least}"
        )
    estimate, mean = float(values.mean()), float(statistics.mean())
    low, high, count = _bootstrap(values, groups, resamples, seed)
    spread = (drawn if drawn.ndim == 2 else values).std()
    return Comparison(
        estimate=estimate,
        low=low,
        high=high,
        null=mean,
        difference=estimate - mean,
        effect=_over(estimate - mean, float(spread)),
        z=_over(estimate - mean, float(statistics.std())),
        p=permutation_p(estimate, statistics, alternative),
        alternative=alternative,
        units=len(values),
        groups=count,
        draws=len(statistics),
    )


def sentence(result: Comparison, name: str) -> str:
    """The comparison in one sentence, with its numbers; at p of 0.05 or more it is not distinguishable from chance.

    Args:
        result: of `compare`.
        name: what was measured, the subject of the sentence.
    """
    verdict = "" if result.significant else "not distinguishable from chance: "
    nested = "" if result.groups == result.units else f" in {result.groups:,} groups"
    effect = "" if result.effect is None else f", {result.effect:.2f} standard deviations of a unit"
    side = "two-sided" if result.alternative == "two-sided" else f"one-sided, {result.alternative}"
    return (
        f"{name}: {verdict}{result.estimate:.3g} (95 % interval {result.low:.3g} to {result.high:.3g}, "
        f"{result.units:,} units{nested}) against {result.null:.3g} by chance "
        f"(difference {result.difference:.3g}{effect}, p = {result.p:.2g}, {side}, {result.draws:,} draws)."
    )


def permutation_p(measured: float, null: Float[np.ndarray, " draws"], alternative: Alternative) -> float:
    """``(1 + #{null at least as extreme}) / (1 + draws)``; two-sided, twice the smaller of the two sides, at most 1.

    Values that differ by rounding alone count as equal.
    """
    slack = 1e-12 * max(1.0, abs(measured))
    above = (1 + int(np.sum(null >= measured - slack))) / (1 + len(null))
    below = (1 + int(np.sum(null <= measured + slack))) / (1 + len(null))
    sides = {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}
    return sides[alternative]


def _checked(values: np.ndarray, name: str, axes: int) -> Float[np.ndarray, "..."]:
    if values.ndim != axes or not values.size:
        raise UserError(f"{name} has shape {values.shape}, expected at least one value, in {axes or 1} axis")
    if not np.all(np.isfinite(values)):
        raise UserError(f"{name} has values that are not finite; leave out the units whose value is not defined")
    return values.astype(np.float64)


def _over(difference: float, spread: float) -> float | None:
    return difference / spread if spread > 1e-12 * max(1.0, abs(difference)) else None


def _bootstrap(
    values: Float[np.ndarray, " units"], groups: Shaped[np.ndarray, " units"] | None, resamples: int, seed: int
) -> tuple[float, float, int]:
    """The 2.5 % and 97.5 % points of the mean over resampled groups, and the number of groups."""
    member = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    sums, sizes = np.bincount(member, weights=values), np.bincount(member)
    rng, step = np.random.default_rng(seed), max(1, BLOCK // len(sums))
    means = []
    for start in range(0, resamples, step):
        picks = rng.integers(0, len(sums), (min(step, resamples - start), len(sums)))
        means.append(sums[picks].sum(axis=1) / sizes[picks].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high), len(sums)


def sign_flips(
    differences: Float[np.ndarray, " units"],
    rng: np.random.Generator,
    draws: int,
    groups: Shaped[np.ndarray, " units"] | None = None,
) -> Float[np.ndarray, " draws"]:
    """Means of paired differences with random signs: a null in which the two sides of a pair are exchangeable.

    Keeps every absolute difference; destroys which side is larger. Values of one group keep a common sign.

    Args:
        differences: one per pair.
        rng: draws the signs.
        draws: how many means.
        groups: the group of each pair, such as the class that was measured with several seeds.
    """
    member = np.arange(len(differences)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    sums = np.bincount(member, weights=differences)
    return rng.choice([-1.0, 1.0], (draws, len(sums))) @ sums / max(len(differences), 1)


def paired(
    first: Sequence[Mapping[str, float | None]], second: Sequence[Mapping[str, float | None]], seed: int = 0
) -> Comparison | None:
    """The paired difference of the values of units that both sides have, seed by seed; units are the groups.

    The null flips the signs of whole units, so the interval and p are those of other units (concepts, sequences), for
    these seeds of training.

    Args:
        first: for each seed of training, the value of each unit by its name; None where it is not defined.
        second: the same of what is subtracted.
        seed: of the bootstrap and of the flips.

    Returns:
        The comparison, or None where there is no pair.
    """
    pairs = [
        (unit, value - other)
        for a, b in zip(first, second, strict=True)
        for unit, value in a.items()
        if value is not None and (other := b.get(unit)) is not None
    ]
    if not pairs:
        return None
    names, values = np.array([unit for unit, _ in pairs]), np.array([value for _, value in pairs], np.float64)
    null = sign_flips(values, np.random.default_rng(seed), FLIPS, names)
    return compare(values, null, alternative="two-sided", groups=names, seed=seed)


def permuted_labels(labels: Shaped[np.ndarray, " units"], rng: np.random.Generator) -> Shaped[np.ndarray, " units"]:
    """Keeps how often each label occurs; destroys which unit has it."""
    return rng.permutation(labels)


def permuted_parents(
    parents: Int[np.ndarray, " nodes"], rng: np.random.Generator, levels: Int[np.ndarray, " nodes"] | None = None
) -> Int[np.ndarray, " nodes"]:
    """Keeps every node's level and the number of each parent's children; destroys who is whose child.

    Args:
        parents: the parent of each node, -1 for a root.
        rng: draws the permutations, one per level.
        levels: of the nodes, where they are known.
    """
    return next(many_permuted_parents(parents, rng, 1, levels))


def many_permuted_parents(
    parents: Int[np.ndarray, " nodes"],
    rng: np.random.Generator,
    draws: int,
    levels: Int[np.ndarray, " nodes"] | None = None,
) -> Iterator[np.ndarray]:
    """As many draws of `permuted_parents`, which find the levels once."""
    groups = _by_level(parents, levels)[1:]
    for _ in range(draws):
        dealt = parents.copy()
        for own in groups:
            dealt[own] = rng.permutation(parents[own])
        yield dealt


def sibling_swap(
    parents: Int[np.ndarray, " nodes"], rng: np.random.Generator, levels: Int[np.ndarray, " nodes"] | None = None
) -> Int[np.ndarray, " nodes"]:
    """Keeps what `permuted_parents` keeps, and all but one child of each parent; gives that one to another parent.

    The children of a level's parents go round in a cycle, in random order; a level with one parent stays as it is.
    """
    swapped = parents.copy()
    for own in _by_level(parents, levels)[1:]:
        order = rng.permutation(own)  # the first child of each parent in a random order
        _, first = np.unique(parents[order], return_index=True)
        moved = rng.permutation(order[first])
        swapped[moved] = np.roll(parents[moved], 1)
    return swapped


def shuffled_rows(rows: Shaped[np.ndarray, "rows embed"], rng: np.random.Generator) -> Shaped[np.ndarray, "rows embed"]:
    """Keeps the set of rows, so their mean and covariance; destroys which token, or latent, a row belongs to."""
    return rng.permutation(rows, axis=0)


def random_directions(
    rows: Float[np.ndarray, "rows embed"], rng: np.random.Generator
) -> Float[np.ndarray, "rows embed"]:
    """Keeps the norm of each row; destroys its direction, which is drawn evenly from the sphere."""
    drawn = rng.normal(size=rows.shape)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * norms).astype(rows.dtype)


def _by_level(
    parents: Int[np.ndarray, " nodes"], levels: Int[np.ndarray, " nodes"] | None
) -> list[Int[np.ndarray, " own"]]:
    """The nodes of each level, roots first."""
    levels = Hierarchy.of_parents(parents.tolist()).levels if levels is None else levels
    return [np.flatnonzero(levels == level) for level in range(levels.max(initial=-1) + 1)]
