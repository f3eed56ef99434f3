"""Stability across seeds: how much two SAEs trained on one store have in common, beside what chance has.

Features are matched one to one by the cosine of their decoder rows in the language model's units (the assignment with
the largest sum). Of the matched pairs: the cosine, F1 of firing and the correlation of the codes on the same rows. Of
the matched experts of two hierarchical SAEs, also their atoms, matched among themselves, and their subspaces: with A
and B orthonormal bases, the overlap ``|A B^T|_F^2 / sub`` and the first canonical cosine, the largest singular value of
``A B^T`` (arXiv 2606.12138 finds subspaces reproducible where single features are not).

Nulls: the cosines of a matching with the second dictionary turned by a random rotation, and everything else of random
pairs of the same features and experts. A feature that is dead on the given rows is left out on either side.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from jhsae.data import AbstractNormalizer, Store, times
from jhsae.errors import UserError
from jhsae.evals.groups import code_matrix, divided, groups, measured
from jhsae.features.decoder import decoder_in_lm_units
from jhsae.features.firings import firing_table
from jhsae.ranges import Count, Seed, ranged
from jhsae.sae import AbstractSAE, HierarchicalSAE

DRAWS, ROTATIONS = 20, 3
MOST = 2**14  # rows of one side of an assignment, whose cost is cubic
CLOSE, SAME = 0.7, 0.9
RANK = 1e-6  # a singular value below this part of the largest is rounding


class Side(NamedTuple):
    """One of two SAEs: its rows in the language model's units, and its codes on the common rows of a store."""

    rows: Float[np.ndarray, "features embed"]
    codes: sparse.csc_matrix

    def alive(self, group: slice) -> Int64[np.ndarray, " alive"]:
        """The features of a group that fire and have a direction."""
        fires = np.diff(self.codes.indptr)[group] > 0
        return np.flatnonzero(fires & self.rows[group].any(axis=1)) + group.start


class Pairs(NamedTuple):
    """Features of the first and the second SAE, one to one, and the cosines of their rows."""

    first: Int64[np.ndarray, " pairs"]
    second: Int64[np.ndarray, " pairs"]
    cosine: Float[np.ndarray, " pairs"]


