"""What every run is measured by, and paired differences between variants.

Concepts are those of the teacher, with the words alone that it was not made from. `units` of a row are the values by
unit (concept, atom, sequence) that `difference` pairs between variants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from phases import Place

from jhsae import evals, lm
from jhsae.commands import teach
from jhsae.data import Store, special_ids
from jhsae.evals.labels import NO_CLASS
from jhsae.evals.nulls import Alternative, Comparison, compare, sentence, sign_flips
from jhsae.features.decoder import decoder_in_lm_units
from jhsae.features.firings import Firings, firing_table
from jhsae.sae import AbstractSAE, HierarchicalSAE
from jhsae.teacher import Concept, Teacher
from jhsae.teacher.select import token_sets
from jhsae.training.checkpoint import load_sae

FLIPS, ROTATED = 999, 39


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows, their labels, and the language model that made them."""

    place: Place

    @cached_property
    def model(self) -> lm.LanguageModel:
        return self.place.teach_config([]).lm.load(None)

    @cached_property
    def store(self) -> Store:
        return Store.open(self.place.heldout)

    @cached_property
    def x(self) -> np.ndarray:
        return self.store.read(0, self.store.rows)

    @cached_property
    def sequence(self) -> np.ndarray:
        """The sequence of every row."""
        return self.store.index(0, self.store.rows)[:, 0]

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher.load(self.place.teacher)

    @cached_property
    def concepts(self) -> evals.Labels:
        """The teacher's concepts with the words that it has not seen; its own tokens have no class."""
        config = self.place.teach_config([])
        ontology = teach.read_ontology(config)
        words = teach.words_of(ontology, self.model)
        whole = [unseen(concept, ontology, words) for concept in self.teacher.concepts]
        return evals.concept_labels(whole, {t: w.lower() for t, w in words.lemmas().items()})

    @cached_property
    def wordnet(self) -> evals.RowLabels:
        """WordNet's lexicographer files, all words."""
        return evals.wordnet_labels(self.model.tokenizer).on(self.store.index(0, self.store.rows))

    @cached_property
    def labels(self) -> evals.RowLabels:
        """`concepts` on the rows."""
        return self.concepts.on(self.store.index(0, self.store.rows))


def unseen(concept: Concept, ontology: Any, words: Any) -> Concept:
    """A concept of the teacher with the tokens of its words that the teacher has not seen."""
    tokens = token_sets(ontology, words)[concept.id]
    return Concept(concept.id, concept.name, tuple(sorted(tokens - set(concept.tokens))))


def measure(folder: Path, held: HeldOut) -> dict[str, Any]:
    """The numbers of a run, their units, and a sentence for each number that has a null."""
    sae, normalizer, _ = load_sae(folder)
    store, rows = held.store, held.store.rows
    batches = (held.x[start : start + 4096] for start in range(0, rows, 4096))
    metrics, frequency = evals.fidelity(sae, normalizer, batches, store.manifest.mean)
    replaced = {"sae": evals.Spliced(sae, normalizer)}
    tokens = store.tokens()[: held.place.settings.sequences].astype(np.int64)
    special = list(special_ids(held.model.tokenizer))
    metrics |= evals.recovered(evals.splice(held.model.model, store.manifest.layer, replaced, tokens, special), "sae")
    kept = ("ev_r2", "ce_recovered", "kl", "l0", "dead", "parameters")
    numbers: dict[str, Any] = {name: metrics[name] for name in kept}
    units: dict[str, dict[str, float]] = {"ev_r2": explained(replaced["sae"], held)}
    fired = firing_table(sae, normalizer, store, rows)
    sentences: list[str] = []
    on_classes(top_level(fired, sae), held, numbers, units, sentences)
    absorbed(fired, decoder_in_lm_units(sae, normalizer, store), sae, held, numbers, units)
    if isinstance(sae, HierarchicalSAE):
        orthogonal(sae, frequency, held, numbers, sentences)
    return {"numbers": numbers, "units": units, "sentences": sentences}


def explained(replace: evals.Spliced, held: HeldOut) -> dict[str, float]:
    """The part of each sequence in the explained variance, scaled so that their mean is the whole."""
    reconstruct = eqx.filter_jit(lambda f, x: f(x))
    step = 4096
    errors = [
        np.sum((x - np.asarray(reconstruct(replace, jnp.asarray(x)))) ** 2, axis=1)
        for x in (held.x[i : i + step] for i in range(0, len(held.x), step))
    ]
    total = np.sum((held.x - held.store.manifest.mean) ** 2)
    ids, place = np.unique(held.sequence, return_inverse=True)
    error = np.bincount(place.reshape(-1), weights=np.concatenate(errors))
    return {str(i): float(1 - len(ids) * e / total) for i, e in zip(ids, error, strict=True)}


