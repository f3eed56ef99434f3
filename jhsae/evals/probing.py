"""k-sparse probing: how well k latents tell a class of tokens from the others (SAEBench; Gurnee et al., 2305.01610).

Per class, as many rows of the other classes as the class has, spread evenly over them. On the training words the k
latents of largest |mean code on the class - mean code on the others| are selected and a logistic regression is fitted;
on the other words its accuracy (chance: 0.5) and F1 count. The split of words is drawn anew for every seed. Beside it
stand a probe on all numbers of the raw activations, and both under permuted labels.

SAEBench 0.6 splits by text, not by word: there a latent that reads one frequent word counts as a feature of its class.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import MinLen
from jaxtyping import Bool, Float, Int64
from scipy import sparse

from jhsae.evals.groups import check_rows_of, code_matrix, defined, groups, mean_of, measured
from jhsae.evals.labels import RowLabels
from jhsae.features.firings import Firings
from jhsae.ranges import Count, ranged
from jhsae.sae import Forest
from jhsae.teacher.logistic import Scores, logistic, scores

SEEDS = 5
MOST_ROWS = 1000  # of a class, in each half
UNDEFINED = Scores(float("nan"), float("nan"))


class Task(NamedTuple):
    """One class against the others: rows to fit on and to test on, and which of them are of the class."""

    fit: Int64[np.ndarray, " fit"]
    fit_positive: Bool[np.ndarray, " fit"]
    test: Int64[np.ndarray, " test"]
    test_positive: Bool[np.ndarray, " test"]


@ranged
def sparse_probing(
    firings: Firings,
    activations: Float[np.ndarray, "rows embed"],
    labels: RowLabels,
    tree: Forest | None,
    ks: Annotated[Sequence[Count], MinLen(1)] = (1, 2, 5),
    seeds: Count = SEEDS,
    most_rows: Count = MOST_ROWS,
) -> dict[str, Any]:
    """Accuracy and F1 per class of k-sparse probes, of a probe on the activations, and of both under permuted labels.

    Args:
        firings: of the SAE on the first rows of a store.
        activations: the same rows, in the language model's units.
        labels: of the same rows.
        tree: ``sae.tree``; all latents, parents and atoms are probed apart.
        ks: numbers of latents; more than there are means all.
        seeds: splits of the words, and permutations.
        most_rows: rows of a class that are used in each half.

    Returns:
        ``activations`` and, per group, ``k=1`` and so on, each with ``accuracy`` and ``f1`` in the form of
        `jhsae.evals.groups`: `values` are means over seeds, `seeds` has the values of each, `null_values` those under
        permuted labels. A class without rows in a half has None.

    Raises:
        UserError: labels or activations of other rows, or labels of fewer than two classes.
    """
    check_rows_of(labels, firings.measured)
    check_rows_of(labels, len(activations), "activations")
    codes = code_matrix(firings)
    own = groups(tree, firings.size)
    own = own if tree is None else {"all": slice(0, firings.size)} | own
    runs: dict[bool, list[dict[str, list[Scores]]]] = {False: [], True: []}
    for seed in range(seeds):
        for is_null, draw in ((False, labels), (True, labels.permuted(seed))):
            tasks = class_tasks(draw, seed, most_rows)
            found = {"activations": [_dense(activations, t) for t in tasks]}
            for name, group in own.items():
                found |= _sparse(codes[:, group].tocsr(), tasks, name, ks)
            runs[is_null].append(found)
    return {"classes": list(labels.names), "probes": {n: _summary(labels.names, runs, n) for n in runs[False][0]}}


def class_tasks(labels: RowLabels, seed: int, most_rows: int = MOST_ROWS) -> list[Task | None]:
    """For every class its balanced rows and those of the others in both halves; None where it has none in one."""
    half, rng = labels.half(seed), np.random.default_rng(seed)
    tasks: list[Task | None] = []
    for own in range(len(labels.names)):
        parts = [_balanced(labels, own, part, rng, most_rows) for part in (half, ~half)]
        fit, test = parts
        tasks.append(Task(*fit, *test) if all(p.any() and not p.all() for _, p in parts) else None)
    return tasks


def selected(
    codes: sparse.csr_matrix, positive: Bool[np.ndarray, " rows"], k: int, signed: bool = False
) -> Int64[np.ndarray, " k"]:
    """The k columns whose mean differs most between positives and negatives, most first; `signed`: upwards."""
    difference = np.asarray(codes[positive].mean(axis=0) - codes[~positive].mean(axis=0))[0]
    return np.argsort(-(difference if signed else np.abs(difference)), kind="stable")[:k]


def _balanced(
    labels: RowLabels, own: int, part: np.ndarray, rng: np.random.Generator, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` rows of a class, and as many of the others, spread evenly over those."""
    rows = rng.permutation(np.flatnonzero(part & (labels.classes == own)))[:most]
    others = [c for c in labels.present() if c != own]
    pools = [rng.permutation(np.flatnonzero(part & (labels.classes == c))) for c in others]
    turns = [(turn, place, row) for place, pool in enumerate(pools) for turn, row in enumerate(pool[: len(rows)])]
    negative = np.array([row for _, _, row in sorted(turns)[: len(rows)]], np.int64)
    rows = np.concatenate([rows.astype(np.int64), negative])
    return rows, labels.classes[rows] == own


def _dense(x: np.ndarray, t: Task | None) -> Scores:
    if t is None:
        return UNDEFINED
    probe = logistic(x[t.fit].astype(np.float64), t.fit_positive)
    return scores(probe(x[t.test].astype(np.float64)) > 0, t.test_positive)


def _sparse(
    codes: sparse.csr_matrix, tasks: Sequence[Task | None], group: str, ks: Iterable[int]
) -> dict[str, list[Scores]]:
    found: dict[str, list[Scores]] = {f"{group}, k={k}": [] for k in ks}
    for t in tasks:
        order = None if t is None else selected(codes[t.fit], t.fit_positive, max(ks))
        for k in ks:
            if t is None or order is None:
                found[f"{group}, k={k}"].append(UNDEFINED)
                continue
            fit, test = (codes[rows][:, order[:k]].toarray() for rows in (t.fit, t.test))
            found[f"{group}, k={k}"].append(scores(logistic(fit, t.fit_positive)(test) > 0, t.test_positive))
    return found


def _summary(
    names: Sequence[str], runs: dict[bool, list[dict[str, list[Scores]]]], probe: str
) -> dict[str, dict[str, Any]]:
    """Accuracy and F1 of one probe over all seeds."""
    result = {}
    for metric in Scores._fields:
        own, null = (np.array([[getattr(s, metric) for s in run[probe]] for run in runs[b]]) for b in (False, True))
        means = np.array([np.nan if (mean := mean_of(column)) is None else mean for column in own.T])
        result[metric] = measured(names, means, null, True) | {"seeds": [defined(run) for run in own]}
    return result
