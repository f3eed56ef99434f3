"""A teacher and its validation: estimators and shrinkages, each beside five nulls, three seeds of splits.

    python experiments/phases/teacher.py [--quick] [--config FILE] [KEY=VALUE ...]

Per parent, from 70 % of its words: the mean of g.l / |l|^2 on its other words (1 for a perfect direction) and their AUC
against the words of no part of it. Per child: the distance from 90 degrees between its delta and its parent, which is
estimated without the child's words. Nulls: samples permuted over tokens (`shuffled`), the language model with random
weights (`random`), another concept's words or parent (`other`), one child of each parent moved to another (`swap`).
`original_share` is the share of pairs that pass the original's test, an angle of 80 degrees or more between a child
less its parent, both at unit length, and the parent; it passes whatever they are.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from phases import Place, options

from jhsae import config as cfg
from jhsae.commands import teach
from jhsae.evals.nulls import permuted_parents, sibling_swap
from jhsae.lm import LanguageModel
from jhsae.metric import causal_absolute_ridge
from jhsae.teacher import AbstractEstimator, Concept, Samples, Unembedding, Vocabulary, estimate
from jhsae.teacher.estimate import others, rest
from jhsae.teacher.subspace import unit
from jhsae.teacher.validate import level, projections, split, unseen

PARK = "{_target_: jhsae.teacher.ParkEstimator}"
VARIANTS = {
    "park": [f"estimator={PARK}"],
    "mean": ["estimator={_target_: jhsae.teacher.MeanEstimator}"],
    "lda": ["estimator={_target_: jhsae.teacher.LDAEstimator}"],
    "logistic": ["estimator={_target_: jhsae.teacher.LogisticEstimator}"],
    "park_shrinkage_0": ["shrinkage=0.0"],
    "park_shrinkage_0.5": ["shrinkage=0.5"],
    "park_ledoit_wolf": ["shrinkage=ledoit_wolf"],
}
MAIN = ("park", "mean")
ANGLES = ("park", "mean", "park_shrinkage_0", "park_shrinkage_0.5", "park_ledoit_wolf")  # the others' deltas contrast


def main() -> None:
    runs(options(__doc__), VARIANTS)


def runs(place: Place, names: Iterable[str]) -> None:
    """Validates estimators with every seed."""
    for name in names:
        for seed in place.settings.seeds:
            config = place.teach_config([*VARIANTS[name], f"seed={seed}"])
            place.record("teacher", name, seed, cfg.config_hash(config), lambda c=config, n=name: measure(c, n))


def measure(config: teach.Teach, name: str) -> dict[str, Any]:
    """The units of one estimator, of the model and of its nulls."""
    estimator = cfg.build(config.estimator, AbstractEstimator)
    trained, concepts, lemmas, numbers = sampled(config)
    random = sampled(replace(config, lm=replace(config.lm, random=config.seed)))[0]
    rng = np.random.default_rng(config.seed)
    sources = {"": trained, "_shuffled": trained.shuffled(rng), "_random": random}
    units: dict[str, dict[str, float]] = {}
    for suffix, samples in sources.items():
        found = projections(concepts, estimator, samples, lemmas, np.random.default_rng(config.seed))
        for column, what in ((1, "heldout"), (3, "auc")):
            units[what + suffix] = defined({c.id: v for c, v in zip(concepts, found[:, column], strict=True)})
    units["heldout_other"] = others_words(concepts, estimator, trained, lemmas, config.seed)
    if name in ANGLES:
        for suffix, samples in sources.items():
            units["off_90" + suffix] = angles(concepts, estimator, samples)
        parents = tree(concepts)
        units["off_90_other"] = angles(rebuilt(concepts, permuted_parents(parents, rng)), estimator, trained)
        units["off_90_swap"] = angles(rebuilt(concepts, sibling_swap(parents, rng)), estimator, trained)
        numbers["original_share"], numbers["original_share_random"] = (
            original(concepts, estimator, s) for s in (trained, random)
        )
    return {"numbers": numbers, "units": units}


def sampled(config: teach.Teach) -> tuple[Samples, tuple[Concept, ...], dict[int, str], dict[str, Any]]:
    """Samples of the unembedding, the concepts, the word of every token, and the metric in numbers."""
    loaded = model(config.lm)
    view = teach.make_view(config, loaded)
    vocabulary, concepts = words(config)
    samples = Unembedding()(view, concepts, teach.pool(config, concepts, vocabulary))
    numbers = {"condition": view.geometry.condition, "shrinkage": view.geometry.shrinkage, "parents": len(concepts)}
    numbers |= {"condition_absolute_ridge": causal_absolute_ridge(view.unembedding).condition}
    return samples, concepts, vocabulary.lemmas(), numbers


@cache
def model(source: teach.Source) -> LanguageModel:
    """The language model without its blocks, loaded once."""
    return source.load(0)


_WORDS: dict[str, tuple[Vocabulary, tuple[Concept, ...]]] = {}


def words(config: teach.Teach) -> tuple[Vocabulary, tuple[Concept, ...]]:
    """The words and the concepts, which neither the estimator nor the seed changes."""
    if config.lm.path not in _WORDS:
        _WORDS[config.lm.path] = teach.find_concepts(config, model(replace(config.lm, random=None)))
    return _WORDS[config.lm.path]


def others_words(
    concepts: tuple[Concept, ...], estimator: AbstractEstimator, samples: Samples, lemmas: dict[int, str], seed: int
) -> dict[str, float]:
    """The projection of the held-out words of the next concept on every concept's line."""
    rng = np.random.default_rng(seed)
    parts = [split(concept, lemmas, rng) for concept in concepts]
    found = {}
    for i, concept in enumerate(concepts):
        line = estimator.direction(samples.of(parts[i][0]), others(concept, concepts, samples))
        words = sorted(set(parts[(i + 1) % len(parts)][1]) - set(concept.tokens))
        found[concept.id] = float(level(samples.of(words), line).mean()) if words else np.nan
    return defined(found)


