"""An SAE on labelled tokens of a store, each number beside its null.

Purity, F1, AUC, leakage and k-sparse probes beside permuted labels; of a teacher's concepts absorption as well, beside
the probes of other concepts.
"""

from typing import Any, NamedTuple

from jhsae.data import AbstractNormalizer, Store
from jhsae.evals.absorption import absorption
from jhsae.evals.beside_null import Told
from jhsae.evals.labels import RowLabels
from jhsae.evals.nulls import Alternative
from jhsae.evals.probing import sparse_probing
from jhsae.evals.purity import purity
from jhsae.features.decoder import decoder_in_lm_units
from jhsae.features.firings import firing_table
from jhsae.ranges import Count, Seed, ranged
from jhsae.sae import AbstractSAE
from jhsae.teacher import Teacher

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
    told = Told()
    for group, metrics in pure["groups"].items():
        for name, found in metrics.items():
            told.add(found, f"{name}_{group}")
            told.compare(found, f"{name} of {group}", PREDICTED[name], seed)
    for probe, scores in probing["probes"].items():
        told.add(scores["accuracy"], _key(probe))
    return OnLabels(told.numbers, {"purity": pure, "probing": probing, "sentences": told.sentences})


@ranged
def on_teacher(
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    store: Store,
    teacher: Teacher,
    labels: RowLabels,
    rows: Count,
    seed: Seed = 0,
) -> OnLabels:
    """What `on_labels` measures, and absorption of the teacher's concepts with its readouts as probes.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        store: of held-out text.
        teacher: made from the same language model.
        labels: its concepts on the first `rows` rows, ``concept_labels(teacher.concepts).on(store.index(0, rows))``.
        rows: held-out activations to use; all of them are held in memory.
        seed: of the splits of the words and of the permutations.

    Returns:
        The numbers of `on_labels`, with `absorption_parents`, `absorption_fraction_parents` and their like, each with
        `_null`, its mean with the probes of other concepts; `details` has `absorption` whole.
    """
    found = on_labels(sae, normalizer, store, labels, rows, seed)
    fired, rows_in_lm_units = firing_table(sae, normalizer, store, rows), decoder_in_lm_units(sae, normalizer, store)
    absorbed = absorption(fired, rows_in_lm_units, store.read(0, rows), labels, teacher.readouts, sae.tree, seed=seed)
    told = Told(dict(found.numbers))
    for group, metrics in absorbed["groups"].items():
        told.add(metrics["full"], f"absorption_{group}")
        told.add(metrics["fraction"], f"absorption_fraction_{group}")
    return OnLabels(told.numbers, found.details | {"absorption": absorbed})


def _key(probe: str) -> str:
    """``parents, k=2`` as a key: ``probe_parents_k2``."""
    return "probe_" + probe.replace(", ", "_").replace("=", "")
