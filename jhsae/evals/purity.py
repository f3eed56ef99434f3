"""Purity, best-latent F1, AUC and leakage: whether latents fire on one class of tokens, beside permuted labels.

Rows without a class count for nothing. Everything is chosen on one half of the word types and scored on the other:

- purity of a latent: its class is the one on whose rows it fires most often. Purity is its firing rate there over the
  sum of its rates on all classes, which weights classes alike: 1 for a pure latent, 1 / classes for a constant one.
- F1 of a class: of the latent that tells the class from the others best, with firing as the prediction.
- AUC of a class: the chance that a row of the class has a larger code of that latent than a row of the others.
- leakage of a class: the part of the activation of its latents (those whose class it is), averaged over the rows of
  each class, that falls on other classes: 0 for pure latents, 1 - 1 / classes for constant ones.

The metrics of PolytopeSAE with these names say nothing: its leakage, the number of active parents, is k for every TopK
model, and its purity, a ratio of mean activations, has no upper bound and is measured on the words it is chosen on.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse

from jhsae.evals.groups import check_rows_of, code_matrix, divided, groups, measured
from jhsae.evals.labels import NO_CLASS, RowLabels
from jhsae.features.firings import Firings
from jhsae.ranges import Count, Seed, ranged
from jhsae.sae import Forest
from jhsae.teacher.validate import auc

PERMUTATIONS = 20
METRICS = ("purity", "f1", "auc", "leakage")


class Counts(NamedTuple):
    """On some of the rows: the firings and the summed codes of every latent by class, and the rows of each class."""

    fired: Float[np.ndarray, "features classes"]
    mass: Float[np.ndarray, "features classes"]
    rows: Float[np.ndarray, " classes"]

    def of(self, group: slice) -> "Counts":
        """Those of a group of latents."""
        return Counts(self.fired[group], self.mass[group], self.rows)

    def rates(self) -> np.ndarray:
        """The share of the rows of each class on which a latent fires; 0 for a class without rows."""
        return self.fired / np.maximum(self.rows, 1)

    def f1(self) -> np.ndarray:
        """F1 of each latent's firing as a prediction of each class; 0 where neither occurs."""
        total = self.fired.sum(axis=1, keepdims=True) + self.rows
        return 2 * self.fired / np.where(total > 0, total, 1)


@ranged
def purity(
    firings: Firings, labels: RowLabels, tree: Forest | None, seed: Seed = 0, permutations: Count = PERMUTATIONS
) -> dict[str, Any]:
    """Purity per latent, and F1, AUC and leakage per class, each with its values under permuted labels.

    Args:
        firings: of the SAE on the first rows of a store (`jhsae.features.firings.firing_table`).
        labels: of the same rows.
        tree: ``sae.tree``; parents and atoms are measured apart.
        seed: of the split of the words and of the permutations.
        permutations: draws of the null.

    Returns:
        ``classes``, the number of rows of each, and per group (``parents``, ``atoms``, ``latents``) the four metrics in
        the form of `jhsae.evals.groups`. A latent that never fires on either half has no purity; a class without a
        latent of its own has no leakage.

    Raises:
        UserError: labels of other rows, or of fewer than two classes.
    """
    check_rows_of(labels, firings.measured)
    codes = code_matrix(firings)
    draws = [labels, *(labels.permuted(seed + 1 + i) for i in range(permutations))]
    halves = [draw.half(seed) for draw in draws]
    counts = [(_counts(codes, d, half), _counts(codes, d, ~half)) for d, half in zip(draws, halves, strict=True)]
    found = {}
    for name, group in groups(tree, firings.size).items():
        own = codes[:, group]
        each = [
            _metrics(fit.of(group), test.of(group), own, d, ~half)
            for (fit, test), d, half in zip(counts, draws, halves, strict=True)
        ]
        latents = list(range(group.start, group.stop))
        found[name] = {
            m: measured(latents if m == "purity" else labels.names, each[0][m], [e[m] for e in each[1:]], m != "purity")
            for m in METRICS
        }
    rows = np.bincount(labels.classes[labels.classes != NO_CLASS], minlength=len(labels.names))
    return {"classes": list(labels.names), "rows": rows.tolist(), "groups": found}


def class_of_latents(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """The class on whose rows each latent fires most often, and whether it fires on any at all."""
    rates = counts.rates()
    return rates.argmax(axis=1), np.asarray(rates.any(axis=1))


def _counts(codes: sparse.csc_matrix, labels: RowLabels, chosen: Bool[np.ndarray, " rows"]) -> Counts:
    rows = np.flatnonzero(chosen & (labels.classes != NO_CLASS))
    shape = (codes.shape[0], len(labels.names))
    member = sparse.csr_matrix((np.ones(len(rows)), (rows, labels.classes[rows])), shape=shape)
    fired = codes.copy()
    fired.data = np.ones_like(fired.data)
    by_class = np.bincount(labels.classes[rows], minlength=shape[1]).astype(np.float64)
    return Counts((fired.T @ member).toarray(), (codes.T @ member).toarray(), by_class)


def _metrics(
    fit: Counts, test: Counts, codes: sparse.csc_matrix, labels: RowLabels, held_out: Bool[np.ndarray, " rows"]
) -> dict[str, np.ndarray]:
    """The four metrics of one group, NaN where one is not defined."""
    own, alive = class_of_latents(fit)
    rates = test.rates()
    there = np.where(alive, np.take_along_axis(rates, own[:, None], axis=1)[:, 0], np.nan)
    best = fit.f1().argmax(axis=0)
    classes = np.arange(len(fit.rows))
    measurable = (fit.rows > 0) & (test.rows > 0)
    return {
        "purity": divided(there, rates.sum(axis=1)),
        "f1": np.where(measurable, test.f1()[best, classes], np.nan),
        "auc": np.array([_auc(codes, labels, held_out, int(best[c]), c, fit) for c in range(len(classes))]),
        "leakage": _leakage(test, own, alive),
    }


def _leakage(test: Counts, own: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Per class, the part of the mean activation of its latents that other classes have."""
    mass = test.mass / np.maximum(test.rows, 1)
    member = (own[:, None] == np.arange(mass.shape[1])) & alive[:, None]
    inside, total = (mass * member).sum(axis=0), member.T @ mass.sum(axis=1)
    return 1 - divided(inside, total)


def _auc(
    codes: sparse.csc_matrix, labels: RowLabels, held_out: np.ndarray, latent: int, own: int, fit: Counts
) -> float:
    """Of one latent for one class on the held-out rows; NaN where no latent fired on the class."""
    if not fit.fired[latent, own]:
        return float("nan")
    rows = np.flatnonzero(held_out & (labels.classes != NO_CLASS))
    values, positive = codes[:, latent].toarray()[rows, 0], labels.classes[rows] == own
    return auc(values[positive], values[~positive])