def angles(concepts: tuple[Concept, ...], estimator: AbstractEstimator, samples: Samples) -> dict[str, float]:
    """`unseen` of every child, by its id."""
    values, _ = unseen(concepts, estimator, samples)
    ids = [child.id for concept in concepts for child in concept.children if rest(concept, child)]
    return defined(dict(zip(ids, values, strict=True)))


def original(concepts: tuple[Concept, ...], estimator: AbstractEstimator, samples: Samples) -> float:
    """The share of children whose unit vector less that of the parent is at 80 degrees or more to the parent."""
    found = estimate(concepts, estimator, samples)
    cosines = [
        unit(unit(parent + deltas) - unit(parent)) @ unit(parent)
        for parent, deltas in zip(found.parents, found.deltas, strict=True)
    ]
    return float(np.mean(np.degrees(np.arccos(np.clip(np.concatenate(cosines), -1, 1))) >= 80))


def tree(concepts: tuple[Concept, ...]) -> np.ndarray:
    """The parent of every node: the concepts, then their children in order."""
    return np.array([-1] * len(concepts) + [i for i, c in enumerate(concepts) for _ in c.children])


def rebuilt(concepts: tuple[Concept, ...], parents: np.ndarray) -> tuple[Concept, ...]:
    """The same parents with the children that `parents` gives them."""
    children = [child for concept in concepts for child in concept.children]
    dealt = [
        [c for c, p in zip(children, parents[len(concepts) :], strict=True) if p == i] for i in range(len(concepts))
    ]
    return tuple(replace(concept, children=tuple(own)) for concept, own in zip(concepts, dealt, strict=True))


def defined(values: dict[str, float]) -> dict[str, float]:
    """Those that are numbers, as JSON."""
    return {str(key): float(value) for key, value in values.items() if np.isfinite(value)}


if __name__ == "__main__":
    main()
