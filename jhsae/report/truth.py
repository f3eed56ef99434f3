"""Recovery of a known world, and latents against labels: tables beside their nulls."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jhsae.report.columns import Cell
from jhsae.report.formats import significant, three
from jhsae.report.reading import SCORES, Json, Run, at


class Row(NamedTuple):
    """A line of the table: `path` in the results, its words, and the definition."""

    path: str
    label: str
    definition: str
    show: Callable[[Any], str] = three


ROWS = (
    Row(
        "metrics.mcc",
        "MCC",
        "Latents and true features matched one to one by |cosine|; its mean over the pairs. As in SAELens.",
    ),
    Row("metrics.f1", "F1", "Of each latent as a detector of the true feature nearest to it; mean over all latents."),
    Row(
        "metrics.feature_f1",
        "F1 of features",
        "The best F1 of any latent for a true feature; mean over features.",
    ),
    Row("metrics.uniqueness", "uniqueness", "Distinct true features that are nearest to some latent, over latents."),
    Row("truth.roots.any.best_f1", "roots, any latent", "Best F1 of any latent for a true root; mean over roots."),
    Row("truth.roots.parents.best_f1", "roots, by a parent", "The same, of the SAE's parents alone."),
    Row(
        "truth.roots.prefix.best_f1",
        "roots, by a prefix",
        "The same, of as many first latents as there are roots.",
    ),
    Row("truth.tree.share", "tree", "True features below a root whose latent lies under the latent of their root."),
    Row("truth.tree.chance", "tree by chance", "The same with the parents of the SAE's latents dealt anew; mean."),
    Row("truth.edges.share", "edges", "The same for the direct parent."),
    Row("truth.edges.chance", "edges by chance", "Its chance."),
    Row(
        "truth.absorption.hard_excess",
        "absorption, hard",
        "Tokens with a parent and its child on which the child's latent fires in place of the parent's, less the share "
        "of tokens with the parent alone on which its latent is silent.",
    ),
    Row("truth.absorption.soft", "absorption, soft", "The part of the parent's code that an active child takes away."),
    Row("truth.hedging.hedging", "hedging", "Squared part of a parent's latent that lies along its children."),
    Row("truth.hedging.chance", "hedging by chance", "The same for a random direction of that length."),
    Row("truth.violations", "violations", "Firings of a child's latent without its parent's, over its firings."),
    Row("truth.siblings.largest", "siblings", "Largest |cosine| between two latents of a parent; median over parents."),
    Row("metrics.true_l0", "true L0", "Features of the world that are on, per token.", significant),
)
LEVEL_HEAD = (
    "level", "features", "latents", "MCC", "F1", "F1, matched", "MCC, any latent", "F1, any latent", "F1 of features"
)  # fmt: skip


class Section(NamedTuple):
    """The tables of the section: rows of cells by run, the levels of each run, and sentences of each."""

    rows: list[tuple[str, str, list[Cell]]]
    levels: list[tuple[str, list[list[Cell]]]]
    sentences: list[tuple[str, list[str]]]


def section(runs: list[Run]) -> Section | None:
    """The section on truth and labels; None where no run was evaluated on a world or on labels."""
    rows = [(row.label, row.definition, [_cell(row, run.result) for run in runs]) for row in ROWS]
    known = [(run, run.result["truth"]) for run in runs if run.result.get("truth")]
    told = [(run.name, _sentences(run.result)) for run in runs if _sentences(run.result)]
    if not known and not told:
        return None
    levels = [(run.name, [_level(level) for level in truth.get("levels") or []]) for run, truth in known]
    shown = [(label, definition, cells) for label, definition, cells in rows if any(c.exact for c in cells)]
    return Section(shown if known else [], [pair for pair in levels if pair[1]], told)


def _sentences(result: Json) -> list[str]:
    found = [at(result, f"truth.{kind}.sentence") for kind in ("tree", "edges")]
    told = [text for part in ("labels", "steering") for text in at(result, f"{part}.sentences") or []]
    return [text for text in found if text] + told


def _cell(row: Row, result: Json) -> Cell:
    value = at(result, row.path)
    if value is None:
        return Cell(row.path, "n/a", reason="not defined for this SAE, or not measured")
    return Cell(row.path, row.show(value), repr(value))


def _level(level: Json) -> list[Cell]:
    counts = [Cell(name, str(level[name]), repr(level[name])) for name in ("level", "features", "latents")]
    return counts + [_cell(Row(name, "", ""), level) for name in SCORES]
