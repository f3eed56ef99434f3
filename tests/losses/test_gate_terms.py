import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import saelens
from reference.filled import filled

from jhsae.errors import UserError
from jhsae.losses import GateL1, GateReconstruction, GateReconstructionFreeDecoder, Objective
from jhsae.sae import FlatSAE, GatedSAE
from jhsae.sparsify import ReLU
from jhsae.usage import Context

BATCH, EMBED, FEATURES = 9, 8, 20
X = np.random.default_rng(1).normal(0.3, 1.0, size=(BATCH, EMBED)).astype(np.float32)
TERMS = [GateL1(), GateReconstruction(), GateReconstructionFreeDecoder()]


@pytest.fixture(scope="session")
def lens():
    return saelens.load()


@eqx.filter_jit
def run(term, sae, x):
    return eqx.filter_value_and_grad(lambda sae: term(sae, sae.forward(x, Context())))(sae)


def gated(**how):
    return filled(lambda: GatedSAE(EMBED, FEATURES, key=jax.random.key(0), **how), scale=0.5)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(
    "term, key", [(GateL1(), "l1_loss"), (GateReconstructionFreeDecoder(), "auxiliary_reconstruction_loss")], ids=str
)
def test_equals_saelens_in_value_and_gradients(lens, term, key, subtract):
    fixed = {"apply_b_dec_to_input": subtract, "l1_coefficient": 1.0}
    theirs = saelens.training_sae(lens, np.random.default_rng(3), "gated", EMBED, FEATURES, **fixed)
    loss = saelens.passed(lens, theirs, X, np.zeros(FEATURES, bool)).losses[key]
    value, grads = run(term, saelens.ours(theirs), X)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    for name, want in saelens.gradients(theirs, loss).items():
        got, want = getattr(grads, name), saelens.ours_layout(name, want)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * (1 + np.abs(want).max()), err_msg=name)


def test_the_values_equal_the_formulas():
    sae = gated()
    gate = (X - np.asarray(sae.b_dec, np.float64)) @ np.asarray(sae.W_enc, np.float64).T + np.asarray(sae.b_gate)
    open_, norms = np.maximum(gate, 0.0), np.linalg.norm(sae.W_dec, axis=1)
    np.testing.assert_allclose(run(GateL1(), sae, X)[0], (open_ * norms).sum(1).mean(), rtol=1e-5)
    want = ((X - open_ @ np.asarray(sae.W_dec, np.float64) - np.asarray(sae.b_dec)) ** 2).sum(1).mean()
    for term in TERMS[1:]:
        np.testing.assert_allclose(run(term, sae, X)[0], want, rtol=1e-5)


def test_the_papers_form_holds_the_decoder_and_is_otherwise_the_free_one():
    """The decoder bias still moves through the input of the gate."""
    outside = gated(apply_b_dec_to_input=False)
    held, free = (run(term, outside, X)[1] for term in TERMS[1:])
    for leaf in (held.W_dec, held.b_dec):
        np.testing.assert_array_equal(leaf, 0.0)
    for leaf in (free.W_dec, free.b_dec):
        assert np.any(leaf)
    for name in ("W_enc", "b_gate"):
        np.testing.assert_allclose(getattr(held, name), getattr(free, name), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run(GateReconstruction(), gated(), X)[1].W_dec, 0.0)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: type(term).__name__)
def test_the_magnitude_learns_nothing_from_them(term):
    _, grads = run(term, gated(), X)
    for leaf in (grads.r_mag, grads.b_mag):
        np.testing.assert_array_equal(leaf, 0.0)
    assert np.any(grads.b_gate)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: type(term).__name__)
def test_an_sae_without_a_gate_is_refused(term):
    with pytest.raises(UserError, match="needs a GatedSAE, got a FlatSAE; drop the term"):
        Objective({"gate": term}).check(filled(lambda: FlatSAE(EMBED, FEATURES, ReLU(), key=jax.random.key(0))))
    assert jnp.isfinite(run(term, gated(), X)[0])
