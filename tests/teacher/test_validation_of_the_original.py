"""Validations of PolytopeSAE and a missing whitening that pass or fail whatever the teacher is, beside ours."""

import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.metric import Whitened
from jhsae.teacher import LDAEstimator, ParkEstimator, Unembedding
from jhsae.teacher.original import lda_direction
from jhsae.teacher.validate import auc, off_right_angle, projections


def sampled(world):
    tokens = [t for c in world.concepts for t in c.tokens]
    return Unembedding()(world.view(), world.concepts, [*tokens, *range(1000, 1400)])


@pytest.mark.parametrize("estimator", [ParkEstimator(), LDAEstimator()], ids=["park", "lda"])
def test_words_that_the_teacher_has_seen_confirm_a_teacher_of_permuted_words(world, estimator):
    """The original estimates on all of its data and tests on a part of it, where permuted words pass too."""
    mixed = sampled(world).shuffled(np.random.default_rng(0))
    taught = [c.tokens for c in world.concepts]
    rest = sorted({*mixed.tokens.tolist()} - {t for tokens in taught for t in tokens})
    lines = [estimator.direction(mixed.of(t), mixed.of(rest)) for t in taught]
    leaked = [auc(mixed.of(t) @ line, mixed.of(rest) @ line) for t, line in zip(taught, lines, strict=True)]
    held = projections(world.concepts, estimator, mixed, world.vocabulary.lemmas(), np.random.default_rng(0))[:, 3]
    assert np.median(leaked) > 0.7 and np.median(held) < 0.65
    own = projections(world.concepts, estimator, sampled(world), world.vocabulary.lemmas(), np.random.default_rng(0))
    assert np.median(own[:, 3]) > 0.95


def test_negations_of_the_same_words_teach_the_template():
    """The original's negatives are the same words after "this is not about": the direction is that of the template."""
    rng = np.random.default_rng(0)
    words, template = rng.normal(size=(80, 16)), 6 * np.eye(16)[0]
    positive, negative = words[:40], words[:40] + template
    white = Whitened(jnp.eye(16))
    original = lda_direction(positive, negative, white)
    fresh = rng.normal(size=(40, 16))  # no concept at all
    assert auc(fresh @ original, (fresh + template) @ original) > 0.98
    assert abs(original[0]) > 0.9 * np.linalg.norm(original)
    ours = LDAEstimator().direction(words[:20], words[40:])  # other words in the same template
    assert abs(auc(words[20:40] @ ours, fresh @ ours) - 0.5) < 0.25


def test_without_whitening_a_true_hierarchy_is_not_orthogonal(world):
    """Park et al., figure 12: true vectors, in the coordinates of the unembedding and in the unified space."""
    parents, deltas = (v @ world.mixing for v in (world.parents, world.deltas))
    white = np.asarray(world.geometry.unembedding.matrix, np.float64)
    plain = [off_right_angle(d, p) for p, d in zip(parents, deltas, strict=True)]
    unified = [off_right_angle(d @ white.T, p @ white.T) for p, d in zip(parents, deltas, strict=True)]
    assert np.median(unified) < 5 < np.median(plain)
