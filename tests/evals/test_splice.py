"""Splicing: the identity changes nothing, special tokens keep their residual, zeros hurt, scores are their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import evals, lm
from jhsae.data import WordNetGlosses, pack, special_ids
from jhsae.data.stream import Stream
from jhsae.errors import UserError


@pytest.fixture(scope="module")
def embedded():
    model = lm.load("embedded")
    tokens = pack(WordNetGlosses(split="heldout").documents(), model.tokenizer, 32, seed=0, rows=24 * 32)
    return model, tokens[:24].astype(np.int64)


def test_the_identity_leaves_the_cross_entropy_unchanged_and_zeros_raise_it(embedded):
    model, tokens = embedded
    special = list(model.tokenizer.all_special_ids)
    half = {"identity": lambda x: x + 0.0, "half": lambda x: x.at[:, ::2].set(0.0)}
    results = evals.splice(model.model, 2, half, tokens, special, batch=10)
    ids = jnp.asarray(tokens, jnp.int32)
    whole = float(jnp.mean(lm.cross_entropy(model.model(ids), ids)))
    assert results["model"]["ce"] == pytest.approx(whole, abs=1e-4)
    assert results["identity"]["ce"] == pytest.approx(whole, abs=1e-4)
    assert results["identity"]["kl"] == pytest.approx(0, abs=1e-5)
    assert results["zero"]["ce"] > results["half"]["ce"] > whole + 0.05
    scores = evals.recovered(results, "half")
    assert scores["ce_recovered"] == pytest.approx(
        (results["zero"]["ce"] - results["half"]["ce"]) / (results["zero"]["ce"] - results["model"]["ce"])
    )
    assert evals.recovered(results, "identity")["ce_recovered"] == pytest.approx(1, abs=1e-4)
    assert evals.recovered(results, "zero")["ce_recovered"] == 0


def test_special_tokens_keep_their_residual(embedded):
    model, tokens = embedded
    everything = list(range(model.model.vocab))
    results = evals.splice(model.model, 2, {"zeros": jnp.zeros_like}, tokens[:4], everything, batch=4)
    assert results["zeros"]["ce"] == pytest.approx(results["model"]["ce"], abs=1e-6)


def test_exactly_the_positions_that_a_harvest_stores_are_replaced(embedded):
    model, _ = embedded
    text = [f"日本語 water 😀 is naïve 漢字 a place {i}" for i in range(40)]  # a quarter of the tokens are unknown
    tokens = pack(text, model.tokenizer, 32, seed=0)[:4]
    unknown = tokens == model.tokenizer.unk_token_id
    stored = Stream.of(tokens, model.tokenizer, seed=0).keep
    assert unknown.mean() > 0.2 and stored[unknown].all() and not stored[:, 0].any()
    special = list(special_ids(model.tokenizer))
    results = evals.splice(model.model, 2, {"zeros": jnp.zeros_like}, tokens.astype(np.int64), special, batch=4)
    ids = jnp.asarray(tokens.astype(np.int32))
    x = jnp.where(stored[..., None], 0.0, model.model.residual(ids, 2))
    expected = float(jnp.mean(lm.cross_entropy(model.model.logits_from(x, 2), ids)))
    assert results["zeros"]["ce"] == pytest.approx(expected, abs=1e-4)


def test_nothing_to_recover_and_nothing_to_predict(embedded):
    model, tokens = embedded
    same = {name: {"ce": 1.0, "kl": 0.0} for name in ("model", "zero", "a")}
    scores = evals.recovered(same, "a")
    assert scores["ce_recovered"] is None and scores["kl_recovered"] is None and scores["ce"] == 1
    for part in (tokens[:0], tokens[:, :1]):
        with pytest.raises(UserError, match="predict no token"):
            evals.splice(model.model, 2, {}, part, [], batch=4)


def test_kl_is_that_of_the_two_distributions(embedded):
    model, tokens = embedded
    ids = jnp.asarray(tokens[:2], jnp.int32)
    x = model.model.residual(ids, 2)
    p = jax.nn.log_softmax(model.model.logits_from(x, 2))
    keep = np.isin(tokens[:2], list(model.tokenizer.all_special_ids))
    q = jax.nn.log_softmax(model.model.logits_from(jnp.where(keep[..., None], x, 0.5 * x), 2))
    expected = float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1)[:, :-1]))
    results = evals.splice(
        model.model, 2, {"half": lambda x: 0.5 * x}, tokens[:2], list(model.tokenizer.all_special_ids), batch=2
    )
    assert results["half"]["kl"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_original_divergence_is_the_other_one_and_its_hook_changes_another_axis(embedded):
    """PolytopeSAE: ``kl_div(log base, changed)`` is KL(changed || base); ``output[0][:, -1]`` is no last token."""
    model, tokens = embedded
    ids = jnp.asarray(tokens[:2], jnp.int32)
    x = model.model.residual(ids, 2)
    p, q = (jax.nn.log_softmax(model.model.logits_from(a, 2)) for a in (x, 0.5 * x))
    base_first, changed_first = (
        float(jnp.mean(jnp.sum(jnp.exp(a) * (a - b), -1)[:, :-1])) for a, b in ((p, q), (q, p))
    )
    ours = evals.splice(model.model, 2, {"half": lambda a: 0.5 * a}, tokens[:2], [], batch=2)["half"]["kl"]
    assert ours == pytest.approx(base_first, rel=1e-4) and abs(ours - changed_first) > 0.05 * ours
    original = np.array(x)
    original[0][:, -1] += 100.0  # meant: the last token of every sequence
    changed = np.any(original != np.asarray(x), axis=-1)
    assert changed[0].all() and not changed[1].any()
