"""``jhsae evaluate``: a finished run on held-out activations, in the language model it reads, or on a known world.

Appends one row to results.jsonl in the run folder (metrics, config hash, commit). Of a store of text it also writes
contexts.json: the most active contexts of features at evenly spaced ranks of frequency and, with `coherent`, of those
whose tokens have most in common (`jhsae.evals.coherence`). Without a language model
nothing is spliced and the only metric is the Euclidean one; with a world (`truth`) the row says what of it was
recovered; with labels, how pure the latents are and how well few of them tell the classes apart, beside permuted
labels, and of a teacher's concepts what is absorbed; with `steer`, what adding a latent's direction does to the logits.
"""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from jhsae import config as cfg
from jhsae import evals, lm
from jhsae.commands.last_line import command, last_line
from jhsae.config.trust import TrustedPackages
from jhsae.data import AbstractNormalizer, Store, special_ids
from jhsae.errors import UserError
from jhsae.features.contexts import children, frequent_children, spread_features, top_contexts
from jhsae.features.firings import firings, first_rows
from jhsae.features.origin import check_origin, language_model
from jhsae.features.token_text import texts, unnamed
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.folders import append_line, write_whole
from jhsae.files.forms import OBJECT, TEXT, check
from jhsae.files.lock import owned
from jhsae.metric import Euclidean, causal
from jhsae.ranges import Count, Natural, Words, ranged
from jhsae.sae import AbstractSAE
from jhsae.teacher import Teacher
from jhsae.training.checkpoint import load_sae
from jhsae.training.timing import timing
from jhsae.worlds import load_world

FROM_TEACHER = "jhsae.init.FromTeacher"
MAIN = {
    "ev_r2": "explained variance",
    "ce_recovered": "CE recovered",
    "l0": "L0",
    "mse": "MSE",
    "mcc": "MCC",
    "f1": "F1",
    "dead": "dead features",
}


@ranged
@dataclass(frozen=True)
class Evaluate:
    """The run to evaluate, and the data to evaluate it on."""

    UNHASHED: ClassVar[frozenset[str]] = frozenset({"trust"})
    LATER: ClassVar[dict[str, Any]] = {"truth": None, "labels": None, "steer": 0, "coherent": 0}

    run: Annotated[Words, "folder of a finished run (jhsae train) or of an import"]
    store: Annotated[Words | None, "activation store of held-out text, same model and layer"] = None
    lm: Annotated[Words | None, "language model to splice into: a folder, a hub name, or 'embedded'; null: none"] = None
    truth: Annotated[Words | None, "or, instead of a store, the world (jhsae world) that the run was trained on"] = None
    labels: Annotated[
        Words | None, "classes of tokens: a file of labels, a teacher's folder, or 'wordnet'; null: none"
    ] = None
    rows: Annotated[Count | None, "held-out activations to use; null for all, of a world 65,536"] = None
    sequences: Annotated[Count, "held-out sequences on which the cross-entropy is measured"] = 256
    batch: Annotated[Count, "sequences per forward pass of the language model"] = 16
    steer: Annotated[Natural, "latents whose direction is added in the language model; 0 for none"] = 0
    features: Annotated[Natural, "features whose most active contexts are kept"] = 12
    coherent: Annotated[Natural, "and of how many more, those whose tokens have most in common; 0 for none"] = 0
    atoms: Annotated[Natural, "atoms shown for each of them"] = 4
    examples: Annotated[Count, "contexts per feature"] = 6
    trust: TrustedPackages = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.store is None) == (self.truth is None):
            given = "both" if self.store is not None else "neither"
            raise UserError(f"names {given} of store and truth; write store=FOLDER, or truth=WORLD, and not the other")
        if self.truth is not None and (self.lm is not None or self.labels is not None):
            raise UserError("a world has neither a language model nor labels; with truth, write lm=null labels=null")
        if self.steer and self.lm is None:
            raise UserError(
                f"steer is {self.steer}, but there is no language model to steer in; write lm=..., or steer=0"
            )
        if self.coherent and self.lm is None:
            raise UserError(
                f"coherent is {self.coherent}, but what tokens have in common is measured in the unembedding of a "
                "language model; write lm=..., or coherent=0"
            )


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
    if config.store is None or config.lm is None:
        return command("jhsae", "report", f"runs=[{config.run}]", f"out={page}", trust=config.trust)
    words = (f"run={config.run}", f"store={config.store}", f"lm={config.lm}", f"out={page}")
    return command("jhsae", "browse", *words, trust=config.trust)


