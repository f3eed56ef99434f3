import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import hsae as reference
from reference.filled import filled

from jhsae.codes import Codes
from jhsae.sae import FlatSAE, Forward
from jhsae.schedule import Constant
from jhsae.sparsify import GumbelTopK, OffsetTopK, ReLU, TopK
from jhsae.usage import Context

BATCH, EMBED, FEATURES, K = 5, 6, 10, 3
PARTS = {
    "relu": (ReLU(), reference.relu(FEATURES)),
    "topk": (TopK(K), reference.relu(K)),
    "offset": (OffsetTopK(K, 0.5, "scan"), reference.offset(K, 0.5)),
    "gumbel": (GumbelTopK(K, Constant(1.0)), reference.relu(K)),
}


def build(name, **how):
    return filled(lambda: FlatSAE(EMBED, FEATURES, PARTS[name][0], key=jax.random.key(0), **how))


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(2).normal(size=(BATCH, EMBED)), jnp.float32)


@pytest.mark.parametrize("name", PARTS)
def test_the_forward_pass_equals_the_token_loop(name, x):
    sae = build(name)
    forward = sae.forward(x, Context())
    w_enc, w_dec, b_enc, b_dec = (np.asarray(a, np.float64) for a in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    for token, x_hat, codes in zip(np.asarray(x, np.float64), forward.x_hat, forward.codes.dense(), strict=True):
        chosen, values = PARTS[name][1](w_enc @ (token - b_dec) + b_enc)
        want = np.zeros(FEATURES)
        want[chosen] = values
        np.testing.assert_allclose(codes, want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(x_hat, want @ w_dec + b_dec, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_every_reading_of_the_codes_gives_the_reconstruction(name, x):
    sae = build(name)
    forward = sae.forward(x, Context())
    dense = forward.codes.dense()
    for codes in (forward.codes, forward.codes.flat(), Codes(dense, None, FEATURES)):
        np.testing.assert_allclose(sae.decode(codes), forward.x_hat, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dense @ sae.dictionary() + sae.b_dec, forward.x_hat, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sae(x), forward.x_hat)
    np.testing.assert_array_equal(sae.encode(x).dense(), dense)


@pytest.mark.parametrize("how", [{"chunk": 2}, {"kernel": "dense"}], ids=str)
def test_chunks_and_kernels_change_nothing(how, x):
    np.testing.assert_allclose(build("topk", **how)(x), build("topk")(x), rtol=1e-5, atol=1e-6)


def test_it_starts_tied_with_unit_rows_and_zero_biases():
    sae = FlatSAE(EMBED, FEATURES, TopK(K), key=jax.random.key(0))
    np.testing.assert_array_equal(sae.W_enc, sae.W_dec)
    np.testing.assert_allclose(jnp.linalg.norm(sae.W_dec, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(sae.b_enc, 0.0)
    np.testing.assert_array_equal(sae.b_dec, 0.0)
    assert (sae.features, sae.embed) == (FEATURES, EMBED)
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(sae))


def test_a_flat_forward_has_no_parents(x):
    forward = build("topk").forward(x, Context())
    assert type(forward) is Forward and build("topk").tree is None
    assert forward.pre.shape == (BATCH, FEATURES)


def test_the_order_of_the_features_does_not_matter(x):
    sae, order = build("topk"), np.random.default_rng(3).permutation(FEATURES)

    def where(s):
        return (s.W_enc, s.W_dec, s.b_enc)

    permuted = eqx.tree_at(where, sae, tuple(a[order] for a in where(sae)))
    np.testing.assert_allclose(permuted(x), sae(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(permuted.encode(x).dense(), sae.encode(x).dense()[:, order], rtol=1e-5, atol=1e-6)


def test_a_k_that_is_too_large_is_an_error_before_any_compute():
    with pytest.raises(ValueError, match=rf"k is {FEATURES + 1}"):
        FlatSAE(EMBED, FEATURES, TopK(FEATURES + 1), key=jax.random.key(0))
