import numpy as np
import pytest

from jhsae.teacher import LDAEstimator, ParkEstimator, Samples, Unembedding, estimate, readout, validate
from jhsae.teacher.validate import auc, off_right_angle


def validated(world, estimator, seed=0):
    tokens = [t for c in world.concepts for t in c.tokens]
    samples = Unembedding()(world.view(), world.concepts, [*tokens, *range(1000, 1400)])
    directions = estimate(world.concepts, estimator, samples)
    return validate(world.concepts, directions, estimator, samples, world.vocabulary.lemmas(), seed)


def test_a_planted_hierarchy_beats_every_null(world):
    angles = validated(world, ParkEstimator())["orthogonality"]
    assert angles["unseen"]["median"] < 20
    for null in ("random_parent", "unseen_shuffled"):
        assert angles[null]["median"] > 30
    assert angles["measured"]["n"] == 12


def test_held_out_tokens_project_like_the_training_ones_and_shuffled_ones_do_not(world):
    projection = validated(world, ParkEstimator())["projection"]
    assert projection["measured"]["train"] == pytest.approx(1.0, abs=1e-6)
    assert projection["measured"]["heldout"] == pytest.approx(1.0, abs=0.2)
    assert abs(projection["measured"]["other"]) < 0.2
    assert projection["measured"]["auc"] > 0.95
    assert projection["measured"]["unseen_child"] > 0.6
    assert abs(projection["shuffled"]["heldout"]) < 0.3
    assert abs(projection["shuffled"]["unseen_child"]) < 0.3
    assert projection["shuffled"]["auc"] < 0.7


def test_lda_finds_the_held_out_tokens_too(world):
    projection = validated(world, LDAEstimator())["projection"]
    assert projection["measured"]["auc"] > 0.95


def test_readouts_find_held_out_words_in_activations_that_hold_the_concept(world):
    """Activations that are the words' own unified vectors in new noise, or noise alone."""
    tokens = [t for c in world.concepts for t in c.tokens]
    samples = Unembedding()(world.view(), world.concepts, [*tokens, *range(1000, 1400)])
    noise = np.random.default_rng(3).normal(size=samples.rows.shape).astype(np.float32)
    areas = [
        readout(world.concepts, ParkEstimator(), samples, Samples(samples.tokens, rows), world.vocabulary.lemmas(), 0)
        for rows in (samples.rows + noise, noise)
    ]
    assert areas[0]["measured"]["median"] > 0.9
    assert areas[0]["shuffled"]["median"] < 0.7
    assert areas[1]["measured"]["median"] < 0.7


def test_two_validations_of_one_seed_agree(world):
    assert validated(world, ParkEstimator()) == validated(world, ParkEstimator())


def test_the_angle_is_two_sided():
    """Two unit vectors at angle θ: their difference is at 90 + θ/2 to either, which a one-sided test accepts."""
    theta = np.radians(60)
    parent, child = np.array([1.0, 0]), np.array([np.cos(theta), np.sin(theta)])
    assert off_right_angle((child - parent)[None], parent)[0] == pytest.approx(30)
    assert off_right_angle((parent - child)[None], parent)[0] == pytest.approx(30)


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30).astype(float), rng.integers(0, 4, 50).astype(float)
    pairs = np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b))
    assert auc(a, b) == pytest.approx(pairs)
