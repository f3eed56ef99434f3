"""Absorption: another latent takes over the work of a class's own latents (Chanin et al., arXiv 2409.14507).

The rules are those of SAEBench 0.6, with the probe of a class given instead of trained: the readouts of a `Teacher`'s
parents, whose tokens are the classes (`jhsae.evals.concept_labels`). The main latents of a class are those of its
k-sparse probe, k growing while F1 on the held-out words rises by more than `jump`. Then, for every held-out token of
the class on which the probe fires, with the probe of norm 1 and a latent's contribution ``code * row . probe``:

- full absorption: no main latent fires, the latent that contributes most has a cosine of at least `full_cosine` with
  the probe, and contributes at least `proportion` of the token's projection on it;
- absorption fraction: of what the main latents and at most `absorbers` others (cosine at least `fraction_cosine`)
  contribute, the part of the others, where those contribute at least `proportion` of the projection.

The null keeps the words and the main latents of a class and takes the probe of another class, on the words on which
that one fires. (On words where it does not fire its projection is small, and any latent makes up 40 % of it.) A readout
has no intercept: projections are measured from a centre, by default the mean activation, and a probe fires beyond the
middle between its mean on the training words of its class and on those of the others.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Bool, Float
from scipy import sparse

from jhsae.errors import UserError
from jhsae.evals.groups import check_rows_of, code_matrix, divided, groups, measured
from jhsae.evals.labels import RowLabels
from jhsae.evals.probing import Task, class_tasks, selected
from jhsae.features.firings import Firings
from jhsae.ranges import Count, Fraction, Seed, ranged
from jhsae.sae import Forest
from jhsae.teacher.logistic import logistic, scores

OFF = 1e-8  # a code below it is silent, as in SAEBench
Cosine = Annotated[float, Ge(-1), Le(1)]


@ranged
@dataclass(frozen=True)
class AbsorptionRules:
    """The thresholds, SAEBench's by default.

    Args:
        full_cosine: the least cosine of a fully absorbing latent with the probe.
        fraction_cosine: the least cosine of a latent that counts in the absorption fraction.
        proportion: the least share of the token's projection that the absorbing latents contribute.
        absorbers: at most this many absorbing latents count in the fraction, those that contribute most.
        jump: the rise in F1, above which the class gets another main latent.
        most: at most this many main latents per class.
    """

    full_cosine: Cosine = 0.025
    fraction_cosine: Cosine = 0.1
    proportion: Fraction = 0.4
    absorbers: Count = 3
    jump: Fraction = 0.03
    most: Count = 10


@ranged
def absorption(
    firings: Firings,
    dictionary: Float[np.ndarray, "features width"],
    activations: Float[np.ndarray, "rows embed"],
    labels: RowLabels,
    probes: Float[np.ndarray, "probes covector"],
    tree: Forest | None,
    centre: Float[np.ndarray, " embed"] | None = None,
    rules: AbsorptionRules = AbsorptionRules(),
    seed: Seed = 0,
) -> dict[str, Any]:
    """Rates of full absorption and mean fractions per class, beside those with the probes of other classes.

    Args:
        firings: of the SAE on the first rows of a store.
        dictionary: its rows in the language model's units (`jhsae.features.decoder.decoder_in_lm_units`).
        activations: the same rows, in those units.
        labels: of the same rows.
        probes: a covector per class of `labels`, such as ``teacher.readouts``; of any length.
        tree: ``sae.tree``: main latents among all latents, and among the parents alone. Any latent may absorb.
        centre: what projections are measured from; None for the mean of `activations`.
        rules: the thresholds.
        seed: of the split of the words.

    Returns:
        Per choice of main latents (``latents``, or ``all`` and ``parents``) ``full`` and ``fraction`` in the form of
        `jhsae.evals.groups`, each draw of the null another pairing of classes and probes, ``main_latents`` and
        ``tokens`` (held-out ones on which the probe fires). None for a class without rows, without a latent that fires
        more on it than elsewhere, or on none of whose held-out tokens the probe fires.

    Raises:
        UserError: arrays that do not belong together, or labels of fewer than two classes.
    """
    check_rows_of(labels, firings.measured)
    check_rows_of(labels, len(activations), "activations")
    _check_sizes(firings, dictionary, activations, labels, probes)
    codes = code_matrix(firings).tocsr()
    x = activations.astype(np.float64) - (activations.mean(axis=0, dtype=np.float64) if centre is None else centre)
    unit = np.nan_to_num(divided(probes, np.linalg.norm(probes, axis=1, keepdims=True)))
    tasks = class_tasks(labels, seed)
    middle = np.array([np.nan if t is None else _middle(x, unit[c], t) for c, t in enumerate(tasks)])
    fires = [
        [np.empty(0, np.int64) if t is None else _fires(x, unit[p], middle[p], t) for p in range(len(probes))]
        for t in tasks
    ]
    own = groups(tree, firings.size)
    own = own if tree is None else {"all": slice(0, firings.size), "parents": own["parents"]}
    found = {}
    for name, group in own.items():
        main = [[] if t is None else main_latents(codes, t, group, rules) for t in tasks]

        def rates(shift: int, main: list[list[int]] = main) -> np.ndarray:
            """With the probe of the class `shift` places on."""
            pairs = [(c, (c + shift) % len(probes)) for c in range(len(probes))]
            return np.array([_rate(codes, dictionary, x, fires[c][p], main[c], unit[p], rules) for c, p in pairs])

        measurement, null = rates(0), [rates(shift) for shift in range(1, len(probes))]
        found[name] = {
            metric: measured(labels.names, measurement[:, i], [draw[:, i] for draw in null], True)
            for i, metric in enumerate(("full", "fraction"))
        } | {"main_latents": main, "tokens": [len(own_probe[c]) for c, own_probe in enumerate(fires)]}
    return {"classes": list(labels.names), "groups": found}


def token_absorption(
    codes: sparse.csr_matrix,
    dictionary: Float[np.ndarray, "features embed"],
    x: Float[np.ndarray, "rows embed"],
    probe: Float[np.ndarray, " embed"],
    main: list[int],
    rules: AbsorptionRules,
) -> tuple[Bool[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Whether each token is fully absorbed, and its absorption fraction, for a probe of norm 1.

    Args:
        codes: of the tokens, ``[rows, features]``, not negative.
        dictionary: rows in the units of `x`.
        x: the tokens' activations, from their centre.
        probe: a covector of norm 1.
        main: the main latents of the class.
        rules: the thresholds.
    """
    along = dictionary.astype(np.float64) @ probe
    cosines = np.nan_to_num(divided(along, np.linalg.norm(dictionary.astype(np.float64), axis=1)))
    is_main = np.zeros(len(along), bool)
    is_main[main] = True
    full, fraction = np.zeros(len(x), bool), np.zeros(len(x))
    for row, projection in enumerate(x @ probe):
        held = slice(codes.indptr[row], codes.indptr[row + 1])
        latents, values = codes.indices[held], codes.data[held]
        given, own = values * along[latents], is_main[latents]
        if projection <= 0 or not len(latents):
            continue
        top = int(given.argmax())
        silent = not np.any(values[own] >= OFF)
        full[row] = (
            silent and cosines[latents[top]] >= rules.full_cosine and given[top] / projection >= rules.proportion
        )
        able = given[~own & (cosines[latents] >= rules.fraction_cosine) & (given > 0)]
        fraction[row] = _fraction(given[own].sum(), np.sort(able)[-rules.absorbers :].sum(), projection, rules)
    return full, fraction


