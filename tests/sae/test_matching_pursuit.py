"""Matching pursuit: codes of a plain loop over tokens, and values and gradients of SAELens's own."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.errors import UserError
from jhsae.sae import Context, MatchingPursuitSAE

EMBED, FEATURES = 10, 24
CASES = {
    "threshold": (0.6, None, True, True),
    "support": (0.0, None, True, False),
    "iterations": (0.0, 5, False, True),
    "both": (0.8, 4, True, False),
}
X = np.random.default_rng(0).normal(size=(30, EMBED)).astype(np.float32)


def made(threshold, iterations, support, subtracted):
    options = {"residual_threshold": threshold, "max_iterations": iterations}
    options |= {"stop_on_duplicate_support": support, "apply_b_dec_to_input": subtracted}
    sae = MatchingPursuitSAE(EMBED, FEATURES, **options, key=jax.random.key(1))
    return eqx.tree_at(lambda s: s.b_dec, sae, jnp.linspace(-0.2, 0.2, EMBED))


@eqx.filter_jit
def loss(sae, x):
    forward = sae.forward(x, Context())
    return jnp.mean(jnp.sum((forward.x_hat - x) ** 2, axis=1)), forward


@pytest.mark.parametrize("case", CASES)
def test_codes_are_those_of_a_loop_over_tokens(case):
    sae, (threshold, iterations, support, subtracted) = made(*CASES[case]), CASES[case]
    rows, bias = np.asarray(sae.W_dec, np.float64), np.asarray(sae.b_dec, np.float64)
    expected = np.zeros((len(X), FEATURES))
    for x, code in zip(X - bias if subtracted else X, expected, strict=True):
        left = x.astype(np.float64)
        for _ in range(iterations or EMBED):
            best = np.argmax(rows @ left)
            value = max(rows[best] @ left, 0.0)
            seen, code[best] = code[best] != 0, code[best] + value
            left = left - value * rows[best]
            if (support and (seen or value == 0)) or np.linalg.norm(left) < threshold:
                break
    codes = loss(sae, X)[1].codes
    np.testing.assert_allclose(codes.dense(), expected, atol=1e-5)
    assert 1 < float(codes.l0().mean()) < EMBED


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_saelens(case):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("sae_lens.saes.matching_pursuit_sae")
    sae, (threshold, iterations, support, subtracted) = made(*CASES[case]), CASES[case]
    W, b = (torch.tensor(np.asarray(a), requires_grad=True) for a in (sae.W_dec, sae.b_dec))
    x = torch.from_numpy(X)
    codes = theirs._encode_matching_pursuit(x - b if subtracted else x, W, threshold, iterations, support)
    x_hat = codes @ W + b if subtracted else codes @ W
    total = ((x_hat - x) ** 2).sum(-1).mean()
    total.backward()
    (value, forward), grads = eqx.filter_value_and_grad(loss, has_aux=True)(sae, X)
    np.testing.assert_allclose(forward.codes.dense(), codes.detach().numpy(), atol=1e-5)
    assert float(value) == pytest.approx(total.item(), rel=1e-5)
    np.testing.assert_allclose(grads.W_dec, W.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(grads.b_dec, b.grad.numpy() if subtracted else 0.0, atol=1e-5)


def test_a_row_of_zeros_and_an_input_of_zeros_have_no_codes():
    sae = eqx.tree_at(lambda s: s.W_dec, made(*CASES["threshold"]), jnp.zeros((FEATURES, EMBED)))
    assert float(jnp.abs(loss(sae, X)[1].codes.dense()).max()) == 0
    centred = np.broadcast_to(np.asarray(made(*CASES["threshold"]).b_dec), X.shape)
    assert float(jnp.abs(loss(made(*CASES["threshold"]), centred)[1].codes.dense()).max()) == 0


@pytest.mark.parametrize(
    "options, named", [({"residual_threshold": -1.0}, "residual_threshold"), ({"max_iterations": 0}, "max_iter")]
)
def test_options_out_of_range_are_refused(options, named):
    with pytest.raises(UserError, match=f"{named}.* is (-1.0|0), expected at least"):
        MatchingPursuitSAE(EMBED, FEATURES, **options, key=jax.random.key(0))
