"""Interventions in the language model along the contrast of two sibling concepts (Park et al., arXiv 2406.01506, 6.3).

The contrast of siblings a and b is l_a - l_b in the unified space, so the residual vector Σ^(-1/2) (l_a - l_b). Added
to the residual stream it should raise the logits of a's tokens over those of b, and over tokens that are neither. It
comes from 70 % of the words of a and b, and logits are read at tokens of the other words: at the last layer, those that
it was made of would rise by construction. The null is a random unified direction; both are added at the same norm.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from jhsae.metric import CausalGeometry
from jhsae.teacher.estimate import AbstractEstimator
from jhsae.teacher.samples import Samples
from jhsae.teacher.select import Concept
from jhsae.teacher.subspace import unit
from jhsae.teacher.validate import quartiles, split

# From residual vectors of unit norm to the logits with each of them added, averaged over prompts.
Steer = Callable[[Float64[np.ndarray, "added embed"]], Float[np.ndarray, "added vocab"]]
UNRELATED = 256  # tokens that are in neither concept
AT_ONCE = 16


def interventions(
    concepts: tuple[Concept, ...],
    estimator: AbstractEstimator,
    samples: Samples,
    lemmas: Mapping[int, str],
    geometry: CausalGeometry,
    steer: Steer,
    pairs: int,
    seed: int,
) -> dict[str, Any]:
    """Changes of logit differences by the contrasts of siblings, and by random directions.

    Args:
        concepts: Parents with their children; two children of one parent are siblings.
        estimator: The rule from samples to directions.
        samples: Samples of all their tokens, in the unified space.
        lemmas: Token id -> word.
        geometry: Maps unified directions to the residual side.
        steer: The language model: logits with a vector added.
        pairs: Pairs of siblings, at most.
        seed: Of the pairs, the splits and the random directions.

    Returns:
        Quartiles over pairs of the change of (mean logit of target - mean logit of sibling, or of unrelated tokens),
        with the suffix ``_random`` for the null; None where no pair has held-out words.
    """
    rng = np.random.default_rng(seed)
    found = list(islice((pair for pair in _pairs(concepts, lemmas, rng) if pair is not None), pairs))
    unified = [_contrast(pair, estimator, samples) for pair in found]
    width = samples.rows.shape[-1]
    rows = np.concatenate([np.zeros((0, width)), *(np.stack([u, rng.normal(size=width)]) for u in unified)])
    added = unit(rows @ np.asarray(geometry.unembedding.matrix, np.float64))
    change: dict[str, list[float]] = {f"{what}{null}": [] for what in _DIFFERENCES for null in ("", "_random")}
    for start in range(0, len(added), 2 * AT_ONCE):
        nothing_first = np.concatenate([np.zeros((1, width)), added[start : start + 2 * AT_ONCE]])
        logits = steer(nothing_first).astype(np.float64)
        for i, gain in enumerate(logits[1:] - logits[0], start=start):
            means = {what: float(gain[tokens].mean()) for what, tokens in found[i // 2].held.items()}
            for what, (one, other) in _DIFFERENCES.items():
                change[what + ("_random" if i % 2 else "")].append(means[one] - means[other])
    return {what: quartiles(np.array(values)) for what, values in change.items()}


_DIFFERENCES = {
    "target_sibling": ("target", "sibling"),
    "target_unrelated": ("target", "unrelated"),
    "sibling_unrelated": ("sibling", "unrelated"),
}


class _Pair(NamedTuple):
    """Two siblings: the tokens that directions come from, and those at which logits are read."""

    known: tuple[list[int], list[int]]
    held: dict[str, list[int]]


def _pairs(
    concepts: tuple[Concept, ...], lemmas: Mapping[int, str], rng: np.random.Generator
) -> Iterator[_Pair | None]:
    """Every ordered pair of siblings in random order; None for one that has too few words to be split."""
    every = [(p, a, b) for p in concepts for a in p.children for b in p.children if a is not b]
    tokens = sorted({t for p in concepts for t in p.tokens})
    for i in rng.permutation(len(every)):
        parent, one, other = every[i]
        yield _pair(parent, one, other, tokens, lemmas, rng)


def _pair(
    parent: Concept,
    one: Concept,
    other: Concept,
    tokens: list[int],
    lemmas: Mapping[int, str],
    rng: np.random.Generator,
) -> _Pair | None:
    shared = set(one.tokens) & set(other.tokens)
    parts = [[[t for t in part if t not in shared] for part in split(concept, lemmas, rng)] for concept in (one, other)]
    unrelated = sorted(set(tokens) - set(parent.tokens))
    if any(len(known) < 2 or not held for known, held in parts) or not unrelated:
        return None
    few = [unrelated[i] for i in rng.permutation(len(unrelated))[:UNRELATED]]
    held = {"target": parts[0][1], "sibling": parts[1][1], "unrelated": few}
    return _Pair((parts[0][0], parts[1][0]), held)


def _contrast(pair: _Pair, estimator: AbstractEstimator, samples: Samples) -> Float64[np.ndarray, "embed"]:
    one, other = (samples.of(tokens) for tokens in pair.known)
    return estimator.direction(one, other) - estimator.direction(other, one)
