"""Firings, statistics, density and token profiles against dense NumPy, for codes of every form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from data.small_stores import tokenizer
from reference.search import search_by_token
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jhsae import sparsify
from jhsae.data import Identity
from jhsae.errors import UserError
from jhsae.features import firings as firings_module
from jhsae.features.firings import Firings, firing_table
from jhsae.features.latents import density, latent_statistics, main_tokens, token_profile
from jhsae.features.token_text import token_ids, token_text, word_ids
from jhsae.sae import FlatSAE, HierarchicalSAE, mixture_of_experts_v2

ROWS, VOCAB = 96, 7


def flat(sparsifier):
    """A flat SAE whose biases keep some features silent."""
    sae = FlatSAE(runs.EMBED, 20, sparsifier, key=jax.random.key(0))
    return eqx.tree_at(lambda s: s.b_enc, sae, jnp.linspace(-4.0, 0.5, 20))


SAES = {
    "sparse": lambda: flat(sparsify.TopK(3)),
    "dense": lambda: flat(sparsify.ReLU()),
    "thresholds": lambda: flat(sparsify.JumpReLU(0.5)),
    "negative": lambda: flat(sparsify.LeakyOffsetTopK(4, 1.5, 0.1)),
    "dense tree": lambda: HierarchicalSAE(
        runs.EMBED, 12, 2, 3, sparsify.JumpReLU(1.0), sparsify.ReLU(), key=jax.random.key(0)
    ),
    "tree": lambda: mixture_of_experts_v2(runs.EMBED, experts=12, sub=2, atoms=3, k=2, key=jax.random.key(0)),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return runs.store(tmp_path_factory.mktemp("latents") / "store", rows=ROWS)


@pytest.fixture(params=SAES)
def case(request, store):
    """An SAE, its firings, and its codes as one dense array."""
    sae = SAES[request.param]()
    dense = np.asarray(sae.encode(store.read(0, ROWS)).dense())
    return sae, firing_table(sae, Identity(), store, ROWS), dense


@pytest.fixture(scope="module")
def tokens():
    """The token of every row; the last one never occurs."""
    return np.random.default_rng(3).integers(VOCAB - 1, size=ROWS).astype(np.int32)


def test_firings_are_the_codes_that_are_not_zero(case):
    _, found, dense = case
    feature, row = np.nonzero(dense.T)
    assert found.measured == ROWS and found.size == dense.shape[1]
    assert np.array_equal(found.features(), feature) and np.array_equal(found.rows, row)
    assert np.allclose(found.values, dense[row, feature], rtol=1e-5, atol=1e-6)
    assert np.array_equal(found.count(), (dense != 0).sum(axis=0))
    for i in range(found.size):
        rows, values = found.of(i)
        assert np.array_equal(rows, np.flatnonzero(dense[:, i]))
        assert np.allclose(values, dense[rows, i], rtol=1e-5, atol=1e-6)


def test_a_firing_costs_8_bytes_and_batches_do_not_matter(case, store, monkeypatch):
    sae, whole, _ = case
    assert whole.rows.nbytes + whole.values.nbytes == 8 * len(whole.rows)
    monkeypatch.setattr(firings_module, "READ_ROWS", 37)
    cut = firing_table(sae, Identity(), store, ROWS)
    assert np.array_equal(cut.rows, whole.rows) and np.array_equal(cut.starts, whole.starts)
    assert np.allclose(cut.values, whole.values, rtol=1e-5, atol=1e-6)
    encoded = []
    monkeypatch.setattr(firings_module, "MOST_CODES", sae.features * 10)
    encode = firings_module.encode
    monkeypatch.setattr(firings_module, "encode", lambda s, n, x: encoded.append(len(x)) or encode(s, n, x))
    firing_table(sae, Identity(), store, ROWS)
    assert max(encoded) == 10 and sum(encoded) == ROWS


def test_statistics_equal_the_oracle(case):
    _, found, dense = case
    statistics = latent_statistics(found, bins=5)
    for i, column in enumerate(dense.T):
        own = column[column != 0].astype(np.float64)
        assert statistics.fired[i] == len(own)
        assert statistics.frequency[i] == pytest.approx(len(own) / ROWS)
        low, high = min(own.min(initial=0), 0), max(own.max(initial=0), 0)
        assert (statistics.low[i], statistics.high[i]) == pytest.approx((low, high), rel=1e-5, abs=1e-6)
        assert statistics.histogram[i].sum() == len(own)
        if len(own):
            assert statistics.mean[i] == pytest.approx(own.mean(), rel=1e-4)
            values = found.of(i)[1].astype(np.float64)
            edges = (statistics.low[i], statistics.high[i])
            assert np.array_equal(statistics.histogram[i], np.histogram(values, bins=5, range=edges)[0])
        else:
            assert statistics.mean[i] == 0


def test_the_cases_have_what_they_are_named_for(store):
    dense = {name: np.asarray(make().encode(store.read(0, ROWS)).dense()) for name, make in SAES.items()}
    assert (dense["negative"] < 0).any() and not (dense["dense"] < 0).any()
    assert all((~(codes != 0).any(axis=0)).any() for name, codes in dense.items() if "tree" not in name)


def test_density_counts_every_live_feature_once_in_the_bin_of_its_frequency():
    found = density(np.array([0.0, 0.0, 1e-12, 1e-8, 0.0999, 0.1, 0.5, 1.0]))
    edges, counts = np.array(found["log10_edges"]), np.array(found["counts"])
    assert sum(counts) == 6 and len(edges) == len(counts) + 1 and np.allclose(np.diff(edges), 0.25)
    where = {float(edges[i]): int(counts[i]) for i in np.flatnonzero(counts)}
    assert where == {-8.0: 2, -1.25: 1, -1.0: 1, -0.5: 1, -0.25: 1}
    assert density(np.zeros(5))["counts"] == [0] * 32


def hits_of(dense, tokens, wanted):
    """(latent, mean, share, fired) of every latent that is active on the tokens, from the dense codes."""
    positive = np.maximum(dense, 0).astype(np.float64)
    on = np.isin(tokens, wanted)
    total, mass = positive[on].sum(axis=0), positive.sum(axis=0)
    live = np.flatnonzero(total)
    return {int(i): (total[i] / on.sum(), total[i] / mass[i], (dense[on, i] != 0).sum()) for i in live}


@pytest.mark.parametrize("wanted", [[2], [4, 1], [VOCAB - 1], []])
def test_search_equals_the_oracle(case, tokens, wanted):
    _, found, dense = case
    profile = token_profile(found, tokens, VOCAB)
    expected = hits_of(dense, tokens, wanted)
    for by, place in (("mean", 0), ("share", 1)):
        hits = search_by_token(profile, wanted, by, count=1000)
        assert {hit.latent for hit in hits} == set(expected)
        for hit in hits:
            assert (hit.mean, hit.share, hit.fired) == pytest.approx(expected[hit.latent], rel=1e-4, abs=1e-6)
        ranked = [hit[1 + place] for hit in hits]
        assert ranked == sorted(ranked, reverse=True)
        assert search_by_token(profile, wanted, by, count=3) == hits[:3]


def test_the_profile_accounts_for_all_activation(case, tokens):
    _, found, dense = case
    profile = token_profile(found, tokens, VOCAB)
    assert profile.fired.sum() == len(found.rows) and profile.occurrences.sum() == ROWS
    shares = np.bincount(profile.latents, weights=profile.share(), minlength=found.size)
    assert np.allclose(shares, (dense > 0).any(axis=0))


def test_main_tokens_hold_most_of_a_latents_activation(case, tokens):
    _, found, dense = case
    profile = token_profile(found, tokens, VOCAB)
    chosen = np.asarray([5, 2, 19])
    for latent, pairs in zip(chosen, main_tokens(profile, chosen, 2), strict=True):
        mass = np.bincount(tokens, weights=np.maximum(dense[:, latent], 0), minlength=VOCAB)
        best = [t for t in np.argsort(-mass, kind="stable")[:2] if mass[t] > 0]
        assert np.allclose(profile.total[pairs], mass[best], rtol=1e-4)
        assert (profile.latents[pairs] == latent).all()


def test_text_is_found_by_its_tokens_or_by_its_pieces():
    words = tokenizer()
    assert token_ids(" W4 ", words) == [4] and token_ids("w4 w9", words) == [4, 9]
    with pytest.raises(UserError, match="no token for 'zebra'"):
        token_ids("zebra", words)
    with pytest.raises(UserError, match="empty"):
        token_ids("  ", words)


def test_tokens_of_one_form_are_one_word():
    backend = Tokenizer(models.WordLevel({"▁Dog": 0, "dog": 1, "▁cat": 2}, unk_token="dog"))
    backend.decoder = decoders.Metaspace()
    words, of_token = word_ids(token_text(PreTrainedTokenizerFast(tokenizer_object=backend), range(4)))
    assert words == ["dog", "cat", "<token 3>"] and of_token.tolist() == [0, 0, 1, 2]


def test_nothing_fires():
    silent = Firings(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(4, np.int64), 10)
    assert latent_statistics(silent).histogram.sum() == 0
    assert search_by_token(token_profile(silent, np.zeros(10, np.int32), 2), [0]) == []
