"""Builds a world from its config: trees, firing probabilities, magnitudes, correlation, feature vectors.

The parts are those of SynthSAEBench (Chanin and Garriga-Alonso, arXiv 2602.14687); graphs in which a feature has two
parents and vectors at a set angle to their parents are additions. Each part has a random generator of its own.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.ranges import INT32
from jhsae.worlds.config import CorrelationConfig, TreeConfig, WorldConfig
from jhsae.worlds.directions import orthogonalize, random_directions, towards_parents
from jhsae.worlds.generators import AbstractMagnitudes, AbstractProbabilities, magnitudes
from jhsae.worlds.hierarchy import Hierarchy
from jhsae.worlds.origin import Generators
from jhsae.worlds.world import World

LEAST_DIAGONAL = 0.01  # of a feature's variance that stays its own
TREES, VECTORS, BIAS, CORRELATION = range(4)


def build_world(config: WorldConfig) -> tuple[World, Generators]:
    """The world of a config, and the generators of its numbers, with which SAELens can write them down.

    Args:
        config: sizes, generators and seed.

    Raises:
        UserError: Parts that do not fit each other.
    """
    hierarchy = make_hierarchy(config.trees, config.features, _rng(config, TREES))
    size = hierarchy.size
    generators = Generators(
        cfg.build(config.probabilities, AbstractProbabilities),
        _magnitudes(config.means),
        _magnitudes(config.stds),
        bool(config.compensate and hierarchy.edges),
        config.seed,
    )
    factor, diag = _correlation(config.correlation, size, _rng(config, CORRELATION))
    vectors = random_directions(_rng(config, VECTORS), size, config.embed)
    if config.orthogonalization is not None:
        chosen = config.orthogonalization
        vectors = orthogonalize(vectors, chosen.steps, chosen.learning_rate)
    if config.child_cosine is not None:
        vectors = towards_parents(vectors, hierarchy, config.child_cosine)
    bias = config.bias * random_directions(_rng(config, BIAS), 1, config.embed)[0]
    values = generators.values(hierarchy)
    world = World(
        features=jnp.asarray(vectors),
        bias=jnp.asarray(bias),
        **{name: jnp.asarray(value) for name, value in values.items()},
        hierarchy=hierarchy,
        correlation_factor=factor,
        correlation_diag=diag,
        noise=config.noise,
    )
    return world, generators


def make_hierarchy(trees: TreeConfig | None, features: int | None, rng: np.random.Generator) -> Hierarchy:
    """The trees, features numbered level by level.

    Args:
        trees: None for no tree.
        features: How many features there are; None for as many as the trees have.
        rng: Draws numbers of children, exclusive parents and second parents.

    Raises:
        UserError: More features than can be counted.
    """
    if trees is None:
        return Hierarchy(features or 0)
    least, most = trees.children
    limit = INT32 if features is None else features
    parents = [-1] * min(trees.roots, limit)
    level = range(len(parents))
    levels = [level]
    for _ in range(trees.depth):
        counts = rng.integers(least, most + 1, len(level))
        if features is None and len(parents) + int(counts.sum()) > 2**24:
            raise UserError(f"the trees have more than {2**24:,} features; write fewer roots, children or levels")
        children = np.repeat(np.asarray(level, int), counts)[: limit - len(parents)]
        parents += children.tolist()
        level = range(len(parents) - len(children), len(parents))
        levels.append(level)
    edges = [(p, i) for i, p in enumerate(parents) if p >= 0]
    edges += _second_parents(trees.second_parents, parents, levels, rng)
    size = len(parents) if features is None else features
    plain = Hierarchy(size, tuple(edges))
    several = [i for i, below in enumerate(plain.below) if len(below) > 1]
    exclusive = rng.permutation(several)[: int(len(several) * trees.exclusive)].tolist()
    scaled = [i for i, below in enumerate(plain.below) if below] if trees.scale_children else []
    return Hierarchy(size, tuple(edges), frozenset(exclusive), frozenset(scaled))


def _second_parents(
    share: float, parents: Sequence[int], levels: Sequence[range], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """A second parent for a share of the features below the roots, of the level of the first."""
    able = [(i, above) for above, level in pairwise(levels) if len(above) > 1 for i in level]
    chosen = rng.permutation(len(able))[: int(len(able) * share)].tolist()
    edges = []
    for number in sorted(chosen):
        i, above = able[number]
        other = above[int(rng.integers(len(above) - 1))]
        edges.append((other if other < parents[i] else other + 1, i))
    return edges


def _correlation(
    config: CorrelationConfig | None, features: int, rng: np.random.Generator
) -> tuple[Float32[jnp.ndarray, "features rank"] | None, Float32[jnp.ndarray, "features"] | None]:
    """Factor and diagonal of a correlation matrix; rows that leave too little to the diagonal are shortened."""
    if config is None:
        return None, None
    factor = config.scale * rng.normal(size=(features, config.rank))
    squares = np.sum(factor**2, axis=1)
    most = 1 - LEAST_DIAGONAL
    factor *= np.sqrt(np.where(squares > most, most / np.maximum(squares, most), 1.0))[:, None]
    diag = 1 - np.sum(factor**2, axis=1)
    return jnp.asarray(factor, jnp.float32), jnp.asarray(diag, jnp.float32)


def _magnitudes(value: object) -> AbstractMagnitudes:
    return magnitudes(cfg.build(value, AbstractMagnitudes) if isinstance(value, dict) else value)


def _rng(config: WorldConfig, part: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, part])
