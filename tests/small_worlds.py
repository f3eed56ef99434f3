"""Small worlds with every part of the generator in them."""

import jax.numpy as jnp
import numpy as np

from jhsae.worlds import Hierarchy, World, WorldConfig
from jhsae.worlds.config import CorrelationConfig, OrthogonalizationConfig, TreeConfig

ZIPF = {"_target_": "jhsae.worlds.Zipf", "exponent": 0.5, "highest": 0.5, "lowest": 0.1}


def config(out: str = "none", **changes) -> WorldConfig:
    """Three trees of two levels, half of the groups exclusive, values scaled, correlated firing; 45 features."""
    given = {
        "embed": 24,
        "features": 45,
        "trees": TreeConfig(3, [2, 4], 2, exclusive=0.5, scale_children=True),
        "probabilities": ZIPF,
        "means": {"_target_": "jhsae.worlds.LinearMagnitudes", "start": 2.0, "end": 1.0},
        "stds": {"_target_": "jhsae.worlds.FoldedNormal", "mean": 0.2, "std": 0.5},
        "correlation": CorrelationConfig(4, 0.3),
        "orthogonalization": OrthogonalizationConfig(10, 0.01),
        "bias": 0.5,
        "seed": 1,
    }
    return WorldConfig(out, **given | changes)


def world(hierarchy: Hierarchy, probability: float = 0.5, **changes) -> World:
    """Features along the axes, of value about 1."""
    size = hierarchy.size
    given = {
        "features": jnp.eye(size),
        "bias": jnp.zeros(size),
        "probabilities": jnp.full(size, probability),
        "means": jnp.ones(size),
        "stds": jnp.full(size, 0.7),
        "hierarchy": hierarchy,
    }
    return World(**given | changes)


def random_graph(seed: int, size: int = 14) -> Hierarchy:
    """Any acyclic graph: every feature may have up to three parents before it, at any level."""
    rng = np.random.default_rng(seed)
    edges = [(int(p), i) for i in range(3, size) for p in rng.permutation(i)[: rng.integers(0, 4)]]
    exclusive, scaled = (frozenset(np.flatnonzero(rng.random(size) < 0.5).tolist()) for _ in range(2))
    return Hierarchy(size, tuple(edges), exclusive, scaled)
