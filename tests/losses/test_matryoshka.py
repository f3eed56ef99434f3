import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae.errors import UserError
from jhsae.losses import Prefixes
from jhsae.sae import DecoderNormUnit, FlatSAE, GatedSAE, PlainUnit
from jhsae.sparsify import BatchTopK, TopK
from jhsae.usage import Context

BATCH, EMBED, FEATURES, WIDTHS = 7, 6, 16, (2, 5, 11)
X = np.random.default_rng(1).normal(0.3, 1.0, size=(BATCH, EMBED)).astype(np.float32)


@eqx.filter_jit
def run(term, sae, x):
    return eqx.filter_value_and_grad(lambda sae: term(sae, sae.forward(x, Context())))(sae)


def flat(part, unit=PlainUnit()):  # noqa: B008
    return filled(lambda: FlatSAE(EMBED, FEATURES, part, code_unit=unit, key=jax.random.key(0)), scale=0.6)


CASES = [(BatchTopK(4.0), PlainUnit()), (BatchTopK(4.0), DecoderNormUnit()), (TopK(4), DecoderNormUnit())]


@pytest.mark.parametrize("part, unit", CASES, ids=str)
def test_equals_a_loop_over_the_prefixes(part, unit):
    """Every prefix decodes the codes of the whole SAE from its first features and the bias."""
    sae = flat(part, unit)
    codes = np.asarray(sae.forward(jnp.asarray(X), Context()).codes.dense(), np.float64)
    rows, bias = np.asarray(sae.dictionary(), np.float64), np.asarray(sae.b_dec, np.float64)
    errors = [((X - codes[:, :w] @ rows[:w] - bias) ** 2).sum(1).mean() for w in WIDTHS]
    np.testing.assert_allclose(run(Prefixes(WIDTHS), sae, X)[0], sum(errors), rtol=1e-5)
    np.testing.assert_allclose(run(Prefixes(WIDTHS, "mean"), sae, X)[0], np.mean(errors), rtol=1e-5)


def test_the_gradients_are_those_of_the_prefixes_one_by_one():
    sae = flat(BatchTopK(4.0))
    _, grads = run(Prefixes(WIDTHS), sae, X)
    alone = [run(Prefixes((w,)), sae, X)[1] for w in WIDTHS]
    for got, *parts in zip(*map(jax.tree.leaves, (grads, *alone)), strict=True):
        np.testing.assert_allclose(got, sum(parts), rtol=1e-4, atol=1e-5)
    for leaf in (grads.W_dec, grads.W_enc):
        np.testing.assert_array_equal(leaf[WIDTHS[-1] :], 0.0)
        assert np.abs(leaf[: WIDTHS[0]]).max() > 0


def test_a_list_of_widths_will_do():
    assert Prefixes([2, 5]) == Prefixes((2, 5))


@pytest.mark.parametrize("widths", [(), (3, 3), (5, 2), (0, 4)])
def test_widths_that_do_not_grow_are_refused(widths):
    with pytest.raises(ValueError, match=r"widths is .*expected growing"):
        Prefixes(widths)


def test_an_sae_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=f"last of widths is {FEATURES}, but the SAE has {FEATURES} features"):
        run(Prefixes((3, FEATURES)), flat(TopK(2)), X)
    with pytest.raises(UserError, match="needs a FlatSAE, got GatedSAE"):
        run(Prefixes((3,)), GatedSAE(EMBED, FEATURES, key=jax.random.key(0)), X)