def main_latents(codes: sparse.csr_matrix, t: Task, group: slice, rules: AbsorptionRules) -> list[int]:
    """The latents of the k-sparse probe of a class with the last k before F1 on the held-out words stops to jump."""
    fit, test = codes[t.fit][:, group], codes[t.test][:, group]
    order = selected(fit, t.fit_positive, rules.most, signed=True)
    rises = np.asarray(fit[t.fit_positive].mean(axis=0) - fit[~t.fit_positive].mean(axis=0))[0][order] > 0
    order = order[rises]
    f1 = []
    for k in range(1, len(order) + 1):
        probe = logistic(fit[:, order[:k]].toarray(), t.fit_positive, balanced=True)
        f1.append(scores(probe(test[:, order[:k]].toarray()) > 0, t.test_positive).f1)
    return [int(group.start + latent) for latent in order[: split_size(f1, rules.jump)]]


def split_size(f1: list[float], jump: float) -> int:
    """How many latents a class is split into: the last k whose F1 is more than `jump` above that of k - 1."""
    size = 1 if f1 else 0
    while size < len(f1) and f1[size] > f1[size - 1] + jump:
        size += 1
    return size


def _fraction(main: float, others: float, projection: float, rules: AbsorptionRules) -> float:
    if main >= projection or others / projection < rules.proportion:
        return 0.0
    if main <= 0:
        return 1.0
    taken = min(others, projection - main)
    return taken / (taken + main)


def _middle(x: np.ndarray, probe: np.ndarray, t: Task) -> float:
    """The projection above which a probe fires."""
    fit = x[t.fit] @ probe
    return float(fit[t.fit_positive].mean() + fit[~t.fit_positive].mean()) / 2


def _fires(x: np.ndarray, probe: np.ndarray, middle: float, t: Task) -> np.ndarray:
    """The held-out rows of a class on which a probe fires; none for the probe of a class without rows."""
    rows = t.test[t.test_positive]
    return rows[x[rows] @ probe > middle]


def _rate(
    codes: sparse.csr_matrix,
    dictionary: np.ndarray,
    x: np.ndarray,
    rows: np.ndarray,
    main: list[int],
    probe: np.ndarray,
    rules: AbsorptionRules,
) -> tuple[float, float]:
    if not len(rows) or not main or not probe.any():
        return float("nan"), float("nan")
    full, fraction = token_absorption(codes[rows], dictionary, x[rows], probe, main, rules)
    return float(full.mean()), float(fraction.mean())


def _check_sizes(
    firings: Firings, dictionary: np.ndarray, activations: np.ndarray, labels: RowLabels, probes: np.ndarray
) -> None:
    if len(dictionary) != firings.size or dictionary.shape[1] != activations.shape[1]:
        raise UserError(
            f"the dictionary has shape {list(dictionary.shape)}, but there are codes of {firings.size} latents on "
            f"activations of {activations.shape[1]} numbers; write the dictionary of the SAE that made the codes"
        )
    if probes.shape != (len(labels.names), activations.shape[1]):
        raise UserError(
            f"the probes have shape {list(probes.shape)}, expected [{len(labels.names)}, {activations.shape[1]}]: one "
            "per class of the labels; write the readouts of the teacher whose tokens are the labels"
        )
