"""Fidelity against a numpy oracle and against SAELens and SAEBench themselves, whose definitions differ."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from jhsae import evals
from jhsae.data import ArrayRows, CenterScale, Identity, LayerNorm, UnitNorm
from jhsae.sae import FlatSAE, mixture_of_experts_v2
from jhsae.sae.macs import EncoderMacs
from jhsae.sparsify import ReLU
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
        "relative_reconstruction_bias": np.mean(np.sum(x_hat**2, 1)) / np.mean(np.sum(x * x_hat, 1)),
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
        assert metrics["l1"] == pytest.approx(np.abs(forward.codes.dense()).sum(axis=1).mean(), rel=1e-5)
        dense = np.asarray(forward.codes.dense()) != 0
        assert np.allclose(frequency, dense.mean(axis=0))
        assert metrics["dead_experts"] == np.mean(~dense[:, :12].any(axis=0))
        assert metrics["dead_atoms"] == np.mean(~dense[:, 12:].any(axis=0))
        assert metrics["rows"] == 200


@pytest.fixture(scope="module")
def flat():
    return FlatSAE(runs.EMBED, 40, ReLU(), key=jax.random.key(2))


def through_theirs(measure, sae, normalizer, x, cuts):
    """SAELens's or SAEBench's own metrics of our codes and reconstructions, of rows cut into batches."""
    torch = pytest.importorskip("torch")
    inside, token = normalizer(jnp.asarray(x))
    forward = sae.forward(inside, Context())
    rows = {"x": x, "codes": forward.codes.dense(), "x_hat": normalizer.undo(forward.x_hat, token)}
    rows = {name: torch.tensor(np.asarray(array)) for name, array in rows.items()}
    batches = iter(torch.split(torch.arange(len(x)), cuts))
    hook = "blocks.0.hook_resid_post"
    place = {"hook_name": hook, "hook_head_index": None, "hook_layer": 0}
    current = {}

    def tokens(_):
        current["ids"] = next(batches)[None]
        return current["ids"]

    theirs = SimpleNamespace(
        cfg=SimpleNamespace(**place, metadata=SimpleNamespace(**place), d_sae=sae.features),
        device="cpu",
        encode=lambda _: rows["codes"][current["ids"]],
        decode=lambda _: rows["x_hat"][current["ids"]],
    )
    model = SimpleNamespace(run_with_cache=lambda ids, **_: (None, {hook: rows["x"][ids]}))
    return measure(theirs, model, SimpleNamespace(get_batch_tokens=tokens), len(cuts))


ALL_OF_IT = {
    "compute_l2_norms": True,
    "compute_sparsity_metrics": True,
    "compute_variance_metrics": True,
    "compute_featurewise_density_statistics": True,
    "eval_batch_size_prompts": 1,
    "model_kwargs": {},
}
NORMALIZERS = [Identity(), CenterScale(), LayerNorm()]


def test_multiplications_of_a_large_encoder_do_not_overflow(monkeypatch):
    """4,096 tokens of 2^20 each are more than an int32 holds."""
    sae = FlatSAE(runs.EMBED, 8, ReLU(), key=jax.random.key(0))
    monkeypatch.setattr(FlatSAE, "encoder_macs", lambda self, active=None: EncoderMacs(2**20, 2**20))
    x = runs.activations(4096)
    metrics, _ = evals.fidelity(sae, Identity(), [x], x.mean(axis=0, dtype=np.float64))
    assert metrics["encoder_macs"] == metrics["encoder_macs_without_tables"] == 2**20


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("which", ["flat", "sae"])
def test_metrics_equal_those_of_saelens(request, which, normalizer):
    lens = pytest.importorskip("sae_lens.evals")
    sae, x = request.getfixturevalue(which), runs.activations(200) + 1.0
    normalizer = normalizer.fit(ArrayRows(x))
    scaler = pytest.importorskip("sae_lens.training.activation_scaler").ActivationScaler()

    def measure(*parts):
        return lens.get_sparsity_and_variance_metrics(*parts[:3], scaler, parts[3], **ALL_OF_IT)

    one, features = through_theirs(measure, sae, normalizer, x, [200])
    cut, _ = through_theirs(measure, sae, normalizer, x, [64, 64, 72])
    metrics, frequency = evals.fidelity(sae, normalizer, [x], x.mean(axis=0, dtype=np.float64))
    ours = {
        "explained_variance": "ev_r2",
        "explained_variance_legacy": "ev_legacy",
        "mse": "mse",
        "cossim": "cosine",
        "l2_ratio": "shrinkage",
        "relative_reconstruction_bias": "relative_reconstruction_bias",
        "l0": "l0",
        "l1": "l1",
    }
    assert {name: metrics[own] for name, own in ours.items()} == pytest.approx(
        {name: one[name] for name in ours}, rel=1e-4, abs=1e-5
    )
    assert metrics["ev_r2"] == pytest.approx(cut["explained_variance"], rel=1e-4, abs=1e-5), "for any batching"
    np.testing.assert_allclose(frequency, features["feature_density"], atol=1e-6)


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("which", ["flat", "sae"])
def test_metrics_equal_those_of_saebench(request, which, normalizer):
    bench = pytest.importorskip("sae_bench.evals.core.main")
    sae, x = request.getfixturevalue(which), runs.activations(200) + 1.0
    normalizer = normalizer.fit(ArrayRows(x))

    def measure(*parts):
        return bench.get_sparsity_and_variance_metrics(*parts, **ALL_OF_IT)

    theirs, features = through_theirs(measure, sae, normalizer, x, [200])
    metrics, frequency = evals.fidelity(sae, normalizer, [x], x.mean(axis=0, dtype=np.float64))
    ours = {
        "explained_variance": "ev_saebench",
        "explained_variance_legacy": "ev_legacy",
        "cossim": "cosine",
        "l2_ratio": "shrinkage",
        "relative_reconstruction_bias": "relative_reconstruction_bias",
        "l0": "l0",
    }
    assert {name: metrics[own] for name, own in ours.items()} == pytest.approx(
        {name: theirs[name] for name in ours}, rel=1e-4, abs=1e-5
    )
    # it sums "mse" over embed and divides by the tokens, then averages over the tokens as well
    assert metrics["mse"] == pytest.approx(theirs["mse"] * 200, rel=1e-4)
    positive = np.asarray(sae.encode(normalizer(jnp.asarray(x))[0]).dense() > 0).mean(axis=0)
    np.testing.assert_allclose(positive, features["feature_density"], atol=1e-6)
    assert (frequency >= positive - 1e-9).all(), "a code below 0 is active here and in L0, but not in its density"


def test_the_row_of_results_is_json_and_counts_the_rare_and_the_dense(flat):
    x = runs.activations(200)
    metrics, frequency = evals.fidelity(flat, Identity(), [x], x.mean(axis=0, dtype=np.float64))
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["below_1e-5"] == metrics["dead"] == np.mean(frequency == 0)
    assert metrics["above_1e-1"] == np.mean(frequency > 0.1) > 0
    assert sum(metrics["density"]["counts"]) == np.sum(frequency > 0)


def test_a_reconstruction_of_zeros_and_a_row_of_zeros_stay_finite(flat):
    silent = jax.tree.map(jnp.zeros_like, flat)
    x = np.concatenate([runs.activations(20), np.zeros((1, runs.EMBED), np.float32)])
    metrics, _ = evals.fidelity(silent, Identity(), [x], x.mean(axis=0, dtype=np.float64))
    assert all(np.isfinite(value) for value in metrics.values() if not isinstance(value, dict))
    assert metrics["relative_reconstruction_bias"] == metrics["shrinkage"] == metrics["l1"] == 0.0
    assert metrics["dead"] == 1.0 and sum(metrics["density"]["counts"]) == 0


def test_parameters_counts_every_trained_number(sae):
    assert evals.parameters(sae) == 12 * (2 * 16 + 2 * 2 * 16 + 2 * 3 * 2)


def test_a_perfect_reconstruction_scores_one_and_the_mean_scores_zero():
    x = runs.activations(64)
    assert oracle(x, x)["ev_r2"] == 1
    assert oracle(x, np.broadcast_to(x.mean(0), x.shape))["ev_r2"] == pytest.approx(0)
