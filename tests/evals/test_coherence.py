"""Coherence is the mean cosine over all pairs of the ten tokens, computed here pair by pair."""

import importlib
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import evals
from jhsae.data import Store
from jhsae.features.firings import Batch, Firings
from jhsae.features.latents import token_profile
from jhsae.metric import causal

VOCAB, EMBED, FEATURES, ROWS = 30, 6, 5, 900
RNG = np.random.default_rng(0)
UNEMBEDDING = jnp.asarray(RNG.normal(size=(VOCAB, EMBED)).astype(np.float32))
TOKENS = RNG.integers(0, VOCAB, ROWS).astype(np.int32)


def codes():
    """Dense codes: feature 3 fires on few tokens, 4 never; some values are negative, as a leaky activation has them."""
    dense = RNG.normal(size=(ROWS, FEATURES)).astype(np.float32) * (RNG.random((ROWS, FEATURES)) < 0.4)
    dense[:, 0] *= TOKENS < 15
    dense[:, 3] *= TOKENS < 9
    dense[:, 4] = 0
    return dense


DENSE = codes()


def table(dense):
    feature, row = np.nonzero(dense.T)
    starts = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=dense.shape[1]))])
    return Firings(row.astype(np.int32), dense[row, feature], starts.astype(np.int64), len(dense))


def oracle(dense, feature, firings=3, most=10):
    """Tokens and coherence, token by token and pair by pair."""
    values = dense[:, feature].astype(float)
    mean = {}
    for token in range(VOCAB):
        here = token == TOKENS
        if np.sum(values[here] != 0) >= firings and np.maximum(values[here], 0).sum() > 0:
            mean[token] = np.maximum(values[here], 0).sum() / here.sum()
    best = sorted(mean, key=lambda token: (-mean[token], token))[:most]
    if len(best) < most:
        return None, None
    white = causal(np.asarray(UNEMBEDDING)).unembedding.whiten(UNEMBEDDING - UNEMBEDDING.mean(axis=0))
    unit = np.asarray(white, float) / np.linalg.norm(white, axis=1, keepdims=True)
    return best, np.mean([unit[s] @ unit[t] for s, t in itertools.combinations(best, 2)])


def test_it_is_that_of_the_oracle():
    found = evals.coherence(token_profile(table(DENSE), TOKENS, VOCAB), UNEMBEDDING)
    for feature in range(FEATURES):
        tokens, value = oracle(DENSE, feature)
        assert found.tokens[feature].tolist() == (tokens or [-1] * 10)
        assert found.values[feature] == pytest.approx(np.nan if value is None else value, abs=1e-5, nan_ok=True)
    assert np.isfinite(found.values).tolist() == [True, True, True, False, False]


def test_the_most_coherent_come_first_and_those_without_a_value_never():
    found = evals.coherence(token_profile(table(DENSE), TOKENS, VOCAB), UNEMBEDDING)
    ranked = found.most(10)
    assert sorted(ranked) == [0, 1, 2] and found.most(1) == ranked[:1]
    assert (np.diff(found.values[ranked]) <= 0).all()


def test_tokens_of_one_direction_are_coherent_and_of_opposite_ones_are_not():
    alike = np.concatenate([np.tile(RNG.normal(size=EMBED), (10, 1)), RNG.normal(size=(20, EMBED)) * 3])
    alike = (alike + 1e-3 * RNG.normal(size=alike.shape)).astype(np.float32)
    dense = np.stack([TOKENS < 10, TOKENS >= 10], axis=1).astype(np.float32)
    found = evals.coherence(token_profile(table(dense), TOKENS, VOCAB), jnp.asarray(alike))
    assert found.values[0] > 0.99 > 0.5 > found.values[1]


def test_what_is_told_is_json_and_null_where_there_is_none():
    found = evals.coherence(token_profile(table(DENSE), TOKENS, VOCAB), UNEMBEDDING)

    def text(ids):
        return [str(i) for i in ids]

    assert found.told(4, text) == {"coherence": None, "tokens": []}
    told = found.told(1, text)
    assert told["coherence"] == found.values[1] and told["tokens"] == [str(t) for t in found.tokens[1]]


class Index(Store):
    """A store that has tokens alone."""

    def __init__(self):
        pass

    def index(self, start, stop):
        return np.stack([0 * TOKENS, np.arange(ROWS, dtype=np.int32), TOKENS], axis=1)[start:stop]


def batches(dense, size):
    for start in range(0, len(dense), size):
        row, feature = np.nonzero(dense[start : start + size])
        values, none = dense[start + row, feature], np.zeros(len(row), np.float32)
        rows = (start + row).astype(np.int32)
        yield Batch(rows, 0 * rows, rows, feature.astype(np.int32), values, none)


def test_batches_of_the_pass_for_contexts_give_the_same_for_the_top_level():
    dense = DENSE.copy()
    dense[-1] = 1.0  # the last row fires, so that all rows are counted as measured
    whole = evals.coherence(token_profile(table(dense[:, :2]), TOKENS, VOCAB), UNEMBEDDING)
    held = evals.first_batches(batches(dense, 128))
    found = evals.coherence_of(held, 2, Index(), UNEMBEDDING)
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    np.testing.assert_allclose(found.values, whole.values, rtol=1e-6)


def test_nothing_fired():
    found = evals.coherence_of(evals.first_batches(batches(0 * DENSE, 128)), 2, Index(), UNEMBEDDING)
    assert found.most(3) == [] and found.values.shape == (2,)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(importlib.import_module("jhsae.evals.coherence"), "MOST_FIRINGS", 300)
    rest = batches(DENSE, 128)
    held = evals.first_batches(rest)
    assert 300 <= sum(len(b.row) for b in held) < 300 + 128 * FEATURES and next(rest, None) is not None
