import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae.errors import UserError
from jhsae.losses import Objective, Prefixes
from jhsae.sae import DecoderNormUnit, FlatSAE, GatedSAE, PlainUnit
from jhsae.sparsify import BatchTopK, TopK
from jhsae.usage import Context

BATCH, EMBED, FEATURES, WIDTHS = 7, 6, 16, (2, 5, 11)
X = np.random.default_rng(1).normal(0.3, 1.0, size=(BATCH, EMBED)).astype(np.float32)


encode = eqx.filter_jit(lambda sae, x: sae.forward(jnp.asarray(x), Context()))
gradient = eqx.filter_jit(eqx.filter_grad(lambda sae, term, x: term(sae, sae.forward(x, Context()))))


def flat(part, unit=PlainUnit()):  # noqa: B008
    return filled(lambda: FlatSAE(EMBED, FEATURES, part, code_unit=unit, key=jax.random.key(0)), scale=0.6)


CASES = [(BatchTopK(4.0), PlainUnit()), (BatchTopK(4.0), DecoderNormUnit()), (TopK(4), DecoderNormUnit())]


@pytest.mark.parametrize("part, unit", CASES, ids=str)
def test_equals_a_loop_over_the_prefixes(part, unit):
    """Every prefix decodes the codes of the whole SAE from its first features and the bias."""
    sae = flat(part, unit)
    forward = encode(sae, X)
    errors = [((X - x_hat) ** 2).sum(1).mean() for x_hat in prefixes(sae, forward)]
    np.testing.assert_allclose(Prefixes(WIDTHS)(sae, forward), sum(errors), rtol=1e-5)
    np.testing.assert_allclose(Prefixes(WIDTHS, "mean")(sae, forward), np.mean(errors), rtol=1e-5)


def prefixes(sae, forward):
    codes, rows = (np.asarray(a, np.float64) for a in (forward.codes.dense(), sae.dictionary()))
    return [codes[:, :w] @ rows[:w] + np.asarray(sae.b_dec) for w in WIDTHS]


def test_the_gradients_are_those_of_the_sum_over_prefixes():
    sae = flat(BatchTopK(4.0))
    forward, grads = encode(sae, X), gradient(sae, Prefixes(WIDTHS), X)
    codes, rows = np.asarray(forward.codes.dense()), np.asarray(sae.W_dec)
    to_rows, to_codes = np.zeros(rows.shape), np.zeros(codes.shape)
    for w, x_hat in zip(WIDTHS, prefixes(sae, forward), strict=True):
        error = 2 / BATCH * (x_hat - X)
        to_rows[:w] += codes[:, :w].T @ error
        to_codes[:, :w] += error @ rows[:w].T
    to_pre = to_codes * (codes > 0)
    np.testing.assert_allclose(grads.W_dec, to_rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads.b_enc, to_pre.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads.W_enc, to_pre.T @ (X - np.asarray(sae.b_dec)), rtol=1e-4, atol=1e-5)
    assert not np.any(grads.W_dec[WIDTHS[-1] :]) and np.any(grads.W_dec[: WIDTHS[0]])


def test_a_list_of_widths_will_do():
    assert Prefixes([2, 5]) == Prefixes((2, 5))


@pytest.mark.parametrize("widths", [(), (3, 3), (5, 2), (0, 4)])
def test_widths_that_do_not_grow_are_refused(widths):
    with pytest.raises(ValueError, match=r"widths is .*expected (growing|at least one)|widths.0 is 0, expected"):
        Prefixes(widths)


def test_an_sae_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=f"last of widths is {FEATURES}, but the SAE has {FEATURES} features"):
        gradient(flat(TopK(2)), Prefixes((3, FEATURES)), X)
    with pytest.raises(UserError, match="needs a FlatSAE, got a GatedSAE; drop the term"):
        Objective({"inner": Prefixes((3,))}).check(filled(lambda: GatedSAE(EMBED, FEATURES, key=jax.random.key(0))))
