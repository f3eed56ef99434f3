"""Validation of a teacher's geometry against nulls (Park et al., arXiv 2406.01506, section 6).

Orthogonality: the angle between a child's delta and its parent, two-sided |angle - 90| in degrees. As estimated,
the parent has seen the child's tokens; with fewer tokens than dimensions that alone brings the angle near 90, so
it is also measured on the parent estimated without them (`unseen`). Projection: g·l / ||l||² is 1 on average for
tokens of the concept and 0 for other words; measured on held-out words (70/30) and on whole unseen children.
Undefined values (the angle of a delta of 0, a child with all of its parent's tokens) are left out; the median of no
values is None. Nulls: another concept as the parent (of a single one, itself); samples permuted over tokens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from jhsae.teacher.estimate import AbstractEstimator, Directions, estimate, others, rest
from jhsae.teacher.samples import Samples
from jhsae.teacher.select import Concept
from jhsae.teacher.subspace import unit

TRAIN = 0.7


def validate(
    concepts: tuple[Concept, ...],
    directions: Directions,
    estimator: AbstractEstimator,
    samples: Samples,
    lemmas: Mapping[int, str],
    seed: int,
) -> dict[str, Any]:
    """Metrics of a teacher and of its nulls.

    Args:
        concepts: Parents with their children.
        directions: Their estimated directions.
        estimator: The rule that estimated them.
        samples: Samples of all tokens.
        lemmas: Token id -> word, so that "dog" and "dogs" are held out together.
        seed: Of splits and permutations.

    Returns:
        ``{"orthogonality": {...}, "projection": {...}}``, JSON values; undefined ones are None.
    """
    rng = np.random.default_rng(seed)
    shuffled = samples.shuffled(rng)
    null = estimate(concepts, estimator, shuffled)
    order = rng.permutation(len(concepts))
    angles, levels = unseen(concepts, estimator, samples)
    null_angles, null_levels = unseen(concepts, estimator, shuffled)
    return {
        "orthogonality": {
            "measured": quartiles(seen(directions)),
            "random_parent": quartiles(other_parent(concepts, directions, estimator, samples, order)),
            "shuffled": quartiles(seen(null)),
            "unseen": quartiles(angles),
            "unseen_shuffled": quartiles(null_angles),
        },
        "projection": {
            "measured": projection(concepts, estimator, samples, lemmas, np.random.default_rng(seed))
            | {"unseen_child": median(levels)},
            "shuffled": projection(concepts, estimator, shuffled, lemmas, np.random.default_rng(seed))
            | {"unseen_child": median(null_levels)},
        },
    }


def off_right_angle(
    deltas: Float64[np.ndarray, "children embed"], parent: Float64[np.ndarray, "embed"]
) -> Float64[np.ndarray, "children"]:
    """|angle - 90| in degrees; NaN where one of the two is 0."""
    angles = np.degrees(np.arcsin(np.clip(np.abs(unit(deltas) @ unit(parent)), 0, 1)))
    return np.where(deltas.any(axis=1) & parent.any(), angles, np.nan)


def seen(directions: Directions) -> Float64[np.ndarray, "children"]:
    """Every delta against its parent as estimated."""
    pairs = zip(directions.deltas, directions.parents, strict=True)
    return np.concatenate([off_right_angle(rows, parent) for rows, parent in pairs])


def other_parent(
    concepts: tuple[Concept, ...],
    directions: Directions,
    estimator: AbstractEstimator,
    samples: Samples,
    order: np.ndarray,
) -> Float64[np.ndarray, "children"]:
    """Every child as if the parent after its own in `order` were its parent."""
    angles = []
    after = {int(i): int(j) for i, j in zip(order, np.roll(order, -1), strict=True)}
    for i, concept in enumerate(concepts):
        parent = directions.parents[after[i]]
        for child in concept.children:
            delta = estimator.delta(parent, samples.of(child.tokens), samples.of(rest(concept, child)))
            angles.append(off_right_angle(delta[None], parent))
    return np.concatenate(angles)


def unseen(
    concepts: tuple[Concept, ...], estimator: AbstractEstimator, samples: Samples
) -> tuple[Float64[np.ndarray, "children"], Float64[np.ndarray, "children"]]:
    """Every delta, and the mean projection of every child's tokens, on its parent estimated without them."""
    angles, levels = [], []
    for concept in concepts:
        negative = others(concept, concepts, samples)
        for child in concept.children:
            siblings = samples.of(rest(concept, child))
            if not len(siblings):
                continue
            parent = estimator.direction(siblings, negative)
            own = samples.of(child.tokens)
            angles.append(off_right_angle(estimator.delta(parent, own, siblings)[None], parent))
            levels.append(level(own.mean(0)[None], parent)[0])
    return np.concatenate([np.zeros(0), *angles]), np.array(levels)


