"""Park et al.'s tests of a concept hierarchy (arXiv 2406.01506, sections 4 and 6), on the categories of an ontology.

With l_w the vector of category w in the unified space, p its parent and g the parent of that:

    hierarchy     cos(l_w - l_p, l_p)          0 where a category adds something orthogonal to its parent
    consecutive   cos(l_w - l_p, l_p - l_g)    0 where two steps of the hierarchy are orthogonal
    simplex       the l_w - l_p of k siblings are the corners of a (k-1)-simplex: affinely independent

Each stands beside the same number for a random category as the parent, and for samples permuted over tokens. Where
there are more dimensions than siblings, random vectors span a simplex too; so only the difference to the null counts.
The test on held-out words is in `validate.py`, that in the language model in `interventions.py`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
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
    """A concept of an ontology with the tokens of everything under it; `parent` is the id of its first parent."""

    id: str
    name: str
    tokens: tuple[int, ...]
    parent: str | None = None


def categories(ontology: Ontology, vocabulary: Vocabulary, least: int, rest: int) -> tuple[Category, ...]:
    """Every concept with enough tokens, parents before their children; chains are merged as in `select`.

    Of several parents the first counts, as in the authors' code. A category that leaves its parent fewer than `rest`
    tokens of its own has no parent here: the two are nearly the same.

    Args:
        ontology: The graph of concepts.
        vocabulary: Words that are single tokens.
        least: Tokens of a category, at least; one of 1 token has no spread.
        rest: Tokens of a parent that a category leaves to others, at least.
    """
    tokens = token_sets(ontology, vocabulary)
    graph = merged_children(ontology, tokens, max(2, least), rest)
    above: dict[str, str] = {}
    for parent in reversed(graph):  # from the top
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
    lines = vectors(found, estimator, samples)
    shuffled = vectors(found, estimator, samples.shuffled(rng))
    wrong = random_parents(found, rng)
    parent = {c.id: c.parent for c in found if c.parent is not None}
    tests = {"hierarchy": hierarchy, "consecutive": consecutive}
    return {
        name: {
            "measured": quartiles(test(parent, parent, lines)),
            "random_parent": quartiles(test(parent, wrong, lines)),
            "shuffled": quartiles(test(parent, parent, shuffled)),
        }
        for name, test in tests.items()
    } | {"simplex": {"measured": simplex(parent, lines), "shuffled": simplex(parent, shuffled)}}


def vectors(
    found: Iterable[Category], estimator: AbstractEstimator, samples: Samples
) -> dict[str, Float64[np.ndarray, "embed"]]:
    """The vector of every category, against all other sampled tokens; zeros where its samples have no spread."""
    lines = {}
    for category in found:
        own = samples.of(category.tokens)
        tokens = outside_tokens(category.tokens, samples)
        step = -(-len(tokens) * samples.rows.shape[1] // MOST_NEGATIVES) or 1
        spread = own.any() and (own != own[0]).any()
        lines[category.id] = estimator.direction(own, samples.of(tokens[::step])) if spread else np.zeros(own.shape[1])
    return lines


def random_parents(found: tuple[Category, ...], rng: np.random.Generator) -> dict[str, str]:
    """Another category in the place of every parent: never the parent or the category itself."""
    ids = [c.id for c in found]
    wrong = {}
    for category in found:
        fit = [i for i in ids if i not in (category.id, category.parent)]
        if category.parent is not None and fit:
            wrong[category.id] = fit[rng.integers(len(fit))]
    return wrong


def hierarchy(parent: Mapping[str, str], stands_for: Mapping[str, str], lines: Lines) -> Float64[np.ndarray, "pairs"]:
    """cos(l_w - l_p, l_p) of every category with a parent, p the category that `stands_for` gives it."""
    pairs = ((lines[w], lines[stands_for[w]]) for w in parent if w in stands_for)
    return np.array([cosine(w - p, p) for w, p in pairs])


def consecutive(
    parent: Mapping[str, str], stands_for: Mapping[str, str], lines: Lines
) -> Float64[np.ndarray, "chains"]:
    """cos(l_w - l_p, l_p - l_g) of every chain of three, p the category that `stands_for` gives w."""
    chains = [(w, stands_for[w], parent[p]) for w, p in parent.items() if p in parent and w in stands_for]
    return np.array([cosine(lines[w] - lines[p], lines[p] - lines[g]) for w, p, g in chains])


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
