"""Codes obey the hierarchy, on trees and on graphs, and are drawn at the rates of their config."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_worlds import config, random_graph, world

from jhsae.errors import UserError
from jhsae.worlds import Hierarchy, WorldConfig, absorption, build_world, hedging, splitting
from jhsae.worlds.config import TreeConfig

ROWS = 4000
Z = 6.0  # two-sided: 2e-9 per comparison


def drawn(w, seed=0, rows=ROWS):
    x, codes = w.sample(jax.random.key(seed), rows)
    return np.asarray(x), np.asarray(codes)


def gated(values: np.ndarray, hierarchy: Hierarchy, means: np.ndarray, stays) -> np.ndarray:
    """The plain form for one token: `stays` chooses among the children of an exclusive parent that fire."""
    values = values.astype(np.float64)
    for depth in range(int(hierarchy.levels.max()) + 1):
        here = [i for i in range(hierarchy.size) if hierarchy.levels[i] == depth]
        for i in here:
            active = [p for p in hierarchy.above[i] if values[p] > 0]
            if hierarchy.above[i]:
                values[i] *= np.mean([values[p] / means[p] if p in hierarchy.scaled else 1 for p in active] or [0])
        before = values.copy()
        for p in here:
            children = [c for c in hierarchy.below[p] if before[c] > 0]
            if p in hierarchy.exclusive and values[p] > 0 and len(children) > 1:
                values[[c for c in children if c != stays(p, children)]] = 0
    return values


@pytest.mark.parametrize("seed", range(2))
def test_the_hierarchy_on_any_graph_is_that_of_the_plain_form(seed):
    """Which child stays is read off the codes: of those that fire below an exclusive parent, the one that is left."""
    graph = random_graph(seed)
    w = world(graph, probability=0.7)
    keys = jax.random.split(jax.random.key(seed), 300)
    codes = np.asarray(w.rows(keys)[1])
    free = np.asarray(world(Hierarchy(graph.size), probability=0.7).rows(keys)[1])  # the same draws without a hierarchy
    for token, values in zip(codes, free, strict=True):
        plain = gated(values, graph, np.ones(graph.size), lambda p, c: next((i for i in c if token[i] > 0), None))  # noqa: B023
        np.testing.assert_allclose(token, plain, rtol=1e-5)
    assert (codes > 0).any(axis=0).all()


@pytest.mark.parametrize("seed", range(2))
def test_no_child_fires_without_a_parent_and_at_most_one_of_an_exclusive_group(seed):
    graph = random_graph(seed, 20)
    fires = drawn(world(graph, probability=0.8), seed)[1] > 0
    for i, parents in enumerate(graph.above):
        assert not parents or not (fires[:, i] & ~fires[:, list(parents)].any(axis=1)).any()
    for p in graph.exclusive:
        assert (fires[:, p][:, None] & fires[:, list(graph.below[p])]).sum(axis=1).max(initial=0) <= 1


def test_each_child_of_an_exclusive_parent_stays_equally_often():
    star = Hierarchy.of_parents([-1, 0, 0, 0, 0], exclusive=frozenset({0}))
    w = world(star, probability=1.0, means=jnp.full(5, 5.0))
    counts = (drawn(w)[1] > 0).sum(axis=0)
    assert counts[0] == counts[1:].sum() == ROWS
    assert (np.abs(counts[1:] - ROWS / 4) < Z * np.sqrt(ROWS * 3 / 16)).all()


def test_a_child_scales_with_its_parents_value_over_its_mean():
    pair = Hierarchy.of_parents([-1, 0], scaled=frozenset({0}))
    w = world(pair, probability=1.0, means=jnp.array([4.0, 3.0]), stds=jnp.array([1.0, 0.0]))
    codes = drawn(w)[1]
    np.testing.assert_allclose(codes[:, 1], 3.0 * codes[:, 0] / 4.0, rtol=1e-6)
    assert codes[:, 0].std() > 0.9


def test_activations_are_codes_times_vectors_plus_bias_and_noise():
    w, _ = build_world(config(noise=0.2))
    x, codes = drawn(w)
    rest = x - codes @ np.asarray(w.features) - np.asarray(w.bias)
    np.testing.assert_allclose([rest.mean(), rest.std()], [0, 0.2], atol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(w.bias), 0.5, rtol=1e-6)


def test_features_fire_at_their_rates_with_and_without_a_correlation():
    """Pairs too: features with a factor of 0.9 fire together as the copula says, by numerical integration."""
    p = np.array([0.0, 0.1, 0.3, 0.9, 1.0], np.float32)
    factor = np.full((5, 1), 0.9, np.float32)
    plain = {"probabilities": jnp.asarray(p), "stds": jnp.zeros(5)}
    correlated = plain | {"correlation_factor": jnp.asarray(factor), "correlation_diag": jnp.full(5, 0.19)}
    for given in (plain, correlated):
        fires = drawn(world(Hierarchy(5), **given))[1] > 0
        assert (np.abs(fires.mean(axis=0) - p) <= Z * np.sqrt(p * (1 - p) / ROWS)).all()
    from scipy.stats import norm

    shared = np.linspace(-8, 8, 4001)
    each = norm.cdf((0.9 * shared[:, None] - norm.ppf(1 - p[1:3])) / np.sqrt(0.19))
    both = np.trapezoid(each[:, 0] * each[:, 1] * norm.pdf(shared), shared)
    assert both > 2 * p[1] * p[2]
    assert abs((fires[:, 1] & fires[:, 2]).mean() - both) < Z * np.sqrt(both * (1 - both) / ROWS)


def test_samples_follow_their_key_and_any_number_of_rows():
    w = build_world(config())[0]
    x, again, other = (drawn(w, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(x, again)
    assert not np.allclose(x, other) and np.isfinite(x).all()
    assert [part.shape for part in drawn(w, rows=0)] == [(0, 24), (0, 45)]
    assert [part.shape for part in drawn(w, rows=1)] == [(1, 24), (1, 45)]
    one = world(Hierarchy(1), probability=1.0, means=jnp.full(1, 3.0), stds=jnp.zeros(1))
    np.testing.assert_array_equal(drawn(one, rows=3)[0], np.full((3, 1), 3.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"probabilities": jnp.array([0.1, 1.5, 0.1])}, "feature 1 fires with probability 1.5, expected 0 to 1"),
        ({"means": jnp.array([1.0, jnp.nan, 1.0])}, "means is not finite"),
        ({"means": jnp.array([0.0, 1.0, 1.0])}, "feature 0 scales its children by value / mean, but its mean is 0"),
        ({"stds": jnp.array([0.0, -1.0, 0.0])}, "standard deviation is -1"),
        ({"features": 2 * jnp.eye(3)}, "feature vector 0 has norm 2, expected unit norm"),
        ({"correlation_diag": jnp.ones(3)}, "only one of correlation_factor and correlation_diag"),
        ({"correlation_diag": jnp.zeros(3), "correlation_factor": jnp.ones((3, 1))}, "correlation_diag is 0"),
        ({"hierarchy": Hierarchy(4)}, "the hierarchy has 4 features, the vectors are 3"),
        ({"noise": -1.0}, "noise is -1"),
    ],
)
def test_what_makes_no_world_is_a_sentence(changes, words):
    with pytest.raises(UserError, match=words):
        replace(world(Hierarchy.of_parents([-1, 0, 0], scaled=frozenset({0}))), **changes)


def test_toys_have_the_answers_that_are_known():
    fires = drawn(absorption())[1] > 0
    assert not (fires[:, 1] & ~fires[:, 0]).any()
    assert abs(fires[fires[:, 0], 1].mean() - 0.5) < Z * np.sqrt(0.25 / fires[:, 0].sum())
    for correlation in (0.6, -0.6):
        fires = drawn(hedging(correlation=correlation))[1] > 0
        assert (np.corrcoef(fires.T)[0, 1] > 0.2) == (correlation > 0)
        assert (np.abs(fires.mean(axis=0) - 0.25) < Z * np.sqrt(0.25 * 0.75 / ROWS)).all()
    codes = drawn(splitting(children=3))[1]
    np.testing.assert_array_equal(codes[:, 1:].sum(axis=1), codes[:, 0])
    assert absorption(embed=2).features.shape == (2, 2)
    with pytest.raises(UserError, match="embed is 2, expected at least 5"):
        splitting(embed=2)
    with pytest.raises(UserError, match="correlation is 1"):
        hedging(correlation=1.0)


def test_compensation_restores_the_rates_of_children():
    """Without exclusion exactly; with it to first order, from below."""
    rates = {"_target_": "jhsae.worlds.Zipf", "exponent": 0.5, "highest": 0.5, "lowest": 0.02}
    given = {"probabilities": rates, "correlation": None, "stds": 0.0, "features": None}
    trees = TreeConfig(4, 3, 1, exclusive=0.0)
    w, generators = build_world(WorldConfig("none", embed=24, trees=trees, probabilities=rates))
    wanted = generators.probabilities.values(16, 0)
    found = (drawn(w)[1] > 0).mean(axis=0)
    assert (np.abs(found - wanted) < Z * np.sqrt(wanted / ROWS)).all()
    graph = build_world(config(**given | {"trees": TreeConfig(4, 3, 1, exclusive=0.0, second_parents=0.5)}))[0]
    found = (drawn(graph)[1] > 0).mean(axis=0)
    assert (np.abs(found - wanted) < Z * np.sqrt(wanted / ROWS)).all()
