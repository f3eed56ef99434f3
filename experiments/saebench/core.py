"""SAEBench's core evaluation of an exported H-SAE, unmodified, beside jhsae's own on the same tokens.

    python experiments/saebench/core.py RUN HELDOUT_STORE --append

Exports the run, loads the folder with torch alone and through SAELens, puts the language model into TransformerLens,
and runs `sae_bench.evals.core.main.run_evals` on the sequences of the held-out store. See README.md beside this file.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import sae_lens
import torch
from datasets import Dataset
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gemma_weights
from transformers import Gemma2ForCausalLM

import jhsae.interop.saelens.plugin  # noqa: F401  (registers the architecture)
from jhsae import config, evals, lm
from jhsae.assets.torch.hsae import HSAE
from jhsae.data import AbstractNormalizer, Store, special_ids
from jhsae.interop import torch_hsae
from jhsae.sae import AbstractSAE
from jhsae.training.checkpoint import load_sae

RESULTS = Path(__file__).parent / "results.jsonl"
BOUND = 1e-3  # of the differences that must vanish
Metrics = dict[str, float]


def hooked(folder: Path, model: lm.LanguageModel, context: int) -> HookedTransformer:
    """The Gemma-2 of a Hugging Face folder in TransformerLens, weights unprocessed, float32.

    `from_pretrained_no_processing` knows sizes by the model's name alone, so the config is written out here.
    """
    c = model.model.config
    cfg = HookedTransformerConfig(
        model_name=model.name,
        original_architecture="Gemma2ForCausalLM",
        n_layers=len(c.sliding),
        d_model=c.embed,
        n_ctx=context,
        d_head=c.head_dim,
        n_heads=c.heads,
        n_key_value_heads=c.kv_heads,
        d_mlp=c.hidden,
        d_vocab=c.vocab,
        eps=c.norm_eps,
        act_fn="gelu_pytorch_tanh",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_base=int(c.rope_theta),
        use_attn_scale=True,
        attn_scale=c.query_pre_attn_scalar**0.5,
        use_local_attn=True,
        window_size=c.window,
        attn_types=["local" if sliding else "global" for sliding in c.sliding],
        attn_scores_soft_cap=-1.0 if c.attention_cap is None else c.attention_cap,
        output_logits_soft_cap=-1.0 if c.final_cap is None else c.final_cap,
        gated_mlp=True,
        final_rms=True,
        use_normalization_before_and_after=True,
        device="cpu",
    )
    theirs = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    found = HookedTransformer(cfg, model.tokenizer)
    found.load_and_process_state_dict(
        convert_gemma_weights(theirs, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return found.eval()


def saebench(
    sae: Any, model: HookedTransformer, tokens: np.ndarray, ignore: set[int], batch: int
) -> tuple[Metrics, dict[str, Any]]:
    """Their metrics over all `tokens`; positions of `ignore` are neither replaced nor counted."""
    sae = load_and_format_sae("jhsae", sae, "cpu")[1]
    store = ActivationsStore.from_sae(
        model,
        sae,
        dataset=Dataset.from_dict({"tokens": tokens.tolist()}),
        context_size=tokens.shape[1],
        store_batch_size_prompts=batch,
    )
    evaluation = CoreEvalConfig(
        model_name=sae.cfg.model_name,
        batch_size_prompts=batch,
        n_eval_reconstruction_batches=len(tokens) // batch,
        n_eval_sparsity_variance_batches=len(tokens) // batch,
        exclude_special_tokens_from_reconstruction=True,
        dataset="WordNet glosses, held out",
        context_size=tokens.shape[1],
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
    )
    groups, features = run_evals(sae, store, model, evaluation, ignore_tokens=ignore)
    return {name: value for group in groups.values() for name, value in group.items()}, features


@eqx.filter_jit
def _residual(model: lm.Gemma2, ids: jax.Array, layer: int) -> jax.Array:
    return model.residual(ids, layer)


@eqx.filter_jit
def _ce(model: lm.Gemma2, x: jax.Array, ids: jax.Array, layer: int) -> jax.Array:
    return lm.cross_entropy(model.logits_from(x, layer), ids)


def ours(
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    model: lm.Gemma2,
    layer: int,
    tokens: np.ndarray,
    ignore: set[int],
    batch: int,
) -> tuple[Metrics, np.ndarray]:
    """Our metrics over the same positions, and the frequency of every feature.

    With nothing to ignore the cross-entropies are those of `evals.splice`. Otherwise they follow SAEBench's two rules,
    which differ from ours: the predictions *from* ignored positions are left out, and zeros replace every position.
    """
    keep = ~np.isin(tokens, list(ignore))
    blocks = [
        np.asarray(_residual(model, jnp.asarray(tokens[i : i + batch]), layer)) for i in range(0, len(tokens), batch)
    ]
    rows = np.concatenate(blocks)[keep]
    metrics, frequency = evals.fidelity(sae, normalizer, np.array_split(rows, len(blocks)), rows.mean(axis=0))
    spliced = evals.Spliced(sae, normalizer)
    if not ignore:
        recovered = evals.recovered(evals.splice(model, layer, {"sae": spliced}, tokens, [], batch), "sae")
        return metrics | recovered, frequency
    sums = np.zeros(3)
    reconstruct = eqx.filter_jit(spliced)
    for i, x in zip(range(0, len(tokens), batch), map(jnp.asarray, blocks), strict=True):
        ids, counted = jnp.asarray(tokens[i : i + batch]), keep[i : i + batch]
        x_hat = jnp.where(counted[..., None], reconstruct(x.reshape(-1, x.shape[-1])).reshape(x.shape), x)
        for j, stream in enumerate((x, x_hat, jnp.zeros_like(x))):
            sums[j] += np.asarray(_ce(model, stream, ids, layer), np.float64)[counted[:, :-1]].sum()
    ce_model, ce, ce_zero = (sums / keep[:, :-1].sum()).tolist()
    recovered = {"ce": ce, "ce_model": ce_model, "ce_zero": ce_zero}
    return metrics | recovered | {"ce_recovered": (ce_zero - ce) / (ce_zero - ce_model)}, frequency


PAIRS = {  # SAEBench's name -> ours
    "l0": "l0",
    "explained_variance": "ev_saebench",
    "ce_loss_score": "ce_recovered",
    "ce_loss_with_sae": "ce",
    "ce_loss_without_sae": "ce_model",
    "ce_loss_with_ablation": "ce_zero",
    "cossim": "cosine",
    "l2_ratio": "shrinkage",
}
EQUAL = ("l0", "explained_variance", "ce_loss_score")


def compared(theirs: Metrics, here: Metrics) -> dict[str, Metrics]:
    """Both numbers and their difference, by SAEBench's name."""
    pairs = {name: (theirs[name], here[mine]) for name, mine in PAIRS.items()}
    return {name: {"saebench": a, "jhsae": b, "difference": abs(a - b)} for name, (a, b) in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of a hierarchical SAE")
    parser.add_argument("store", type=Path, help="store of held-out text, same model and layer")
    parser.add_argument("--lm", default="embedded", help="language model: a Hugging Face folder or 'embedded'")
    parser.add_argument("--sequences", type=int, default=64, help="sequences, a multiple of --batch")
    parser.add_argument("--batch", type=int, default=8, help="sequences per forward pass")
    parser.add_argument("--append", action="store_true", help="append the rows to results.jsonl beside this script")
    args = parser.parse_args()

    provenance = config.provenance()  # of the code that was imported, also when a file changes meanwhile
    sae, normalizer, about = load_sae(args.run)
    store = Store.open(args.store)
    layer, context = store.manifest.layer, store.tokens().shape[1]
    tokens = store.tokens()[: args.sequences // args.batch * args.batch].astype(np.int64)
    model = lm.load(args.lm)
    folder = lm.bundled() if args.lm == "embedded" else Path(args.lm)
    theirs = hooked(folder, model, context)
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens[: args.batch])).numpy()
    here = np.asarray(jax.jit(model.model.__call__)(jnp.asarray(tokens[: args.batch])))
    logits_differ = float(np.abs(logits - here).max())
    print(f"largest difference of logits, TransformerLens and jhsae: {logits_differ:.1e}")

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        export = Path(temporary) / "sae"
        torch_hsae.write(export, sae, normalizer, about)
        loaded = {"torch": HSAE.load(export), "SAELens plug-in": sae_lens.SAE.load_from_disk(export)}
        for positions, ignore in {"ordinary": set(special_ids(model.tokenizer)), "all": set()}.items():
            mine, frequency = ours(sae, normalizer, model.model, layer, tokens, ignore, args.batch)
            for through, exported in loaded.items():
                scores, features = saebench(exported, theirs, tokens, ignore, args.batch)
                row = {
                    "name": about["name"],
                    "config_hash": about["config_hash"],
                    "commit": about["commit"],
                    "through": through,
                    "positions": positions,
                    "tokens": int((~np.isin(tokens, list(ignore))).sum()),
                    "sequences": len(tokens),
                    "metrics": compared(scores, mine),
                    "saebench": scores,
                    "density_differs": float(np.abs(np.array(features["feature_density"]) - frequency).max()),
                    "logits_differ": logits_differ,
                    "evaluation": provenance,
                    "packages": {p: version(p) for p in ("sae-bench", "sae-lens", "transformer-lens", "torch")},
                }
                rows.append(row)
                shown = ", ".join(f"{n} {m['saebench']:.5f} / {m['jhsae']:.5f}" for n, m in row["metrics"].items())
                print(f"{positions} positions, {through}: {shown}")
    if args.append:
        with RESULTS.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    worst = max(row["metrics"][name]["difference"] for row in rows for name in EQUAL)
    print(f"largest difference in {', '.join(EQUAL)}: {worst:.1e} (bound {BOUND:.0e})")
    sys.exit(0 if worst < BOUND else 1)


if __name__ == "__main__":
    main()
