"""``jhsae evaluate``: a finished run on held-out activations and in the language model it reads.

Appends one row to results.jsonl in the run folder (metrics, config hash, commit) and writes contexts.json: the most
active contexts of features at evenly spaced ranks of frequency.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from jhsae import config as cfg
from jhsae import evals, lm
from jhsae.checkpoint import load_sae
from jhsae.data import Store
from jhsae.evals.origin import check_origin, language_model
from jhsae.metric import Euclidean, causal
from jhsae.sae import AbstractSAE, HierarchicalSAE
from jhsae.teacher import Teacher
from jhsae.train import Train


@dataclass(frozen=True)
class Evaluate:
    """What is evaluated, on what."""

    run: Annotated[str, "folder of a finished run (jhsae train) or of an import"]
    store: Annotated[str, "activation store of held-out text, same model and layer"]
    lm: Annotated[str, "language model to splice into: a folder, a hub name, or 'embedded'"]
    rows: Annotated[int | None, "held-out activations to use; null for all"] = None
    sequences: Annotated[int, "held-out sequences on which the cross-entropy is measured"] = 256
    batch: Annotated[int, "sequences per forward pass of the language model"] = 16
    features: Annotated[int, "features whose most active contexts are kept"] = 12
    atoms: Annotated[int, "atoms shown for each of them"] = 4
    examples: Annotated[int, "contexts per feature"] = 6


def run(config: Evaluate) -> dict[str, Any]:
    """Evaluates, writes, and returns the row of results.jsonl."""
    folder = Path(config.run)
    sae, normalizer, about = load_sae(folder)
    if (row := _finished(folder, config)) is not None:
        return row
    store = Store.open(config.store)
    check_origin(sae, about, store, config.run)
    model = language_model(config.lm, store)
    rows = min(config.rows or store.rows, store.rows)
    batches = (store.read(start, min(start + 4096, rows)) for start in range(0, rows, 4096))
    metrics, frequency = evals.fidelity(sae, normalizer, batches, store.manifest.mean)
    tokens = store.tokens()[: config.sequences].astype(np.int64)
    replacement = evals.Spliced(sae, normalizer)
    special = list(model.tokenizer.all_special_ids)
    results = evals.splice(model.model, store.manifest.layer, {"sae": replacement}, tokens, special, config.batch)
    metrics |= evals.recovered(results, "sae")
    metrics |= _geometry(sae, model, frequency)
    metrics |= _timing(folder)
    row = {
        "name": folder.name,
        "config_hash": about["config_hash"],
        "commit": about["commit"],
        "evaluation": cfg.to_dict(config) | {"hash": cfg.config_hash(config), **cfg.provenance()},
        "metrics": metrics,
    }
    contexts = _contexts(config, sae, normalizer, store, model, frequency, rows)
    (folder / "contexts.json").write_text(json.dumps(contexts) + "\n")
    with (folder / "results.jsonl").open("a") as file:  # last, because it says that the evaluation is complete
        file.write(json.dumps(row) + "\n")
    print(
        f"{folder.name}: " + ", ".join(f"{k} {metrics[k]:.4g}" for k in ("ev_r2", "mse", "ce_recovered", "l0", "dead"))
    )
    return row


def _finished(folder: Path, config: Evaluate) -> dict[str, Any] | None:
    """The row of this very evaluation, when the run folder has one."""
    path = folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return next((row for row in rows if row["evaluation"]["hash"] == cfg.config_hash(config)), None)


def _geometry(sae: AbstractSAE, model: lm.LanguageModel, frequency: np.ndarray) -> dict[str, Any]:
    """Orthogonality of children to parents in the causal metric and, with the suffix _euclidean, without it."""
    if not isinstance(sae, HierarchicalSAE):
        return {}
    residual = causal(np.asarray(model.model.unembedding())).residual
    euclidean = evals.orthogonality(sae, Euclidean(), frequency)
    return evals.orthogonality(sae, residual, frequency) | {f"{k}_euclidean": v for k, v in euclidean.items()}


def _timing(folder: Path) -> dict[str, float]:
    """How long the run took; nothing for an imported SAE."""
    if not (folder / "timing.jsonl").exists():
        return {}
    rows = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    return {
        "train_seconds": rows[-1]["seconds"],
        "tokens_per_second": float(np.median([row["tokens_per_second"] for row in rows[1:]] or [0.0])),
    }


def _contexts(
    config: Evaluate,
    sae: AbstractSAE,
    normalizer: Any,
    store: Store,
    model: lm.LanguageModel,
    frequency: np.ndarray,
    rows: int,
) -> list[dict[str, Any]]:
    """One entry per chosen expert (or flat feature), with its atoms."""
    values, indices = evals.sparse_codes(sae, normalizer, store, rows)
    tree = sae if isinstance(sae, HierarchicalSAE) else None
    parents = evals.spread_features(frequency if tree is None else frequency[: tree.experts], config.features)
    atoms = {p: evals.expert_atoms(tree, p, frequency, config.atoms) if tree else [] for p in parents}
    wanted = [*parents, *(a for own in atoms.values() for a in own)]
    found = evals.top_contexts(values, indices, wanted, store, _pieces(model.tokenizer), config.examples)
    names = expert_names(Path(config.run))

    def entry(feature: int) -> dict[str, Any]:
        return {"feature": feature, "frequency": float(frequency[feature]), "contexts": found[feature]}

    def atom(feature: int) -> dict[str, Any]:
        return entry(feature) | {"atom": (feature - tree.experts) % tree.atoms if tree else None}

    return [entry(p) | {"name": names.get(p), "atoms": [atom(a) for a in atoms[p]]} for p in parents]


def expert_names(folder: Path) -> dict[int, str]:
    """The concepts that the run's experts were initialised from, by expert; empty without a teacher or a run."""
    if not (folder / "config.yaml").exists():
        return {}
    config = cfg.load(Train, folder / "config.yaml")
    if not any(slot["_target_"] == "jhsae.init.FromTeacher" for slot in config.init) or config.teacher is None:
        return {}
    return {i: concept.name for i, concept in enumerate(Teacher.load(config.teacher).concepts)}


def _pieces(tokenizer: Any) -> Any:
    return lambda ids: [piece.replace("▁", " ") for piece in tokenizer.convert_ids_to_tokens(ids)]
