"""The columns of the comparison table and the definition of every metric.

A cell shows a rounded number with its exact value in the tooltip; a cell without a number says why.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jhsae.report.formats import count, degrees, duration, one, percent, significant, three
from jhsae.report.reading import Run

FLAT = "a flat SAE has no parents and atoms"
ABSENT = "not in this run's results.jsonl: evaluated without a language model, or by another version"
UNDEFINED = "not defined: what it is divided by is 0 on these tokens"


class Column(NamedTuple):
    """A metric of results.jsonl; `below` are (word, metric) in small type under it; `tree` needs a hierarchy."""

    key: str
    label: str
    definition: str
    show: Callable[[Any], str]
    below: tuple[tuple[str, str], ...] = ()
    tree: bool = False


class Cell(NamedTuple):
    """A metric of one run: rounded, exact, what stands below it, or the reason why there is none."""

    key: str
    text: str
    exact: str = ""
    reason: str = ""
    below: tuple[tuple[str, "Cell"], ...] = ()


_ANGLE = (
    "Median, over the atoms that fired, of |angle − 90°| between the expert's decoder row and the atom's own row of "
    "the dictionary, which is what the atom adds to its expert; 0° is exactly orthogonal. Null: the same atoms paired "
    "with other experts, 20 times. In many dimensions any two vectors are nearly orthogonal, so that only the distance "
    "from the null says anything. "
)
COLUMNS = (
    Column(
        "ev_r2",
        "explained variance",
        "Centred R²: 1 − Σ‖x − x̂‖² / Σ‖x − mean‖², over all held-out tokens, in the units of the language model. "
        "1 is perfect, 0 is as good as the mean activation. Below it, the same for the parents' part of the "
        "reconstruction. Other definitions in use give other numbers; two of them are in the list of every number.",
        three,
        (("parents", "parents_only_ev_r2"),),
    ),
    Column(
        "mse",
        "MSE",
        "Squared error ‖x − x̂‖², summed over the embedding and averaged over held-out tokens, in squared units of the "
        "residual stream. It grows with the scale of the layer: compare it within this table only.",
        significant,
    ),
    Column(
        "ce_recovered",
        "CE recovered",
        "(CE with zeros − CE spliced) / (CE with zeros − CE of the model). 1: the model predicts the next token as "
        "well from the reconstructed residual stream as from its own; 0: as badly as from zeros, a very low floor. "
        "Special tokens keep their own residual. Below it, the spliced cross-entropy in nats per token.",
        three,
        (("CE", "ce"),),
    ),
    Column(
        "kl_recovered",
        "KL recovered",
        "(KL with zeros − KL spliced) / KL with zeros, where KL is the divergence of the spliced model's next-token "
        "distribution from the model's. Unlike the cross-entropy it counts every change of the prediction, not only "
        "that of the token that came next. "
        "Below it, the KL divergence itself in nats per token.",
        three,
        (("KL", "kl"),),
    ),
    Column(
        "l0",
        "L0",
        "Active features per token, on average: parents + atoms.",
        one,
        (("", "l0_parents"), ("+", "l0_atoms")),
    ),
    Column("parameters", "parameters", "Trained numbers in all, not only those that one token uses.", count),
    Column(
        "encoder_macs",
        "encoder MACs",
        "Multiplications of the encoder per token, on average: those that the token needs, so that an expert that is "
        "not active costs its score alone. Of a pursuit, with the products of pairs of rows looked up in a table that "
        "is derived from the dictionary; below, with these computed from the rows instead.",
        count,
        (("plain", "encoder_macs_without_tables"),),
    ),
    Column(
        "dead_experts",
        "dead experts",
        "Share of the experts (parents) that never fired on the held-out tokens. It falls with more tokens.",
        percent,
        tree=True,
    ),
    Column("dead_atoms", "dead atoms", "The same for all that lies below the experts.", percent, tree=True),
    Column("dead", "dead features", "The same for all features: experts and atoms together, or a flat SAE's.", percent),
    Column(
        "parent_child_off_90",
        "off 90°, causal",
        _ANGLE + "Causal: in the metric of the unembedding's covariance, in which decoder rows, being residual "
        "vectors, are whitened by its square root.",
        degrees,
        (("null", "parent_child_off_90_null"),),
        tree=True,
    ),
    Column(
        "parent_child_off_90_euclidean",
        "off 90°, Euclidean",
        "The same without a metric.",
        degrees,
        (("null", "parent_child_off_90_null_euclidean"),),
        tree=True,
    ),
    Column(
        "sibling_cosine",
        "siblings",
        "Largest |cosine| between two children of one expert (of a deeper tree: of one row); median over the parents. "
        "Near 1, most children of a parent repeat one another.",
        three,
        (("mean", "sibling_cosine_mean"),),
        tree=True,
    ),
    Column(
        "roots_after_merging",
        "roots after merging",
        "How many experts would be left if the most alike two became one again and again, while any cosine is above "
        "0.4; below, how many there are. Merging is no part of a run unless its config says so.",
        count,
        (("of", "roots"),),
        tree=True,
    ),
    Column(
        "train_seconds",
        "training time",
        "Wall-clock time of the training loop, compilation included; harvesting and evaluation are not.",
        duration,
    ),
    Column(
        "tokens_per_second",
        "tokens/s",
        "Training tokens per second: the median over the logged intervals but the first.",
        count,
    ),
)
OTHERS = {
    "parents_only_ev_r2": "centred R² of the parents' part of the reconstruction",
    "ev_saebench": "explained variance as SAEBench 0.6 computes it: close to an uncentred R², so higher",
    "ev_legacy": "mean over tokens (other than the mean) of 1 − ‖x − x̂‖² / ‖x − mean‖², the older SAELens definition",
    "cosine": "mean over tokens (other than 0) of the cosine between x and x̂",
    "shrinkage": "mean over tokens (other than 0) of ‖x̂‖ / ‖x‖; below 1 the reconstruction is too short",
    "relative_reconstruction_bias": "E‖x̂‖² / E[x · x̂] over held-out tokens: 1 where no rescaling of x̂ would fit "
    "better, below 1 where x̂ is too short",
    "l1": "sum of the absolute codes of a token, averaged, in the units of the SAE's own input",
    "below_1e-5": "share of the features that fire on fewer than one held-out token in 100,000, the dead included",
    "above_1e-1": "share of the features that fire on more than one held-out token in 10",
    "rows": "held-out tokens behind the numbers on reconstruction",
    "l0_parents": "active experts per token",
    "l0_atoms": "active atoms per token",
    "encoder_macs_without_tables": "the encoder's multiplications per token without tables of products of rows",
    "sibling_cosine_mean": "mean |cosine| of two children of one parent",
    "roots": "experts: rows without a parent, empty slots left out",
    "ce": "cross-entropy with the reconstruction spliced in, nats per token",
    "ce_model": "cross-entropy of the model itself, nats per token",
    "ce_zero": "cross-entropy with zeros in place of the residual stream, nats per token",
    "kl": "KL divergence of the spliced model's next-token distribution from the model's, nats per token",
    "parent_child_off_90_mean": "mean instead of median of |angle − 90°|, causal metric, degrees",
    "parent_child_off_90_null": "the median in the null: the same atoms with other experts, causal metric, degrees",
    "parent_child_off_90_null_mean": "mean of the null, causal metric, degrees",
    "parent_child_z": "standard deviations of the null's 20 means between its mean and the measured mean, negative "
    "when the atoms are nearer to 90° than the null; not a p-value, for the re-pairings share their atoms",
    "live_atoms": "atoms that fired, over which the angles are taken",
}


LEVELS = {
    "l0_level_N": "active rows of level N of the tree per token; level 0 are its roots",
    "dead_level_N": "share of the rows of level N of the tree that never fired",
    "to_level_N_ev_r2": "centred R² of the reconstruction from the rows down to level N of the tree",
}


def cell(column: Column, run: Run) -> Cell:
    """The cell of `run` in `column`."""
    value = run.metrics.get(column.key)
    if value is None:
        missing = UNDEFINED if column.key in run.metrics else ABSENT
        return Cell(column.key, "n/a", reason=FLAT if column.tree and not run.hierarchical else missing)
    below = [(word, Column(key, "", "", column.show)) for word, key in column.below if key in run.metrics]
    return Cell(column.key, column.show(value), repr(value), below=tuple((w, cell(c, run)) for w, c in below))


def definition(key: str) -> str:
    """What a metric means; empty for one that this version does not know."""
    plain = key.removesuffix("_euclidean")
    known = OTHERS | {c.key: f"{c.label}, see the table" for c in COLUMNS}
    found = re.search(r"level_(\d+)", key)
    by_level = LEVELS.get(key.replace(found[1], "N"), "") if found else ""
    text = known.get(key, known.get(plain, by_level.replace("level N", f"level {found[1]}" if found else "")))
    return text.replace("causal metric", "Euclidean") if key != plain else text


def everything(runs: list[Run]) -> list[tuple[str, str, list[Cell]]]:
    """Every number of every run: (key, meaning, cells), in the order of the files. Histograms are drawn instead."""
    keys = dict.fromkeys(key for run in runs for key, value in run.metrics.items() if not isinstance(value, dict))
    flat = {key for run in runs if not run.hierarchical for key in run.metrics}
    columns = [Column(key, "", definition(key), _any, tree=key not in flat) for key in keys]
    return [(column.key, column.definition, [cell(column, run) for run in runs]) for column in columns]


def _any(value: Any) -> str:
    return significant(value) if isinstance(value, int | float) else str(value)
