"""An SAE on labelled tokens of a store: purity, F1, AUC, leakage and k-sparse probes, each beside permuted labels."""

from typing import Any, NamedTuple

import numpy as np

from jhsae.data import AbstractNormalizer, Store
from jhsae.evals.labels import RowLabels
from jhsae.evals.nulls import Alternative, compare, sentence
from jhsae.evals.probing import sparse_probing
from jhsae.evals.purity import purity
from jhsae.features.firings import firing_table
from jhsae.ranges import Count, Seed, ranged
from jhsae.sae import AbstractSAE

PREDICTED: dict[str, Alternative] = {"purity": "greater", "f1": "greater", "auc": "greater", "leakage": "less"}


class OnLabels(NamedTuple):
    """`numbers`: single values for a table. `details`: values per class, draws of the null, and `sentences`."""

    numbers: dict[str, float | None]
    details: dict[str, Any]


@ranged
def on_labels(
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    store: Store,
    labels: RowLabels,
    rows: Count,
    seed: Seed = 0,
) -> OnLabels:
    """Measures the latents against the classes of the first `rows` rows of a store.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        store: of held-out text.
        labels: of the first `rows` rows, ``labels.on(store.index(0, rows))``.
        rows: held-out activations to use; all of them are held in memory.
        seed: of the splits of the words and of the permutations.

    Returns:
        `purity_parents` and its like (metric, then group), each with `_null`, its mean under permuted labels, and
        `probe_parents_k1` and its like, the mean accuracy over classes; `details` has `purity` and `probing` whole.
    """
    fired = firing_table(sae, normalizer, store, rows)
    pure = purity(fired, labels, sae.tree, seed)
    probing = sparse_probing(fired, store.read(0, rows), labels, sae.tree)
    numbers: dict[str, float | None] = {}
    sentences = []
    for group, metrics in pure["groups"].items():
        for name, found in metrics.items():
            draws = [draw for draw in found["null"] if draw is not None]
            numbers[f"{name}_{group}"] = found["mean"]
            numbers[f"{name}_{group}_null"] = float(np.mean(draws)) if draws else None
            values = np.array([value for value in found["values"] if value is not None], np.float64)
            if len(values) and len(draws) == len(found["null"]):
                result = compare(values, np.array(draws), alternative=PREDICTED[name], seed=seed)
                sentences.append(sentence(result, f"{name} of {group}"))
    for probe, scores in probing["probes"].items():
        numbers[_key(probe)] = scores["accuracy"]["mean"]
        numbers[f"{_key(probe)}_null"] = _mean(scores["accuracy"]["null"])
    return OnLabels(numbers, {"purity": pure, "probing": probing, "sentences": sentences})


def _key(probe: str) -> str:
    """``parents, k=2`` as a key: ``probe_parents_k2``."""
    return "probe_" + probe.replace(", ", "_").replace("=", "")


def _mean(draws: list[float | None]) -> float | None:
    known = [draw for draw in draws if draw is not None]
    return float(np.mean(known)) if known else None
