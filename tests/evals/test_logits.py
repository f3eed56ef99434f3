"""A feature's logits: those of the language model but for one positive number per token, and the soft cap."""

import jax.numpy as jnp
import numpy as np
import pytest
from held_out import harvested

from jhsae.errors import UserError
from jhsae.features import logits


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return harvested(tmp_path_factory.mktemp("held_out"))[1]


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)


def test_logits_are_the_models_own_times_rms(model, rows):
    end = model.model.layers
    x = rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + model.model.config.norm_eps)
    found = logits.feature_logits(x, model.model.unembedding(), model.tokenizer, 5)
    true = np.asarray(model.model.logits_from(jnp.asarray(rows)[None], end))[0]
    cap = model.model.config.final_cap
    capped = cap * np.tanh(found.top_values / cap)
    np.testing.assert_allclose(capped, -np.sort(-true, axis=1)[:, :5], rtol=1e-4, atol=1e-5)
    order = np.argsort(-true, axis=1)[:, :5]
    assert found.top == [logits.token_strings(model.tokenizer, ids.tolist()) for ids in order]
    assert np.any(np.asarray(model.model.final_norm) != 0)


def test_ends_and_histograms_equal_numpy_for_any_block(model, rows, monkeypatch):
    unembedding = np.asarray(model.model.unembedding())
    monkeypatch.setattr(logits, "MOST_LOGITS", 2 * len(unembedding))
    found = logits.feature_logits(rows, jnp.asarray(unembedding), model.tokenizer, 4, bins=9)
    true = np.float64(rows) @ unembedding.T
    np.testing.assert_allclose(found.bottom_values, np.sort(true, axis=1)[:, :4], rtol=1e-4, atol=1e-5)
    assert found.bottom[0][0] == model.tokenizer.convert_ids_to_tokens(int(np.argmin(true[0])))
    for i, row in enumerate(true.astype(np.float32)):
        counts, edges = np.histogram(row, 9)
        assert np.abs(found.counts[i] - counts).sum() <= 2  # a value on an edge may fall to either side
        np.testing.assert_allclose(found.centres[i], (edges[1:] + edges[:-1]) / 2, rtol=1e-4, atol=1e-5)
    assert np.all(found.counts.sum(axis=1) == len(unembedding))


def test_tokens_are_written_as_text(model):
    assert logits.token_strings(model.tokenizer, [4, 39, 40]) == ["w4", "w39", "<token 40>"]


def test_bad_input_is_refused(model, rows):
    unembedding = model.model.unembedding()
    with pytest.raises(UserError, match="the rows have 15 numbers, but the unembedding has 16"):
        logits.feature_logits(rows[:, :15].copy(), unembedding, model.tokenizer)
    for k in (0, 41):
        with pytest.raises(UserError, match=f"{k} tokens per feature were asked for, but the vocabulary has 40"):
            logits.feature_logits(rows, unembedding, model.tokenizer, k)
