"""An SAE on labelled tokens of a store, each number beside its null.

Purity, F1, AUC, leakage and k-sparse probes beside permuted labels; of a teacher's concepts absorption as well, beside
the probes of other concepts.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jhsae.data import AbstractNormalizer, Store
from jhsae.evals.absorption import absorption
from jhsae.evals.beside_null import Summary
from jhsae.evals.labels import RowLabels
from jhsae.evals.nulls import Alternative
from jhsae.evals.probing import sparse_probing
from jhsae.evals.purity import purity
from jhsae.features.decoder import decoder_in_lm_units
from jhsae.features.firings import firing_table
from jhsae.ranges import Count, Seed, ranged
from jhsae.sae import AbstractSAE

PREDICTED: dict[str, Alternative] = {"purity": "greater", "f1": "greater", "auc": "greater", "leakage": "less"}


class OnLabels(NamedTuple):
    """Measures of an SAE on labelled tokens.

    Args:
        numbers: single values for a table, by name; None where one is not defined.
        details: values per class, draws of the null, and `sentences`.
    """

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
    probes: Float[np.ndarray, "classes embed"] | None = None,
) -> OnLabels:
    """Measures the latents against the classes of the first `rows` rows of a store.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        store: of held-out text.
        labels: of the first `rows` rows, ``labels.on(store.index(0, rows))``.
        rows: held-out activations to use; all of them are held in memory.
        seed: of the splits of the words and of the permutations.
        probes: a covector per class, such as the readouts of the teacher whose concepts the classes are; None for no
            absorption.

    Returns:
        `purity_parents` and its like (metric, then group), each with `_null`, its mean under permuted labels, and
        `probe_parents_k1` and its like, the mean accuracy over classes; with probes `absorption_parents`,
        `absorption_fraction_parents` and their like, whose null are the probes of other classes. `details` has
        `purity`, `probing` and `absorption` whole.
    """
    fired, activations = firing_table(sae, normalizer, store, rows), store.read(0, rows)
    pure = purity(fired, labels, sae.tree, seed)
    probing = sparse_probing(fired, activations, labels, sae.tree)
    summary = Summary()
    for group, metrics in pure["groups"].items():
        for name, found in metrics.items():
            summary.add(found, f"{name}_{group}")
            summary.compare(found, f"{name} of {group}", PREDICTED[name], seed)
    for probe, scores in probing["probes"].items():
        summary.add(scores["accuracy"], _key(probe))
    details: dict[str, Any] = {"purity": pure, "probing": probing, "sentences": summary.sentences}
    if probes is not None:
        dictionary = decoder_in_lm_units(sae, normalizer, store)
        details["absorption"] = absorption(fired, dictionary, activations, labels, probes, sae.tree, seed=seed)
        for group, metrics in details["absorption"]["groups"].items():
            summary.add(metrics["full"], f"absorption_{group}")
            summary.add(metrics["fraction"], f"absorption_fraction_{group}")
    return OnLabels(summary.numbers, details)


def _key(probe: str) -> str:
    """``parents, k=2`` as a key: ``probe_parents_k2``."""
    return "probe_" + probe.replace(", ", "_").replace("=", "")
