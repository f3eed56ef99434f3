"""Fidelity against a numpy oracle; the three definitions of explained variance differ as they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from jhsae import evals
from jhsae.data import Identity, UnitNorm
from jhsae.sae import mixture_of_experts_v2
from jhsae.usage import Context


@pytest.fixture(scope="module")
def sae():
    return mixture_of_experts_v2(runs.EMBED, experts=12, sub=2, atoms=3, k=2, key=jax.random.key(0))


def oracle(x, x_hat):
    """Every metric in a line of numpy, in float64."""
    x, x_hat = np.float64(x), np.float64(x_hat)
    error, mean = np.sum((x - x_hat) ** 2, axis=1), x.mean(axis=0)
    centred = np.sum((x - mean) ** 2, axis=1)
    saebench = np.mean(np.sum(x**2, axis=1)) - np.mean(np.mean(x**2, axis=0)) ** 2
    cosine = np.sum(x * x_hat, 1) / np.linalg.norm(x, axis=1) / np.maximum(np.linalg.norm(x_hat, axis=1), 1e-12)
    return {
        "ev_r2": 1 - error.sum() / centred.sum(),
        "ev_saebench": 1 - error.mean() / saebench,
        "ev_legacy": 1 - np.mean(error / centred),
        "mse": error.mean(),
        "cosine": cosine.mean(),
        "shrinkage": np.mean(np.linalg.norm(x_hat, axis=1) / np.linalg.norm(x, axis=1)),
    }


def test_metrics_equal_the_oracle_for_any_batching(sae):
    x = runs.activations(200)
    normalizer = UnitNorm()
    inside, scale = normalizer(jnp.asarray(x))
    forward = sae.forward(inside, Context())
    expected = oracle(x, normalizer.undo(forward.x_hat, scale))
    for cuts in ([200], [64, 64, 72]):
        batches = np.split(x, np.cumsum(cuts)[:-1])
        metrics, frequency = evals.fidelity(sae, normalizer, batches, x.mean(axis=0, dtype=np.float64))
        assert {k: metrics[k] for k in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert metrics["l0"] == pytest.approx(float(forward.codes.l0().mean()))
        assert metrics["l0"] == pytest.approx(metrics["l0_parents"] + metrics["l0_atoms"])
        dense = np.asarray(forward.codes.dense()) != 0
        assert np.allclose(frequency, dense.mean(axis=0))
        assert metrics["dead_experts"] == np.mean(~dense[:, :12].any(axis=0))
        assert metrics["dead_atoms"] == np.mean(~dense[:, 12:].any(axis=0))
        assert metrics["rows"] == 200


def test_parameters_counts_every_trained_number(sae):
    assert evals.parameters(sae) == 12 * (2 * 16 + 2 * 2 * 16 + 2 * 3 * 2)


def test_a_perfect_reconstruction_scores_one_and_the_mean_scores_zero():
    x = runs.activations(64)
    assert oracle(x, x)["ev_r2"] == 1
    assert oracle(x, np.broadcast_to(x.mean(0), x.shape))["ev_r2"] == pytest.approx(0)


def test_sparse_codes_are_those_of_the_forward_pass(sae, tmp_path):
    store = runs.store(tmp_path / "store", rows=64)
    values, indices = evals.sparse_codes(sae, Identity(), store, 64, batch=24)
    flat = sae.encode(jnp.asarray(store.read(0, 64))).flat()
    assert np.allclose(values, flat.values) and np.array_equal(indices, flat.indices)
