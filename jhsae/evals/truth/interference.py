"""Absorption, hedging, violations and the likeness of siblings.

Absorption (Chanin et al., arXiv 2409.14507): the latent of a parent is silent where a child of it is on, because the
child's latent has taken the parent's direction. SAEBench finds the directions with probes; here they are known. Of each
pair of a true parent p and child c whose latents are matched:

- hard: on tokens with p and c, the share on which p's latent is off and c's latent is on, less the same share of tokens
  with p but not c. It counts only where p's latent is on for some token with p and none of p's children (else it is no
  detector of p) and c's latent holds p's direction, cosine above `tau`; 0 otherwise.
- hard_excess: the same first share, less the share of tokens with p and none of its children on which p's latent is
  off; 0 for a latent that misses p as often with c as alone, which `hard` counts wherever c's latent is on.
- soft: ``1 - E[a_p / m_p | c on] / E[a_p / m_p | no child of p on]`` with a_p the code of p's latent and m_p the true
  magnitude of p: the part of the parent's code that the child takes. Negative where a child adds to it. As a ratio
  it has no units; with a normaliser that scales every token it is that of codes in the scaled units.

A pair that never occurs with, or without, what a share is over has none, and is left out of the means.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from jhsae.evals.truth.counts import column_sums, is_on
from jhsae.evals.truth.forest import Parents
from jhsae.evals.truth.matching import unit
from jhsae.worlds import Hierarchy


class Absorption:
    """Sums over batches for every pair of a true parent and child of which both have a latent.

    Args:
        hierarchy: the true one.
        latent_of: the latent matched with each feature, -1 for none.
    """

    def __init__(self, hierarchy: Hierarchy, latent_of: Int[np.ndarray, "features"]):
        edges = np.array(hierarchy.edges, np.int64).reshape(-1, 2)
        edges = edges[np.all(latent_of[edges] >= 0, axis=1)]
        self.parent, self.child = edges.T
        self.parent_latent, self.child_latent = latent_of[edges].T
        over = np.array(hierarchy.edges, np.int64).reshape(-1, 2)
        self._over = sparse.csr_array(
            (np.ones(len(over)), (over[:, 1], over[:, 0])), shape=(hierarchy.size, hierarchy.size)
        )  # [child, parent]
        names = ("both", "lost", "without", "lost_without", "alone", "alone_on", "with_code", "alone_code")
        self.sums = {name: np.zeros(len(edges)) for name in names}

    def add(self, truth: sparse.csr_array, codes: sparse.csr_array) -> None:
        """Adds a batch: magnitudes ``[tokens, features]`` (0 where off), codes ``[tokens, latents]``."""
        if not len(self.parent):
            return
        on, fires = is_on(truth), is_on(codes)
        crowded = is_on(sparse.csr_array(on @ self._over))  # [tokens, features]: a child of it is on
        alone = on - on.multiply(crowded)
        p, c = on[:, self.parent], on[:, self.child]
        both, lone = p.multiply(c), sparse.csr_array(alone)[:, self.parent]
        p_fires, c_fires = fires[:, self.parent_latent], fires[:, self.child_latent]
        lost = p.multiply(c_fires) - p.multiply(c_fires).multiply(p_fires)  # c's latent on, p's off
        inverse = sparse.csr_array((1 / truth.data, truth.indices, truth.indptr), shape=truth.shape)
        code = codes[:, self.parent_latent].multiply(inverse[:, self.parent])
        for name, value in {
            "both": both,
            "lost": lost.multiply(c),
            "without": p - both,
            "lost_without": lost - lost.multiply(c),
            "alone": lone,
            "alone_on": lone.multiply(p_fires),
            "with_code": code.multiply(c),
            "alone_code": code.multiply(lone),
        }.items():
            self.sums[name] += column_sums(sparse.csr_array(value))

    def summary(
        self, rows: Float[np.ndarray, "latents embed"], features: Float[np.ndarray, "features embed"], tau: float
    ) -> dict[str, Any]:
        """Means over the pairs that have the quantity, and the number of these; None where none has."""
        s, (hard, excess) = self.sums, self.hard(rows, features, tau)
        before, after = _share(s["alone_code"], s["alone"]), _share(s["with_code"], s["both"])
        soft = 1 - _share(after, np.where(before > 0, before, 0))
        return {
            "hard": mean_of(hard),
            "hard_pairs": int(np.isfinite(hard).sum()),
            "hard_excess": mean_of(excess),
            "soft": mean_of(soft),
            "soft_pairs": int(np.isfinite(soft).sum()),
        }

    def hard(
        self, rows: Float[np.ndarray, "latents embed"], features: Float[np.ndarray, "features embed"], tau: float
    ) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
        """`hard` and `hard_excess` of each pair; NaN where they are not defined."""
        s = self.sums
        lost = _share(s["lost"], s["both"])
        cosine = np.sum(unit(rows[self.child_latent]) * unit(features[self.parent]), axis=1)
        absorbs = (s["alone_on"] > 0) & (cosine > tau)
        defined = (s["alone"] > 0) & (s["both"] > 0)  # where p is alone, it is without c

        def of(control: np.ndarray) -> np.ndarray:
            return np.where(defined, np.where(absorbs, lost - control, 0.0), np.nan)

        return of(_share(s["lost_without"], s["without"])), of(1 - _share(s["alone_on"], s["alone"]))


def hedging(
    rows: Float[np.ndarray, "latents embed"],
    features: Float[np.ndarray, "features embed"],
    hierarchy: Hierarchy,
    latent_of: Int[np.ndarray, "features"],
) -> dict[str, float | int | None]:
    """How much of its children the latent of a parent has taken up (Chanin et al., arXiv 2505.11756).

    For each feature with children and a latent: the squared length of the unit latent's projection on the span of the
    children, after the feature's own direction is removed from latent and children. `chance` is the same for what is
    left of the latent turned in a random direction: its squared length times dimensions of the span over embed - 1.
    """
    own, latents, embed = unit(features.astype(np.float64)), unit(rows.astype(np.float64)), features.shape[1]
    found, chance = [], []
    for feature, children in enumerate(hierarchy.below):
        latent = latent_of[feature]
        if not children or latent < 0 or not rows[latent].any():
            continue
        direction = own[feature]
        rest = latents[latent] - (latents[latent] @ direction) * direction
        span = own[list(children)] - np.outer(own[list(children)] @ direction, direction)
        _, sizes, basis = np.linalg.svd(span, full_matrices=False)
        basis = basis[sizes > 1e-6]  # a child along the feature itself spans nothing
        found.append(float(np.sum((basis @ rest) ** 2)))
        chance.append(float(rest @ rest) * len(basis) / max(embed - 1, 1))
    return {"hedging": mean_of(np.array(found)), "chance": mean_of(np.array(chance)), "latents": len(found)}


class Violations:
    """Counts, for every latent with a parent, the tokens on which it is on, and on without its parent."""

    def __init__(self, parents: Parents):
        self.child = np.flatnonzero(parents >= 0)
        self.parent = parents[self.child]
        self.fired, self.without = np.zeros(len(self.child)), np.zeros(len(self.child))

    def add(self, fires: sparse.csr_array) -> None:
        """Adds a batch of ones, ``[tokens, latents]``."""
        own = fires[:, self.child]
        fired = column_sums(own)
        self.fired += fired
        self.without += fired - column_sums(sparse.csr_array(own.multiply(fires[:, self.parent])))

    def rate(self) -> float | None:
        """The share of all firings of latents with a parent on which the parent is off; None without any."""
        total = self.fired.sum()
        return float(self.without.sum() / total) if total else None


def siblings(rows: Float[np.ndarray, "latents embed"], parents: Parents) -> dict[str, float | int | None]:
    """The absolute cosines among the children of one parent: the median over parents of the largest, and the mean.

    Rows of zeros are left out; a parent with fewer than two children does not count.
    """
    live = np.flatnonzero((parents >= 0) & rows.any(axis=1))
    order = live[np.argsort(parents[live], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(parents[order])) + 1)
    largest, means = [], []
    for group in groups:
        if len(group) > 1:
            own = unit(rows[group].astype(np.float64))
            pairs = np.abs(own @ own.T)[np.triu_indices(len(group), 1)]
            largest.append(float(pairs.max()))
            means.append(pairs)
    if not largest:
        return {"largest": None, "mean": None, "parents": 0}
    return {
        "largest": float(np.median(largest)),
        "mean": float(np.concatenate(means).mean()),
        "parents": len(largest),
    }


def mean_of(values: Float[np.ndarray, " n"]) -> float | None:
    """The mean of the values that are defined; None without any."""
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else None


def _share(part: Float[np.ndarray, " n"], whole: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """``part / whole``; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
