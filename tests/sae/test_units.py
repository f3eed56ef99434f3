import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae.codes import Codes
from jhsae.sae import DecoderNormUnit, FlatSAE, PlainUnit
from jhsae.sparsify import BatchTopK, JumpReLU, ReLU, TopK
from jhsae.usage import Context

BATCH, EMBED, FEATURES = 8, 6, 12
PARTS = {"topk": TopK(3), "batch": BatchTopK(3.0), "relu": ReLU(), "jump": JumpReLU(0.5)}
forward = eqx.filter_jit(lambda sae, x: sae.forward(x, Context()))
decode = eqx.filter_jit(lambda sae, codes: sae.decode(codes))


def build(name="topk", unit=DecoderNormUnit(), **how):  # noqa: B008
    return filled(lambda: FlatSAE(EMBED, FEATURES, PARTS[name], code_unit=unit, key=jax.random.key(0), **how))


def jump(sae):
    """The threshold that `filled` drew, above 0."""
    return eqx.tree_at(lambda s: s.sparsifier.threshold, sae, jnp.abs(sae.sparsifier.threshold))


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(2).normal(size=(BATCH, EMBED)), jnp.float32)


@pytest.fixture(scope="module")
def factors():
    return jnp.asarray(np.exp(np.random.default_rng(3).normal(size=FEATURES)), jnp.float32)


def rescaled(sae, factors):
    """Decoder rows times `factors`, what makes their codes divided by it."""
    return eqx.tree_at(
        lambda s: (s.W_dec, s.W_enc, s.b_enc),
        sae,
        (sae.W_dec * factors[:, None], sae.W_enc / factors[:, None], sae.b_enc / factors),
    )


@pytest.mark.parametrize("name", PARTS)
def test_the_scale_of_a_row_changes_neither_selection_nor_reconstruction(name, x, factors):
    sae = jump(build(name)) if name == "jump" else build(name)
    before, after = forward(sae, x), forward(rescaled(sae, factors), x)
    np.testing.assert_array_equal(before.codes.dense() != 0, after.codes.dense() != 0)
    for got, want in (
        (after.pre, before.pre),
        (after.codes.dense(), before.codes.dense()),
        (after.x_hat, before.x_hat),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert 0 < (before.codes.dense() != 0).sum() < BATCH * FEATURES


@pytest.mark.parametrize("name", ["topk", "batch"])
def test_the_plain_unit_does_depend_on_it(name, x, factors):
    sae = build(name, PlainUnit())
    before, after = forward(sae, x), forward(rescaled(sae, factors), x)
    assert ((before.codes.dense() != 0) != (after.codes.dense() != 0)).any()


@pytest.mark.parametrize("name", ["topk", "relu"])
def test_equals_the_token_loop(name, x):
    sae = build(name)
    w_enc, w_dec, b_enc, b_dec = (np.asarray(a, np.float64) for a in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    norms = np.linalg.norm(w_dec, axis=1)
    out = forward(sae, x)
    for token, x_hat, codes in zip(np.asarray(x, np.float64), out.x_hat, out.codes.dense(), strict=True):
        pre = np.maximum((w_enc @ (token - b_dec) + b_enc) * norms, 0.0)
        want = np.where(pre >= (np.sort(pre)[-3] if name == "topk" else 0.0), pre, 0.0)
        np.testing.assert_allclose(codes, want, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(x_hat, (want / norms) @ w_dec + b_dec, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", [PlainUnit(), DecoderNormUnit()], ids=lambda unit: type(unit).__name__)
def test_sparse_and_dense_codes_decode_alike(unit, x):
    sae = build("topk", unit)
    codes = forward(sae, x).codes
    assert codes.indices is not None
    dense = Codes(codes.dense(), None, FEATURES)
    np.testing.assert_allclose(decode(sae, codes), decode(sae, dense), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decode(sae, codes), forward(sae, x).x_hat, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decode(sae, codes) - sae.b_dec, dense.values @ sae.dictionary(), rtol=1e-4, atol=1e-4)


@eqx.filter_jit
def decoder_gradient(sae, codes, w):
    return eqx.filter_grad(lambda sae: jnp.sum(w * sae.decode(codes)))(sae).W_dec


def test_sparse_and_dense_codes_have_the_same_gradient_for_the_decoder(x):
    sae = build()
    codes = forward(sae, x).codes
    sparse = decoder_gradient(sae, codes, x)
    np.testing.assert_allclose(sparse, decoder_gradient(sae, Codes(codes.dense(), None, FEATURES), x), atol=1e-4)
    radial = np.sum(np.asarray(sparse) * np.asarray(sae.W_dec), axis=1)
    np.testing.assert_allclose(radial, 0.0, atol=1e-4)  # the length of a row is not what it decodes by


def test_with_rows_of_unit_norm_the_two_are_one(x):
    unit, plain = build(), build(unit=PlainUnit())
    rows = unit.W_dec / jnp.linalg.norm(unit.W_dec, axis=1, keepdims=True)
    one, other = (forward(eqx.tree_at(lambda s: s.W_dec, sae, rows), x) for sae in (unit, plain))
    np.testing.assert_allclose(one.pre, other.pre, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.x_hat, other.x_hat, rtol=1e-4, atol=1e-5)


def test_the_dictionary_is_what_a_code_of_one_adds():
    for unit in (PlainUnit(), DecoderNormUnit()):
        sae = build("relu", unit)
        ones = Codes(jnp.eye(FEATURES), None, FEATURES)
        np.testing.assert_allclose(decode(sae, ones) - sae.b_dec, sae.dictionary(), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(sae.top_level_rows(), sae.dictionary())
    np.testing.assert_allclose(np.linalg.norm(sae.dictionary(), axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("unit", [PlainUnit(), DecoderNormUnit()], ids=lambda unit: type(unit).__name__)
def test_the_decoder_bias_may_stay_out_of_the_input(unit, x):
    inside, outside = build("relu", unit), build("relu", unit, apply_b_dec_to_input=False)
    shifted = forward(inside, x + inside.b_dec)
    np.testing.assert_allclose(forward(outside, x).codes.dense(), shifted.codes.dense(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(forward(outside, x).x_hat, shifted.x_hat, rtol=1e-4, atol=1e-4)
