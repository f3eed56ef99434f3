import jax
import numpy as np
import pytest
import runs

from jhsae.data import Identity
from jhsae.features.contexts import sparse_codes
from jhsae.sae import FlatSAE
from jhsae.sparsify import ReLU, TopK


@pytest.mark.parametrize("sparsifier", [TopK(3), ReLU()], ids=["sparse", "dense"])
def test_codes_of_a_store_are_those_of_its_rows_whatever_their_form(tmp_path, sparsifier):
    store = runs.store(tmp_path / "store", rows=96)
    sae = FlatSAE(runs.EMBED, 40, sparsifier, key=jax.random.key(0))
    values, indices = sparse_codes(sae, Identity(), store, 90, batch=32)
    dense = np.asarray(sae.encode(store.read(0, 90)).dense())
    got = np.zeros_like(dense)
    np.add.at(got, (np.arange(90)[:, None], indices), values)
    np.testing.assert_allclose(got, dense, rtol=1e-5, atol=1e-6)
    most = int((dense != 0).sum(axis=1).max())
    assert values.shape[1] == most < 40, "no more slots than the fullest row needs"