def _run(
    config: Evaluate, folder: Path, sae: AbstractSAE, normalizer: AbstractNormalizer, about: dict[str, Any]
) -> dict[str, Any]:
    row = {"name": folder.name, "config_hash": about.get("config_hash"), "commit": about.get("commit")}
    row["evaluation"] = cfg.to_dict(config) | {"hash": cfg.config_hash(config), **cfg.provenance()}
    contexts = None
    if config.truth is not None:
        measured = _on_world(config, sae, normalizer, about, config.truth)
    else:
        measured, contexts = _on_store(config, sae, normalizer, about, str(config.store))
    measured["metrics"] |= timing(folder)
    if contexts is None:
        (folder / "contexts.json").unlink(missing_ok=True)  # those of an earlier evaluation, on other tokens
    else:
        write_whole(folder / "contexts.json", to_json(contexts) + "\n")
    append_line(folder / "results.jsonl", to_json(row | measured))  # last: it says that the evaluation is complete
    return row | measured


def _on_world(
    config: Evaluate, sae: AbstractSAE, normalizer: AbstractNormalizer, about: dict[str, Any], path: str
) -> dict[str, Any]:
    world = load_world(path)
    evals.check_world(about, world, path, config.run)
    rows = {} if config.rows is None else {"rows": config.rows}
    metrics, frequency, truth = evals.on_world(sae, normalizer, world, **rows)
    return {"metrics": metrics | _geometry(sae, None, frequency), "truth": truth}


def _on_store(
    config: Evaluate, sae: AbstractSAE, normalizer: AbstractNormalizer, about: dict[str, Any], path: str
) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    store = Store.open(path)
    check_origin(sae, about, store, config.run)
    model = None if config.lm is None else language_model(config.lm, store)
    rows = min(config.rows or store.rows, store.rows)
    labels = _labels(config, store, model, rows)
    batches = (store.read(start, min(start + 4096, rows)) for start in range(0, rows, 4096))
    metrics, frequency = evals.fidelity(sae, normalizer, batches, store.manifest.mean)
    if model is not None:
        metrics |= _spliced(config, sae, normalizer, store, model)
    measured = {"metrics": metrics | _geometry(sae, model, frequency)}
    if labels is not None:
        on, probes = labels
        found = evals.on_labels(sae, normalizer, store, on, rows, probes=probes)
        measured |= {"metrics": measured["metrics"] | found.numbers, "labels": found.details}
    if model is not None and config.steer:
        latents = spread_features(_of_top_level(sae, frequency), config.steer)
        steered = evals.steered(sae, normalizer, store, model, latents, batch=config.batch)
        measured |= {"metrics": measured["metrics"] | steered.pop("numbers"), "steering": steered}
    if model is None and not _has_text(store):
        return measured, None
    return measured, _contexts(config, sae, normalizer, store, model, frequency, rows)


def _spliced(
    config: Evaluate, sae: AbstractSAE, normalizer: AbstractNormalizer, store: Store, model: lm.LanguageModel
) -> dict[str, Any]:
    """Cross-entropy of the language model with the reconstruction in place of the residual stream."""
    tokens = store.tokens()[: config.sequences].astype(np.int64)
    special = list(special_ids(model.tokenizer))
    replacement = evals.Spliced(sae, normalizer)
    results = evals.splice(model.model, store.manifest.layer, {"sae": replacement}, tokens, special, config.batch)
    return evals.recovered(results, "sae")


