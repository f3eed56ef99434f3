import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression

from jhsae import config as cfg
from jhsae import lm
from jhsae.commands import teach
from jhsae.errors import UserError
from jhsae.teacher import LDAEstimator, LogisticEstimator, MeanEstimator, ParkEstimator, Unembedding, estimate
from jhsae.teacher.estimate import ledoit_wolf_shrinkage, shrunk_solve

ESTIMATORS = [ParkEstimator(), MeanEstimator(), LDAEstimator(), LogisticEstimator()]


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def samples_of(world):
    tokens = [t for ids in world.vocabulary.ids.values() for t in ids]
    return Unembedding()(world.view(), world.concepts, [*tokens, *range(1000, 1400)])


@pytest.mark.parametrize("samples", [7, 40])
def test_parks_direction_is_its_formula(samples):
    g = np.random.default_rng(0).normal(size=(samples, 16)) + 1.0
    u = np.linalg.pinv(ledoit_wolf(g)[0]) @ g.mean(0)
    u /= np.linalg.norm(u)
    np.testing.assert_allclose(ParkEstimator().direction(g, g[:1]), (u @ g.mean(0)) * u, rtol=1e-8)


@pytest.mark.parametrize("samples", [2, 5, 16, 500])
@pytest.mark.parametrize("spread", [np.ones(16), np.geomspace(0.01, 3, 16)])
def test_the_shrinkage_is_that_of_scikit_learn(samples, spread):
    x = np.random.default_rng(4).normal(size=(samples, 16)) * spread
    assert ledoit_wolf_shrinkage(x - x.mean(0)) == pytest.approx(ledoit_wolf(x)[1], abs=1e-10)


@pytest.mark.parametrize("samples", [5, 16, 50])
@pytest.mark.parametrize("shrinkage", [0.01, 0.5, 1.0])
def test_the_small_system_solves_the_large_one(samples, shrinkage):
    rng = np.random.default_rng(1)
    x, right = rng.normal(size=(samples, 16)), rng.normal(size=16)
    S = x.T @ x / (samples - 1)
    C = (1 - shrinkage) * S + shrinkage * np.trace(S) / 16 * np.eye(16)
    found = shrunk_solve(x, shrinkage, samples - 1, right)
    np.testing.assert_allclose(found, np.linalg.solve(C, right), rtol=1e-8)


def test_lda_is_its_formula_and_projects_the_gap_onto_itself():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(30, 8)) + 1.0, rng.normal(size=(50, 8))
    pooled = np.cov(np.concatenate([a - a.mean(0), b - b.mean(0)]).T)
    w = np.linalg.solve(0.9 * pooled + 0.1 * np.trace(pooled) / 8 * np.eye(8), a.mean(0) - b.mean(0))
    found = LDAEstimator(0.1).direction(a, b)
    assert cosine(found, w) == pytest.approx(1.0)
    assert found @ (a.mean(0) - b.mean(0)) == pytest.approx(found @ found)


@pytest.mark.parametrize("counts", [(5, 9), (40, 200)], ids=["fewer than dimensions", "more"])
@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_logistic_regression_is_that_of_scikit_learn(counts, penalty):
    rng = np.random.default_rng(5)
    rows = np.concatenate([rng.normal(size=(counts[0], 16)) + 0.5, rng.normal(size=(counts[1], 16))])
    oracle = LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=10_000)
    oracle.fit(rows, np.repeat([True, False], counts))
    gap = rows[: counts[0]].mean(0) - rows[counts[0] :].mean(0)
    found = LogisticEstimator(penalty).direction(rows[: counts[0]], rows[counts[0] :])
    assert cosine(found, oracle.coef_[0]) == pytest.approx(1.0)
    assert found @ gap == pytest.approx(found @ found)


def test_equal_samples_have_no_direction():
    with pytest.raises(UserError, match="no direction"):
        LogisticEstimator().direction(np.ones((3, 4)), np.ones((5, 4)))


def test_parks_directions_of_every_category_of_the_embedded_model_are_those_of_scikit_learn():
    config = cfg.load(teach.Teach, cfg.find("teacher/embedded.yaml"))
    loaded = lm.load("embedded", layers=0)
    vocabulary, concepts = teach.find_concepts(config, loaded)
    view = teach.make_view(config, loaded)
    samples = Unembedding()(view, concepts, teach.pool(config, concepts, vocabulary))
    found = estimate(concepts, ParkEstimator(), samples)

    def oracle(tokens):
        g = samples.of(tokens)
        u = np.linalg.solve(ledoit_wolf(g)[0], g.mean(0))
        u /= np.linalg.norm(u)
        return (u @ g.mean(0)) * u

    for concept, parent, deltas in zip(concepts, found.parents, found.deltas, strict=True):
        expected = oracle(concept.tokens)
        np.testing.assert_allclose(parent, expected, atol=1e-5 * np.linalg.norm(expected))
        for child, delta in zip(concept.children, deltas, strict=True):
            own = oracle(child.tokens)
            np.testing.assert_allclose(delta, own - expected, atol=1e-5 * np.linalg.norm(own))
    assert len(concepts) == 56 and sum(map(len, found.deltas)) == 188


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_planted_parents_and_deltas_are_recovered(world, estimator):
    found = estimate(world.concepts, estimator, samples_of(world))
    # Whitening rotates the planted space: true unified vectors come from their residual vectors.
    to_found = np.linalg.solve(world.mixing.T, np.asarray(world.geometry.residual.matrix, np.float64))
    for p, parent in enumerate(world.parents):
        cosines = [cosine(parent @ to_found, other) for other in found.parents]
        assert np.argmax(cosines) == p
        assert cosines[p] > 0.65  # of 36 noisy samples in 24 dimensions; chance is about 0.2
        for c, delta in enumerate(world.deltas[p]):
            assert np.argmax([cosine(delta @ to_found, d) for d in found.deltas[p]]) == c


def test_parks_length_is_the_projection_of_the_tokens(world):
    samples = samples_of(world)
    found = estimate(world.concepts, ParkEstimator(), samples)
    for concept, vector in zip(world.concepts, found.parents, strict=True):
        assert (samples.of(concept.tokens) @ vector).mean() == pytest.approx(vector @ vector)


def test_a_concept_without_a_direction_is_an_error():
    with pytest.raises(UserError, match="no direction"):
        ParkEstimator().direction(np.zeros((4, 3)), np.zeros((1, 3)))
    with pytest.raises(UserError, match="given none"):
        LDAEstimator().direction(np.ones((4, 3)), np.zeros((0, 3)))
    with pytest.raises(UserError, match="given none"):
        LogisticEstimator().direction(np.ones((4, 3)), np.zeros((0, 3)))
    with pytest.raises(UserError, match=r"shrinkage is 0\.0, expected more than 0"):
        LDAEstimator(0.0)


def test_a_mean_and_the_difference_of_two():
    rng = np.random.default_rng(0)
    own, siblings, parent = rng.normal(size=(5, 8)), rng.normal(size=(6, 8)), rng.normal(size=8)
    np.testing.assert_allclose(MeanEstimator().direction(own, siblings), own.sum(0) / 5)
    np.testing.assert_allclose(MeanEstimator().delta(parent, own, siblings), own.sum(0) / 5 - parent)
