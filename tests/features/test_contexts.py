"""The most active contexts of a feature, against the dense codes, for any batch size."""

import jax
import numpy as np
import pytest
from held_out import dense_codes, harvested, saes

from jhsae.data import UnitNorm
from jhsae.features import firings as firings_module
from jhsae.features.contexts import frequent_children, spread_features, top_contexts
from jhsae.features.firings import firings, first_rows
from jhsae.sae import HierarchicalSAE
from jhsae.sparsify import TopK


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return harvested(tmp_path_factory.mktemp("held_out"))[0]


@pytest.mark.few(2)
@pytest.mark.parametrize("rows_at_once", [4096, 31])
@pytest.mark.parametrize("name", ["tree", "jump"])
def test_contexts_are_the_largest_codes_with_the_tokens_around(store, name, rows_at_once, monkeypatch):
    monkeypatch.setattr(firings_module, "READ_ROWS", rows_at_once)
    sae, tokens = saes()[name], store.tokens().astype(int)
    dense, _ = dense_codes(sae, UnitNorm(), store)
    chosen = [3, 1, sae.features - 2]
    fired = firings(sae, UnitNorm(), first_rows(store))
    found = top_contexts(fired, chosen, store, lambda ids: [str(i) for i in ids], count=5, window=4)
    assert list(found) == chosen and any(len(found[i]) == 5 for i in chosen)
    for feature in chosen:
        codes = dense[..., feature]
        best = -np.sort(-codes[codes > 0])[:5]
        np.testing.assert_allclose([c["value"] for c in found[feature]], best, rtol=1e-5)
        for context in found[feature]:
            possible = [
                ([str(i) for i in tokens[s, max(0, p - 4) : p + 3]], min(p, 4))  # several tokens may have one code
                for s, p in np.argwhere(np.isclose(codes, context["value"], rtol=1e-5)).tolist()
            ]
            assert (context["tokens"], context["at"]) in possible


def test_shown_features_are_spread_over_frequency_and_atoms_are_the_most_frequent():
    assert spread_features(np.array([0.0, 0.3, 0.1, 0.2]), 2) == [1, 2]
    assert spread_features(np.array([0.0, 0.3, 0.1, 0.2]), 9) == [1, 3, 2] and spread_features(np.zeros(3), 2) == []
    sizes = HierarchicalSAE(4, 2, 1, 3, TopK(1), TopK(1), key=jax.random.key(0)).tree
    frequency = np.array([0.5, 0.5, 0.1, 0.0, 0.2, 0.0, 0.3, 0.0])
    assert frequent_children(sizes, 0, frequency, 5) == [4, 2] and frequent_children(sizes, 1, frequency, 5) == [6]