def _labels(
    config: Evaluate, store: Store, model: lm.LanguageModel | None, rows: int
) -> tuple[evals.RowLabels, np.ndarray | None] | None:
    """The classes of the measured rows, from a file, a teacher or WordNet; of a teacher also its readouts."""
    if config.labels is None:
        return None
    if config.labels == "wordnet":
        if model is None:
            raise UserError(
                "labels=wordnet needs the tokenizer of the language model; write lm=..., or a file of labels"
            )
        return evals.wordnet_labels(model.tokenizer).on(store.index(0, rows)), None
    if not Path(config.labels).is_dir():
        return evals.read_labels(config.labels).on(store.index(0, rows)), None
    teacher = Teacher.load(config.labels)
    teacher.check_origin(store.manifest, store.path, config.labels)
    return evals.concept_labels(teacher.concepts).on(store.index(0, rows)), teacher.readouts


def _of_top_level(sae: AbstractSAE, frequency: np.ndarray) -> np.ndarray:
    """The frequencies of the experts, or of all features of a flat SAE."""
    return frequency if sae.tree is None else frequency[: sae.tree.roots]


def _has_text(store: Store) -> bool:
    """Whether the tokens of a store are text: an array in memory has none."""
    return store.manifest.dataset.get("source") != "array"


def _finished(folder: Path, config: Evaluate) -> dict[str, Any] | None:
    """The row of this very evaluation, when the run folder has one."""
    path, wanted = folder / "results.jsonl", cfg.config_hash(config)
    rows = read_lines(path) if path.exists() else []
    for number, row in enumerate(rows, start=1):
        check(row, {"evaluation": {"hash?": TEXT}, "metrics": OBJECT}, f"{path}, row {number}")
    return next((row for row in rows if row["evaluation"].get("hash") == wanted), None)


def _geometry(sae: AbstractSAE, model: lm.LanguageModel | None, frequency: np.ndarray) -> dict[str, Any]:
    """Orthogonality of children to parents, in the causal metric where there is one and, with a suffix, in none."""
    if sae.tree is None:
        return {}
    found = {f"{k}_euclidean": v for k, v in evals.orthogonality(sae, Euclidean(), frequency).items()}
    found |= evals.likeness(sae)
    if model is None:
        return found
    return evals.orthogonality(sae, causal(np.asarray(model.model.unembedding())).residual, frequency) | found


def _contexts(
    config: Evaluate,
    sae: AbstractSAE,
    normalizer: Any,
    store: Store,
    model: lm.LanguageModel | None,
    frequency: np.ndarray,
    rows: int,
) -> list[dict[str, Any]]:
    """One entry per chosen expert (or flat feature), with its atoms: evenly spaced ones, then the most coherent."""
    tree, top = sae.tree, _of_top_level(sae, frequency)
    spread, coherent = spread_features(top, config.features), []
    fired, text = firings(sae, normalizer, first_rows(store, rows)), texts(model.tokenizer) if model else unnamed
    found: evals.Coherence | None = None
    if config.coherent and model is not None:
        held = evals.first_batches(fired)
        found = evals.coherence_of(held, len(top), store, model.model.unembedding())
        fired, coherent = chain(held, fired), found.most(config.coherent)
    parents = [*dict.fromkeys([*spread, *coherent])]
    atoms = {p: frequent_children(tree, p, frequency, config.atoms) if tree else [] for p in parents}
    wanted = [*parents, *(a for own in atoms.values() for a in own)]
    contexts = top_contexts(fired, wanted, store, text, config.examples)
    names = expert_names(Path(config.run))

    def entry(feature: int) -> dict[str, Any]:
        return {"feature": feature, "frequency": float(frequency[feature]), "contexts": contexts[feature]}

    def atom(feature: int, parent: int) -> dict[str, Any]:
        return entry(feature) | {"atom": feature - children(tree, parent).start if tree else None}

    def parent(feature: int, chosen: str) -> dict[str, Any]:
        own = entry(feature) | {"name": names.get(feature), "atoms": [atom(a, feature) for a in atoms[feature]]}
        return own | ({} if found is None else {"chosen": chosen} | found.told(feature, text))

    return [parent(p, "frequency") for p in spread] + [parent(p, "coherence") for p in coherent]


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