def top_level(fired: Firings, sae: AbstractSAE) -> Firings:
    """The firings of the experts, or of all latents of a flat SAE: atoms come after experts."""
    if sae.tree is None:
        return fired
    starts = fired.starts[: sae.tree.roots + 1]
    return Firings(fired.rows[: starts[-1]], fired.values[: starts[-1]], starts, fired.measured)


def on_classes(fired: Firings, held: HeldOut, numbers: dict, units: dict, sentences: list[str]) -> None:
    """Purity and F1 of the top level on the teacher's concepts and on WordNet's files, beside permuted labels."""
    for name, labels in (("concepts", held.labels), ("wordnet", held.wordnet)):
        found = evals.purity(fired, labels, None)["groups"]["latents"]
        for metric in ("purity", "f1"):
            key, one = f"{metric}_{name}", found[metric]
            numbers[key], draws = one["mean"], [d for d in one["null"] if d is not None]
            numbers[f"{key}_null"] = float(np.mean(draws)) if draws else None
            values = {str(u): v for u, v in zip(one["units"], one["values"], strict=True) if v is not None}
            if metric == "f1":
                units[key] = values
            tested(list(values.values()), draws, "greater", key, sentences)


def absorbed(
    fired: Firings, dictionary: np.ndarray, sae: AbstractSAE, held: HeldOut, numbers: dict, units: dict
) -> None:
    """Full absorption of the concepts with most rows, the teacher's readouts as probes."""
    labels, chosen = most_rows(held.labels, held.place.settings.classes)
    probes = held.teacher.readouts[chosen]
    found = evals.absorption(fired, dictionary, held.x, labels, probes, sae.tree)["groups"]
    one = found["latents" if sae.tree is None else "parents"]["full"]
    draws = [d for d in one["null"] if d is not None]
    numbers["absorption"], numbers["absorption_null"] = one["mean"], float(np.mean(draws)) if draws else None
    units["absorption"] = {u: v for u, v in zip(one["units"], one["values"], strict=True) if v is not None}


def most_rows(labels: evals.RowLabels, count: int) -> tuple[evals.RowLabels, np.ndarray]:
    """The labels of the `count` classes with most rows alone, and their places."""
    sizes = np.bincount(labels.classes[labels.classes != NO_CLASS], minlength=len(labels.names))
    chosen = np.sort(np.argsort(-sizes, kind="stable")[:count])
    new = np.full(len(labels.names) + 1, NO_CLASS, np.int32)  # the last is that of NO_CLASS, which is -1
    new[chosen] = np.arange(len(chosen))
    return evals.RowLabels(tuple(labels.names[c] for c in chosen), new[labels.classes], labels.words), chosen


def orthogonal(sae: HierarchicalSAE, frequency: np.ndarray, held: HeldOut, numbers: dict, sentences: list[str]) -> None:
    """The distance of atoms from 90 degrees to their expert, in the causal metric, beside other experts."""
    found = evals.orthogonality_units(sae, held.teacher.geometry().residual, frequency, most=ROTATED)
    numbers["off_90"] = float(found.own.mean()) if len(found.own) else None
    numbers["off_90_null"] = float(found.null_means.mean()) if found.nulls else None
    tested(found.own.tolist(), found.null_means.tolist(), "less", "off 90 degrees", sentences, found.experts)


def tested(
    values: list[float],
    draws: list[float],
    alternative: Alternative,
    name: str,
    sentences: list[str],
    groups: np.ndarray | None = None,
) -> None:
    """Appends the sentence of a comparison, where there are values and enough draws for one."""
    if values and len(draws) >= (39 if alternative == "two-sided" else 20):
        result = compare(np.array(values), np.array(draws), alternative=alternative, groups=groups)
        sentences.append(sentence(result, name))


def difference(
    first: Sequence[dict[str, float | None]], second: Sequence[dict[str, float | None]], seed: int = 0
) -> Comparison | None:
    """The paired difference of the values of units that both sides have, seed by seed; units are the groups.

    The null flips the signs of whole units, so the interval and p are those of other units (concepts, sequences), for
    these seeds of training. None where there is no pair.
    """
    pairs = [
        (unit, a[unit] - b[unit])
        for a, b in zip(first, second, strict=True)
        for unit in a
        if a[unit] is not None and b.get(unit) is not None
    ]
    if not pairs:
        return None
    names, values = np.array([unit for unit, _ in pairs]), np.array([value for _, value in pairs], np.float64)
    null = sign_flips(values, np.random.default_rng(seed), FLIPS, names)
    return compare(values, null, alternative="two-sided", groups=names, seed=seed)
