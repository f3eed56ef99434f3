"""Park et al.'s tests of a concept hierarchy (arXiv 2406.01506, sections 4 and 6), on the categories of an ontology.

With l_w the vector of category w in the unified space, p its parent and g the parent of that:

    hierarchy     cos(l_w - l_p, l_p)          0 where a category adds something orthogonal to its parent
    consecutive   cos(l_w - l_p, l_p - l_g)    0 where two steps of the hierarchy are orthogonal
    simplex       the l_w - l_p of k siblings are the corners of a (k-1)-simplex: affinely independent

Each stands beside the same number for a random category as the parent, and for samples permuted over tokens. With fewer
tokens than dimensions the first two are near 0 for permuted samples as well, because the parent has seen the tokens of
its child; `unseen` is measured on parents estimated without them. Random vectors span a simplex too where there are
more dimensions than siblings: only differences to the nulls count.
The test on held-out words is in `validate.py`, that in the language model in `interventions.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from jhsae.teacher.estimate import MOST_NEGATIVES, AbstractEstimator
from jhsae.teacher.ontology import Ontology
from jhsae.teacher.samples import Samples
from jhsae.teacher.select import merged_children, token_sets
from jhsae.teacher.subspace import unit
from jhsae.teacher.validate import median, outside_tokens, quartiles
from jhsae.teacher.vocabulary import Vocabulary

FLAT = 1e-3  # a simplex whose smallest singular value is below this share of the largest has lost a dimension
Lines = Mapping[str, Float64[np.ndarray, "embed"]]


@dataclass(frozen=True)
class Category:
    """A concept of an ontology with the tokens of everything under it; `parent` is the id of its closest parent."""

    id: str
    name: str
    tokens: tuple[int, ...]
    parent: str | None = None


def categories(ontology: Ontology, vocabulary: Vocabulary, least: int, rest: int) -> tuple[Category, ...]:
    """Every concept with enough tokens, parents before their children; chains are merged as in `select`.

    Of several parents the one with the fewest tokens counts (the authors take the first in file order). A parent to
    which a category leaves fewer than `rest` tokens is none: the two are nearly the same.

    Args:
        ontology: The graph of concepts.
        vocabulary: Words that are single tokens.
        least: Tokens of a category, at least; one of 1 token has no spread.
        rest: Tokens of a parent that a category leaves to others, at least.
    """
    tokens = token_sets(ontology, vocabulary)
    graph = merged_children(ontology, tokens, max(2, least), rest)
    above: dict[str, str] = {}
    for parent in sorted(graph, key=lambda i: (len(tokens[i]), i)):
        for child in graph[parent]:
            if len(tokens[parent]) - len(tokens[child]) >= rest:
                above.setdefault(child, parent)
    return tuple(Category(i, ontology.names[i], tuple(sorted(tokens[i])), above.get(i)) for i in reversed(graph))


def theory(found: tuple[Category, ...], estimator: AbstractEstimator, samples: Samples, seed: int) -> dict[str, Any]:
    """The three tests and their nulls.

    Args:
        found: Categories (`categories`).
        estimator: The rule from samples to a vector whose length counts: `ParkEstimator` or `MeanEstimator`.
        samples: Samples of all their tokens, in the unified space.
        seed: Of random parents and permutations.

    Returns:
        ``{"hierarchy": {...}, "consecutive": {...}, "simplex": {...}}``, JSON values; undefined ones are None.
    """
    rng = np.random.default_rng(seed)
    mixed = samples.shuffled(rng)
    lines, null = vectors(found, estimator, samples), vectors(found, estimator, mixed)
    apart, null_apart = (unseen_parents(found, estimator, s) for s in (samples, mixed))
    parent = {c.id: c.parent for c in found if c.parent is not None}
    wrong = random_parents(found, rng)

    def test(cosines: Callable[..., Float64[np.ndarray, "_"]]) -> dict[str, Any]:
        own, random = ({w: lines[p] for w, p in above.items()} for above in (parent, wrong))
        return {
            "measured": quartiles(cosines(parent, own, lines)),
            "random_parent": quartiles(cosines(parent, random, lines)),
            "shuffled": quartiles(cosines(parent, {w: null[p] for w, p in parent.items()}, null)),
            "unseen": quartiles(cosines(parent, apart, lines)),
            "unseen_shuffled": quartiles(cosines(parent, null_apart, null)),
        }

    shapes = {"measured": simplex(parent, lines), "shuffled": simplex(parent, null)}
    return {"hierarchy": test(hierarchy), "consecutive": test(consecutive), "simplex": shapes}


def vectors(
    found: Iterable[Category], estimator: AbstractEstimator, samples: Samples
) -> dict[str, Float64[np.ndarray, "embed"]]:
    """The vector of every category, against all other sampled tokens; zeros where its samples have no spread."""
    return {c.id: _vector(c.tokens, estimator, samples) for c in found}


def unseen_parents(
    found: Iterable[Category], estimator: AbstractEstimator, samples: Samples
) -> dict[str, Float64[np.ndarray, "embed"]]:
    """For every category with a parent, the parent's vector estimated without the category's tokens."""
    tokens = {c.id: c.tokens for c in found}
    parts = {c.id: tuple(sorted({*tokens[c.parent]} - {*c.tokens})) for c in found if c.parent is not None}
    return {i: _vector(rest, estimator, samples) for i, rest in parts.items()}


def _vector(tokens: tuple[int, ...], estimator: AbstractEstimator, samples: Samples) -> Float64[np.ndarray, "embed"]:
    """Of these tokens against all other sampled ones; zeros where they are no two different vectors."""
    own, other = samples.of(tokens), outside_tokens(tokens, samples)
    step = -(-len(other) * samples.rows.shape[1] // MOST_NEGATIVES) or 1
    if not own.any() or (own == own[0]).all():
        return np.zeros(own.shape[1])
    return estimator.direction(own, samples.of(other[::step]))


def random_parents(found: tuple[Category, ...], rng: np.random.Generator) -> dict[str, str]:
    """Another category in the place of every parent: never the parent or the category itself."""
    ids = [c.id for c in found]
    wrong = {}
    for category in found:
        fit = [i for i in ids if i not in (category.id, category.parent)]
        if category.parent is not None and fit:
            wrong[category.id] = fit[rng.integers(len(fit))]
    return wrong


def hierarchy(parent: Mapping[str, str], above: Lines, lines: Lines) -> Float64[np.ndarray, "pairs"]:
    """cos(l_w - l_p, l_p) of every category w with a parent, l_p the vector that `above` gives it."""
    return np.array([cosine(lines[w] - above[w], above[w]) for w in parent if w in above])


def consecutive(parent: Mapping[str, str], above: Lines, lines: Lines) -> Float64[np.ndarray, "chains"]:
    """cos(l_w - l_p, l_p - l_g) of every chain w, p, g; l_p and l_g are the vectors that `above` gives w and p."""
    chains = ((w, p) for w, p in parent.items() if p in parent and w in above and p in above)
    return np.array([cosine(lines[w] - above[w], above[w] - above[p]) for w, p in chains])


def simplex(parent: Mapping[str, str], lines: Lines) -> dict[str, float | None]:
    """The shape of three or more siblings around their parent.

    Returns:
        Medians over parents: `smallest`, the (k-1)-th singular value of the k unit vectors l_w - l_p, centred, as a
        share of the first (1 for a regular simplex, 0 for a flat one); `pairwise_cosine` between those vectors (of a
        regular simplex around its centre: -1 / (k - 1)); the share of parents with `full_rank`; and `n`, their number.
    """
    families: dict[str, list[str]] = defaultdict(list)
    for child, above in parent.items():
        families[above].append(child)
    smallest, pairwise = [], []
    for above, siblings in families.items():
        rows = unit(np.stack([lines[w] - lines[above] for w in siblings]))
        if not 3 <= len(rows) <= rows.shape[1] or not rows.any(axis=1).all():
            continue
        values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
        smallest.append(float(values[len(rows) - 2] / values[0]) if values[0] > 0 else 0.0)
        pairwise.append(float(np.median((rows @ rows.T)[np.triu_indices(len(rows), 1)])))
    return {
        "smallest": median(np.array(smallest)),
        "pairwise_cosine": median(np.array(pairwise)),
        "full_rank": float(np.mean(np.array(smallest) > FLAT)) if smallest else None,
        "n": len(smallest),
    }


def cosine(a: Float64[np.ndarray, "embed"], b: Float64[np.ndarray, "embed"]) -> float:
    """The cosine; NaN where one of the two is 0."""
    return float(unit(a) @ unit(b)) if a.any() and b.any() else float("nan")
