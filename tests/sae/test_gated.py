import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae.codes import Codes
from jhsae.leaf import describe
from jhsae.sae import GatedSAE
from jhsae.usage import Context, FeatureStats

BATCH, EMBED, FEATURES = 7, 6, 10
NAMES = ("W_enc", "W_dec", "b_gate", "r_mag", "b_mag", "b_dec")
forward = eqx.filter_jit(lambda sae, x: sae.forward(x, Context()))


def build(**how):
    return filled(lambda: GatedSAE(EMBED, FEATURES, key=jax.random.key(0), **how), scale=0.7)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(2).normal(size=(BATCH, EMBED)), jnp.float32)


def oracle(sae, x):
    """(gate, codes, x_hat) of every token, one feature at a time, in float64."""
    p = {name: np.asarray(getattr(sae, name), np.float64) for name in NAMES}
    gates, codes = np.zeros((len(x), FEATURES)), np.zeros((len(x), FEATURES))
    for t, token in enumerate(np.asarray(x, np.float64)):
        centred = token - p["b_dec"] if sae.apply_b_dec_to_input else token
        for i in range(FEATURES):
            gates[t, i] = p["W_enc"][i] @ centred + p["b_gate"][i]
            magnitude = (np.exp(p["r_mag"][i]) * p["W_enc"][i]) @ centred + p["b_mag"][i]
            codes[t, i] = max(magnitude, 0.0) if gates[t, i] > 0 else 0.0
    return gates, codes, codes @ p["W_dec"] + p["b_dec"]


@pytest.mark.parametrize("subtract", [True, False])
def test_the_forward_pass_equals_the_token_loop(subtract, x):
    sae = build(apply_b_dec_to_input=subtract)
    out = forward(sae, x)
    gates, codes, x_hat = oracle(sae, x)
    np.testing.assert_allclose(out.pre, gates, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.codes.dense(), codes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.x_hat, x_hat, rtol=1e-4, atol=1e-5)
    open_but_small, shut_but_large = (gates > 0) & (codes == 0), (gates <= 0) & (codes == 0)
    assert open_but_small.any() and shut_but_large.any() and (codes > 0).any()


def test_every_reading_of_the_codes_gives_the_reconstruction(x):
    sae = build()
    out = forward(sae, x)
    dense = out.codes.dense()
    rows = np.argsort(-dense, axis=1)[:, : int((dense != 0).sum(1).max())]
    sparse = Codes(jnp.take_along_axis(dense, rows, axis=1), jnp.asarray(rows, jnp.int32), FEATURES)
    for codes in (out.codes, out.codes.flat(), Codes(dense, None, FEATURES), sparse):
        np.testing.assert_allclose(sae.decode(codes), out.x_hat, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dense @ sae.dictionary() + sae.b_dec, out.x_hat, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(sae.top_level_rows(), sae.W_dec)


@eqx.filter_jit
def error_gradient(sae, x):
    return eqx.filter_grad(lambda sae: jnp.sum((x - sae.forward(x, Context()).x_hat) ** 2))(sae)


def test_the_gate_learns_nothing_from_the_reconstruction(x):
    gradient = error_gradient(build(), x)
    np.testing.assert_array_equal(gradient.b_gate, 0.0)
    for name in ("W_enc", "W_dec", "r_mag", "b_mag", "b_dec"):
        assert np.abs(getattr(gradient, name)).max() > 1e-3, name


def test_the_gradients_equal_those_of_the_formula_with_the_gate_held(x):
    sae = build()
    open_ = np.asarray(forward(sae, x).pre > 0, np.float32)

    def held(p):
        magnitude = jax.nn.relu((x - p["b_dec"]) @ (p["W_enc"].T * jnp.exp(p["r_mag"])) + p["b_mag"])
        return jnp.sum((x - (open_ * magnitude) @ p["W_dec"] - p["b_dec"]) ** 2)

    expected = jax.jit(jax.grad(held))({name: getattr(sae, name) for name in NAMES if name != "b_gate"})
    got = error_gradient(sae, x)
    for name, want in expected.items():
        np.testing.assert_allclose(getattr(got, name), want, rtol=1e-4, atol=1e-4, err_msg=name)


def test_it_starts_as_a_tied_relu_sae(x):
    sae = GatedSAE(EMBED, FEATURES, key=jax.random.key(0))
    np.testing.assert_array_equal(sae.W_enc, sae.W_dec)
    np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(forward(sae, x).codes.dense(), np.maximum(x @ sae.W_enc.T, 0.0), rtol=1e-4, atol=1e-6)
    assert (sae.features, sae.embed) == (FEATURES, EMBED)
    units = {leaf.path for leaf in jax.tree.leaves(describe(sae)) if leaf.unit is not None}
    assert units == {"W_dec"} and len(jax.tree.leaves(sae)) == len(NAMES)


def test_its_activation_is_its_own_so_it_has_nothing_to_settle(x):
    sae = build()
    usage = FeatureStats.init(FEATURES, len(sae.sparsifiers))
    assert sae.sparsifiers == () == usage.thresholds and sae.for_inference(usage) is sae is sae.for_inference(None)
    after = sae.observe(usage, forward(sae, x).codes, 10)
    np.testing.assert_array_equal(after.since_fired == 0, (forward(sae, x).codes.dense() > 0).any(0))


def test_its_top_is_every_parameter_of_a_feature():
    encoder, decoder, biases = build().top_level
    assert {a.shape for a in (encoder, decoder)} == {(FEATURES, EMBED)} and len(biases) == 3


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="features is 0"):
        GatedSAE(EMBED, 0, key=jax.random.key(0))
