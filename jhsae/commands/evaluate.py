"""``jhsae evaluate``: a finished run on held-out activations and in the language model it reads.

Appends one row to results.jsonl in the run folder (metrics, config hash, commit) and writes contexts.json: the most
active contexts of features at evenly spaced ranks of frequency.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from jhsae import config as cfg
from jhsae import evals, lm
from jhsae.commands.last_line import command, last_line
from jhsae.config.trust import TrustedPackages
from jhsae.data import AbstractNormalizer, Store, special_ids
from jhsae.features.contexts import expert_atoms, spread_features, top_contexts
from jhsae.features.firings import firings, first_rows
from jhsae.features.origin import check_origin, language_model
from jhsae.features.token_text import texts
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.folders import append_line, write_whole
from jhsae.files.forms import NUMBER, OBJECT, TEXT, check
from jhsae.files.lock import owned
from jhsae.metric import Euclidean, causal
from jhsae.ranges import Count, Natural, Words, ranged
from jhsae.sae import AbstractSAE, HierarchicalSAE
from jhsae.teacher import Teacher
from jhsae.training.checkpoint import load_sae

FROM_TEACHER = "jhsae.init.FromTeacher"
MAIN = {
    "ev_r2": "explained variance",
    "ce_recovered": "CE recovered",
    "l0": "L0",
    "mse": "MSE",
    "dead": "dead features",
}


@ranged
@dataclass(frozen=True)
class Evaluate:
    """The run to evaluate, and the data to evaluate it on."""

    UNHASHED: ClassVar[frozenset[str]] = frozenset({"trust"})

    run: Annotated[Words, "folder of a finished run (jhsae train) or of an import"]
    store: Annotated[Words, "activation store of held-out text, same model and layer"]
    lm: Annotated[Words, "language model to splice into: a folder, a hub name, or 'embedded'"]
    rows: Annotated[Count | None, "held-out activations to use; null for all"] = None
    sequences: Annotated[Count, "held-out sequences on which the cross-entropy is measured"] = 256
    batch: Annotated[Count, "sequences per forward pass of the language model"] = 16
    features: Annotated[Natural, "features whose most active contexts are kept"] = 12
    atoms: Annotated[Natural, "atoms shown for each of them"] = 4
    examples: Annotated[Count, "contexts per feature"] = 6
    trust: TrustedPackages = field(default_factory=list)


def run(config: Evaluate) -> dict[str, Any]:
    """Evaluates, writes, and returns the row of results.jsonl."""
    folder = Path(config.run)
    sae, normalizer, about = load_sae(folder, trust=config.trust)
    if (row := _finished(folder, config)) is None:
        with owned(folder, "evaluate"):
            row = _finished(folder, config) or _run(config, folder, sae, normalizer, about)
    print(last_line(folder, _main_numbers(row["metrics"]), _next(config)))
    return row


def _main_numbers(metrics: dict[str, Any]) -> list[str]:
    """The metrics that are looked at first, in words; those of another version may lack some."""
    found = [(word, metrics[key]) for key, word in MAIN.items() if key in metrics]
    return [f"{word} {'undefined' if value is None else f'{value:.4g}'}" for word, value in found]


def _next(config: Evaluate) -> str:
    page = f"{config.run.rstrip('/')}.html"
    words = (f"run={config.run}", f"store={config.store}", f"lm={config.lm}", f"out={page}")
    return command("jhsae", "browse", *words, trust=config.trust)


def _run(
    config: Evaluate, folder: Path, sae: AbstractSAE, normalizer: AbstractNormalizer, about: dict[str, Any]
) -> dict[str, Any]:
    store = Store.open(config.store)
    check_origin(sae, about, store, config.run)
    model = language_model(config.lm, store)
    rows = min(config.rows or store.rows, store.rows)
    batches = (store.read(start, min(start + 4096, rows)) for start in range(0, rows, 4096))
    metrics, frequency = evals.fidelity(sae, normalizer, batches, store.manifest.mean)
    tokens = store.tokens()[: config.sequences].astype(np.int64)
    replacement = evals.Spliced(sae, normalizer)
    special = list(special_ids(model.tokenizer))
    results = evals.splice(model.model, store.manifest.layer, {"sae": replacement}, tokens, special, config.batch)
    metrics |= evals.recovered(results, "sae")
    metrics |= _geometry(sae, model, frequency)
    metrics |= _timing(folder)
    row = {
        "name": folder.name,
        "config_hash": about.get("config_hash"),
        "commit": about.get("commit"),
        "evaluation": cfg.to_dict(config) | {"hash": cfg.config_hash(config), **cfg.provenance()},
        "metrics": metrics,
    }
    contexts = _contexts(config, sae, normalizer, store, model, frequency, rows)
    write_whole(folder / "contexts.json", to_json(contexts) + "\n")
    append_line(folder / "results.jsonl", to_json(row))  # last, because it says that the evaluation is complete
    return row


def _finished(folder: Path, config: Evaluate) -> dict[str, Any] | None:
    """The row of this very evaluation, when the run folder has one."""
    path, wanted = folder / "results.jsonl", cfg.config_hash(config)
    rows = read_lines(path) if path.exists() else []
    for number, row in enumerate(rows, start=1):
        check(row, {"evaluation": {"hash?": TEXT}, "metrics": OBJECT}, f"{path}, row {number}")
    return next((row for row in rows if row["evaluation"].get("hash") == wanted), None)


def _geometry(sae: AbstractSAE, model: lm.LanguageModel, frequency: np.ndarray) -> dict[str, Any]:
    """Orthogonality of children to parents in the causal metric and, with the suffix _euclidean, without it."""
    if not isinstance(sae, HierarchicalSAE):
        return {}
    residual = causal(np.asarray(model.model.unembedding())).residual
    euclidean = evals.orthogonality(sae, Euclidean(), frequency)
    return evals.orthogonality(sae, residual, frequency) | {f"{k}_euclidean": v for k, v in euclidean.items()}


def _timing(folder: Path) -> dict[str, float]:
    """How long the run took; nothing for an imported SAE."""
    path = folder / "timing.jsonl"
    rows = read_lines(path) if path.exists() else []
    for number, row in enumerate(rows, start=1):
        check(row, {"seconds": NUMBER, "tokens_per_second": NUMBER}, f"{path}, row {number}")
    if not rows:
        return {}
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
    tree = sae.tree
    parents = spread_features(frequency if tree is None else frequency[: tree.experts], config.features)
    atoms = {p: expert_atoms(tree, p, frequency, config.atoms) if tree else [] for p in parents}
    wanted = [*parents, *(a for own in atoms.values() for a in own)]
    fired = firings(sae, normalizer, first_rows(store, rows))
    found = top_contexts(fired, wanted, store, texts(model.tokenizer), config.examples)
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
    run = cfg.plain(folder / "config.yaml")  # no part of it is built, so none needs to be trusted
    init, teacher = run.get("init") or [], run.get("teacher")
    slots = [slot for slot in init if isinstance(slot, dict)] if isinstance(init, list) else []
    names = [slot.get("_target_") for slot in slots if slot.get("parents", True) is True]
    if FROM_TEACHER not in [cfg.published(name) for name in names if isinstance(name, str)]:
        return {}
    if not isinstance(teacher, str):
        return {}
    return {i: concept.name for i, concept in enumerate(Teacher.load(teacher).concepts)}
