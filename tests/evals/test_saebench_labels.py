"""Sparse probing, absorption and KL divergence beside SAEBench's own functions, called on arrays."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from held_out import saes
from labelled import firings
from scipy import sparse
from small_lm import LAYER, VOCAB, save_language_model

from jhsae import evals, lm
from jhsae.data import Identity
from jhsae.evals import AbsorptionRules
from jhsae.evals.absorption import split_size, token_absorption
from jhsae.evals.groups import code_matrix
from jhsae.evals.probing import selected

torch = pytest.importorskip("torch")
pytest.importorskip("sae_lens")
pytest.importorskip("sae_bench")
probing = pytest.importorskip("sae_bench.evals.sparse_probing.probe_training")
k_sparse = pytest.importorskip("sae_bench.evals.absorption.k_sparse_probing")
core = pytest.importorskip("sae_bench.evals.core.main")
calculator = pytest.importorskip("sae_bench.evals.absorption.feature_absorption_calculator")


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_selected_latents_are_those_of_saebench(k):
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(60, 30)) * (rng.random((60, 30)) < 0.3)
    positive = rng.random(60) < 0.4
    dropped = probing.get_top_k_mean_diff_mask(torch.tensor(x).float(), torch.tensor(positive).int(), k)
    # SAEBench's label of the class is 0 or 1; the difference is taken without its sign
    assert set(selected(sparse.csr_matrix(x), positive, k)) == set(torch.where(~dropped)[0].tolist())


class Calculator(calculator.FeatureAbsorptionCalculator):
    """With the words themselves as prompts."""

    def _build_prompts(self, words):
        return [SimpleNamespace(word=w, base=w) for w in words]


def test_absorption_is_that_of_saebench():
    rng = np.random.default_rng(0)
    rows, features, embed = 300, 40, 12
    dictionary = rng.normal(size=(features, embed))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    probe = dictionary[0] + 0.3 * rng.normal(size=embed)
    codes = rng.exponential(size=(rows, features)) * (rng.random((rows, features)) < 0.08)
    codes[:, 0] *= 3
    x = codes @ dictionary + 0.1 * rng.normal(size=(rows, embed))
    main = [0, 7]
    cache = {"blocks.0.hook_resid_post": torch.tensor(x)[:, None]}
    model = SimpleNamespace(run_with_cache=lambda *_, **__: (None, cache), to_tokens=lambda _: [[0]])
    sae = SimpleNamespace(device="cpu", W_dec=torch.tensor(dictionary), encode=lambda _: torch.tensor(codes))
    theirs = Calculator(model, [], batch_size=rows, word_token_pos=0).calculate_absorption(
        sae, [str(i) for i in range(rows)], torch.tensor(probe), main, 0, show_progress=False
    )
    unit = probe / np.linalg.norm(probe)
    full, fraction = token_absorption(code_matrix(firings(codes)).tocsr(), dictionary, x, unit, main, AbsorptionRules())
    assert full.tolist() == [r.is_full_absorption for r in theirs.word_results]
    np.testing.assert_allclose(fraction, [r.absorption_fraction for r in theirs.word_results], atol=1e-5)
    assert 10 < full.sum() < rows - 10 and len(np.unique(fraction)) > 10


def test_splits_are_those_of_saebench():
    rng = np.random.default_rng(0)
    curves = np.cumsum(rng.exponential(0.04, size=(len(k_sparse.LETTERS), 10)) * (rng.random((26, 10)) < 0.8), axis=1)
    frame = k_sparse.pd.DataFrame(
        [
            {"letter": letter}
            | {f"f1_sparse_sae_{k + 1}": f1 for k, f1 in enumerate(curve)}
            | {f"sparse_sae_k_{k + 1}_feats": np.arange(k + 1) for k in range(10)}
            for letter, curve in zip(k_sparse.LETTERS, curves, strict=True)
        ]
    )
    k_sparse.add_feature_splits_to_metrics_df(frame, 10)
    ours = [split_size(curve.tolist(), 0.03) for curve in curves]
    assert ours == [len(f) for f in frame["split_feats"]] and len(set(ours)) > 2


@pytest.mark.slow
def test_kl_divergence_and_its_score_are_those_of_saebench(tmp_path):
    """SAEBench averages over every position, the last one included, where ours does over the predicted ones."""
    save_language_model(tmp_path)
    model, sae = lm.load(tmp_path).model, saes()["topk"]
    tokens = np.random.default_rng(0).integers(4, VOCAB, (3, 6))
    residual = model.residual(jnp.asarray(tokens, jnp.int32), LAYER)
    logits = jax.jit(lambda x: model.logits_from(x, LAYER))

    class Hooked:
        """What SAEBench asks of a TransformerLens model, by ours."""

        def __call__(self, *_, **__):
            return torch.tensor(np.asarray(logits(residual))), torch.zeros(3, 5)

        def run_with_hooks(self, *_, fwd_hooks, **__):
            x = fwd_hooks[0][1](torch.tensor(np.asarray(residual)), hook=None)
            return torch.tensor(np.asarray(logits(jnp.asarray(x.numpy())))), torch.zeros(3, 5)

    spliced = evals.Spliced(sae, Identity())
    theirs_sae = SimpleNamespace(
        cfg=SimpleNamespace(hook_name="resid_post", hook_head_index=None),
        device="cpu",
        encode=lambda x: x,
        decode=lambda x: torch.tensor(np.asarray(spliced(jnp.asarray(x.numpy().reshape(18, -1))))).reshape(x.shape),
    )
    get = getattr(core.get_recons_loss, "__wrapped__", core.get_recons_loss)
    found = get(theirs_sae, Hooked(), torch.tensor(tokens), None, compute_kl=True, compute_ce_loss=False)
    kl, zero = (found[f"kl_div_with_{name}"][:, :-1].mean().item() for name in ("sae", "ablation"))
    ours = evals.recovered(evals.splice(model, LAYER, {"sae": spliced}, tokens, []), "sae")
    assert ours["kl"] == pytest.approx(kl, rel=1e-4) and kl > 0.01
    assert ours["kl_recovered"] == pytest.approx((zero - kl) / zero, rel=1e-3)