@ranged
def stability(
    first: AbstractSAE,
    second: AbstractSAE,
    normalizers: tuple[AbstractNormalizer, AbstractNormalizer],
    store: Store,
    rows: Count | None = None,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Features and subspaces that two SAEs have in common.

    Args:
        first: a trained SAE, `for_inference`.
        second: another, such as the same config with another seed; of any size.
        normalizers: their fitted input normalisers.
        store: activations that both read; held-out ones, for the firings.
        rows: of the store, on which codes are compared; None for all.
        seed: of the nulls.

    Returns:
        For two `HierarchicalSAE` ``parents``, ``atoms`` (of matched parents) and ``subspaces``; for other trees of one
        depth the features of each level (`groups.groups`), whatever their parents; else ``latents``. Each with metrics
        in the form of `jhsae.evals.groups`, whose units are features of the first SAE, their `partners` in the second,
        and the shares of cosines above 0.7 and 0.9.

    Raises:
        UserError: an SAE of another width than the store, or more features to match than `MOST`.
    """
    for name, sae in (("first", first), ("second", second)):
        if sae.embed != store.embed:
            raise UserError(
                f"the {name} SAE reads vectors of {sae.embed} numbers, but {store.path} holds activations of "
                f"{store.embed}; write two SAEs of one store"
            )
    count = min(rows or store.rows, store.rows)
    a, b = (
        Side(decoder_in_lm_units(sae, n, store), code_matrix(firing_table(sae, n, store, count)))
        for sae, n in zip((first, second), normalizers, strict=True)
    )
    rng = np.random.default_rng(seed)
    if not (isinstance(first, HierarchicalSAE) and isinstance(second, HierarchicalSAE)):
        own, others = groups(first.tree, first.features), groups(second.tree, second.features)
        if own.keys() != others.keys():  # of another depth
            own, others = groups(None, first.features), groups(None, second.features)
        return {name: _features(a, b, group, others[name], rng)[0] for name, group in own.items()}
    parents, pairs = _features(a, b, slice(0, first.experts), slice(0, second.experts), rng)
    up, other_up = (_in_lm_units(sae.up, n) for sae, n in zip((first, second), normalizers, strict=True))
    return {
        "parents": parents,
        "atoms": _atoms(a, b, pairs, (first, second), rng),
        "subspaces": subspaces(up, other_up, pairs.first, pairs.second, rng),
    }


def match(first: Float[np.ndarray, "first embed"], second: Float[np.ndarray, "second width"]) -> Pairs:
    """The one-to-one matching of rows whose cosines have the largest sum; as many pairs as the smaller side has rows.

    Args:
        first: rows, [first, embed].
        second: rows, [second, embed].

    Raises:
        UserError: rows of different widths, or more of them than `MOST`.
    """
    if first.shape[1:] != second.shape[1:]:
        raise UserError(
            f"the rows have {first.shape[1]} and {second.shape[1]} numbers; write two dictionaries of one width"
        )
    if (most := max(len(first), len(second))) > MOST:
        raise UserError(f"{most:,} rows are to be matched one to one, expected at most {MOST:,}; write fewer")
    unit = [np.nan_to_num(divided(r, np.linalg.norm(r, axis=1, keepdims=True))) for r in (first, second)]
    cosines = unit[0] @ unit[1].T
    a, b = linear_sum_assignment(cosines, maximize=True)
    return Pairs(a.astype(np.int64), b.astype(np.int64), cosines[a, b])


def agreement(
    first: sparse.csc_matrix, second: sparse.csc_matrix
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """F1 of firing and Pearson's correlation of the codes, column by column; NaN where one is not defined."""
    fired = [(m > 0).astype(np.float64) for m in (first, second)]
    f1 = divided(2 * _sum(fired[0].multiply(fired[1])), _sum(fired[0]) + _sum(fired[1]))
    rows = first.shape[0]
    means = [_sum(m) / rows for m in (first, second)]
    variances = [_sum(m.multiply(m)) / rows - mean**2 for m, mean in zip((first, second), means, strict=True)]
    covariance = _sum(first.multiply(second)) / rows - means[0] * means[1]
    return f1, divided(covariance, np.sqrt(np.maximum(variances[0], 0) * np.maximum(variances[1], 0)))


def subspaces(
    first: Float[np.ndarray, "first sub embed"],
    second: Float[np.ndarray, "second other_sub embed"],
    experts: Int64[np.ndarray, " pairs"],
    partners: Int64[np.ndarray, " pairs"],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Overlap and first canonical cosine of the subspaces of paired experts, beside random pairs of the same experts.

    Args:
        first: rows that span the subspace of each expert, ``sae.up`` in the language model's units.
        second: those of the other SAE.
        experts: experts of the first SAE.
        partners: the experts of the second that they are paired with.
        rng: of the null.
    """
    bases = [_bases(up.astype(np.float64)) for up in (first, second)]

    def of(own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b = bases[0][experts], bases[1][own]
        singular = np.linalg.svd(np.einsum("esd,etd->est", a, b), compute_uv=False)
        sub = np.maximum(*(np.sum(basis.any(axis=2), axis=1) for basis in (a, b)))
        return divided((singular**2).sum(axis=1), sub), np.where(sub > 0, singular[:, 0], np.nan)

    own, null = of(partners), [of(other) for other in _shifted(partners, rng)]
    units = experts.tolist()
    return {
        "overlap": measured(units, own[0], [draw[0] for draw in null], False),
        "first_cosine": measured(units, own[1], [draw[1] for draw in null], False),
        "partners": partners.tolist(),
    }


def _features(a: Side, b: Side, own: slice, other: slice, rng: np.random.Generator) -> tuple[dict[str, Any], Pairs]:
    """One group of features matched with another."""
    alive, others = a.alive(own), b.alive(other)
    found = match(a.rows[alive], b.rows[others])
    turned = [match(a.rows[alive], _rotated(b.rows[others], rng)).cosine for _ in range(ROTATIONS)]
    pairs = Pairs(alive[found.first], others[found.second], found.cosine)
    shuffled = [agreement(a.codes[:, pairs.first], b.codes[:, p]) for p in _shifted(pairs.second, rng)]
    return _described(a, b, pairs, turned, shuffled), pairs


def _atoms(
    a: Side, b: Side, parents: Pairs, saes: tuple[HierarchicalSAE, HierarchicalSAE], rng: np.random.Generator
) -> dict[str, Any]:
    """The atoms of matched parents, matched among themselves."""

    def within(partners: np.ndarray) -> Pairs:
        parts = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
        for parent, partner in zip(parents.first.tolist(), partners.tolist(), strict=True):
            own, other = (
                side.alive(slice(start := sae.experts + expert * sae.atoms, start + sae.atoms))
                for side, sae, expert in zip((a, b), saes, (parent, partner), strict=True)
            )
            found = match(a.rows[own], b.rows[other])
            parts.append(Pairs(own[found.first], other[found.second], found.cosine))
        return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    null = [within(partners) for partners in _shifted(parents.second, rng, ROTATIONS)]
    agree = [agreement(a.codes[:, pairs.first], b.codes[:, pairs.second]) for pairs in null]
    return _described(a, b, within(parents.second), [pairs.cosine for pairs in null], agree)


def _described(
    a: Side, b: Side, pairs: Pairs, cosines: list[np.ndarray], agree: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    f1, correlation = agreement(a.codes[:, pairs.first], b.codes[:, pairs.second])
    units, some = pairs.first.tolist(), len(pairs.cosine) > 0
    return {
        "cosine": measured(units, pairs.cosine, cosines, False),
        "f1": measured(units, f1, [draw[0] for draw in agree], False),
        "correlation": measured(units, correlation, [draw[1] for draw in agree], False),
        "above_0.7": float(np.mean(pairs.cosine > CLOSE)) if some else None,
        "above_0.9": float(np.mean(pairs.cosine > SAME)) if some else None,
        "partners": pairs.second.tolist(),
    }


def _shifted(partners: np.ndarray, rng: np.random.Generator, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """The same partners in a random order and shifted, so that nothing keeps its own; none for fewer than two."""
    for shift in rng.permutation(np.arange(1, len(partners)))[:draws]:
        order = rng.permutation(len(partners))
        shuffled = np.empty_like(partners)
        shuffled[order] = partners[np.roll(order, shift)]
        yield shuffled


def _rotated(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rows under a random rotation: the angles among them stay."""
    q, r = np.linalg.qr(rng.normal(size=(rows.shape[1], rows.shape[1])))
    return rows @ (q * np.sign(np.diag(r)))


def _bases(up: np.ndarray) -> np.ndarray:
    """Orthonormal rows of the same span, [experts, sub, embed]; rows of zeros where the rank is less than sub."""
    _, singular, rows = np.linalg.svd(up, full_matrices=False)
    kept = singular > RANK * np.maximum(singular[:, :1], 1e-30)
    return rows * kept[..., None]


def _in_lm_units(up: Any, normalizer: AbstractNormalizer) -> np.ndarray:
    """The spans of `up` in the language model's units; a factor per token does not turn them."""
    affine = normalizer.affine()
    return np.asarray(up if affine is None else times(up, affine.inverse), np.float64)


def _sum(m: Any) -> np.ndarray:
    return np.asarray(m.sum(axis=0), np.float64).ravel()