def projection(
    concepts: tuple[Concept, ...],
    estimator: AbstractEstimator,
    samples: Samples,
    lemmas: Mapping[int, str],
    rng: np.random.Generator,
) -> dict[str, float | None]:
    """Medians over parents of g·l / ||l||² on train, held-out and other words; and the held-out AUC."""
    columns = projections(concepts, estimator, samples, lemmas, rng).T
    return dict(zip(("train", "heldout", "other", "auc"), map(median, columns), strict=True))


def projections(
    concepts: tuple[Concept, ...],
    estimator: AbstractEstimator,
    samples: Samples,
    lemmas: Mapping[int, str],
    rng: np.random.Generator,
) -> Float64[np.ndarray, "parents 4"]:
    """What `projection` takes the medians of, a row per parent; NaN where one is not defined."""
    rows = []
    for concept in concepts:
        known, heldout = split(concept, lemmas, rng)
        line = estimator.direction(samples.of(known), others(concept, concepts, samples))
        parts = (known, heldout, outside(concept, samples))
        train, test, other = (level(samples.of(t), line) for t in parts)
        rows.append((mean(train), mean(test), mean(other), auc(test, other)))
    return np.array(rows)


def readout(
    concepts: tuple[Concept, ...],
    estimator: AbstractEstimator,
    samples: Samples,
    activations: Samples,
    lemmas: Mapping[int, str],
    seed: int,
) -> dict[str, dict[str, float | None]]:
    """AUC of each parent's direction as a probe on activations at a layer, held-out words only.

    Args:
        concepts: Parents with their children.
        estimator: The rule that estimates the directions.
        samples: Of all tokens; the directions come from those of the other words.
        activations: Of all tokens, whitened on the residual side.
        lemmas: Token id -> word, so that "dog" and "dogs" are held out together.
        seed: Of splits and permutations.

    Returns:
        Quartiles over parents, ``measured`` and with samples permuted over tokens (``shuffled``).
    """
    found = {}
    for name, seen in (("measured", samples), ("shuffled", samples.shuffled(np.random.default_rng(seed)))):
        rng = np.random.default_rng(seed)
        areas = []
        for concept in concepts:
            known, heldout = split(concept, lemmas, rng)
            line = estimator.direction(seen.of(known), others(concept, concepts, seen))
            areas.append(auc(activations.of(heldout) @ line, activations.of(outside(concept, activations)) @ line))
        found[name] = quartiles(np.array(areas))
    return found


def split(concept: Concept, lemmas: Mapping[int, str], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """The concept's tokens of 70 % of its words, and those of the others."""
    words = sorted({lemmas[t] for t in concept.tokens})
    known = {words[i] for i in rng.permutation(len(words))[: round(TRAIN * len(words))]}
    tokens = concept.tokens
    return [t for t in tokens if lemmas[t] in known], [t for t in tokens if lemmas[t] not in known]


def outside(concept: Concept, samples: Samples) -> list[int]:
    """The tokens that were sampled and are not the concept's."""
    return outside_tokens(concept.tokens, samples)


def outside_tokens(tokens: tuple[int, ...], samples: Samples) -> list[int]:
    """The tokens that were sampled and are not among `tokens`."""
    return sorted({*samples.tokens.tolist()} - set(tokens))


def auc(positive: Float64[np.ndarray, "positive"], negative: Float64[np.ndarray, "negative"]) -> float:
    """Chance that a positive exceeds a negative; NaN where there are none of either."""
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(np.sort(negative), positive, side="left")
    through = np.searchsorted(np.sort(negative), positive, side="right")
    return float(np.mean((below + through) / 2) / len(negative))


def level(rows: Float64[np.ndarray, "rows embed"], line: Float64[np.ndarray, "embed"]) -> Float64[np.ndarray, "rows"]:
    """g·l / ||l||² of every row; NaN where the line is 0."""
    return rows @ line / (line @ line) if line.any() else np.full(len(rows), np.nan)


def mean(values: Float64[np.ndarray, "values"]) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else float("nan")


def median(values: Float64[np.ndarray, "values"]) -> float | None:
    """The median of the defined values; None where there are none."""
    return quartiles(values)["median"]


def quartiles(values: Float64[np.ndarray, "values"]) -> dict[str, float | None]:
    """Median, quartiles and number of the defined values; None where there are none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {"median": None, "quartile_1": None, "quartile_3": None, "n": 0}
    low, middle, high = np.percentile(known, (25, 50, 75))
    return {"median": float(middle), "quartile_1": float(low), "quartile_3": float(high), "n": len(known)}
