"""Recovery by level of the hierarchy: each level of the SAE against the same level of the truth, and the roots.

Own-level scores compare level l of the SAE (0: latents without a parent) with level l of the truth alone, so that a
tree whose parents are leaves of the truth scores low. An SAE without a tree has one level, all of its latents.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from jhsae.evals.truth.counts import Firing, at, row_maxima
from jhsae.evals.truth.matching import Matching
from jhsae.worlds import Hierarchy

FOUND = 0.5  # the F1 above which a root is found


def by_level(
    cosines: Float[np.ndarray, "features latents"],
    firing: Firing,
    levels: Int[np.ndarray, "features"],
    latent_levels: Int[np.ndarray, "latents"],
) -> list[dict[str, Any]]:
    """One row for each level of the truth.

    `mcc` and `f1` compare it with the same level of the SAE, `any_mcc` and `any_f1` with all latents; None where that
    level of the SAE, or the SAE, is empty. F1 is that of each latent as a detector of its best feature *in this level*,
    the mean over latents as in SAELens, so that a superfluous latent counts; `matched_f1` is the mean over the level's
    features of the F1 of the latent that the matching of the MCC gives each, 0 for a feature without one, so that a
    missing feature counts; `feature_f1` is the best F1 that any latent has for a feature, the mean over features. Both
    are lower bounds where not all pairs are counted.
    """
    f1 = firing.f1()
    best = row_maxima(f1)
    return [
        {
            "level": int(level),
            "features": int(np.sum(levels == level)),
            "latents": int(np.sum(latent_levels == level)),
            **_scores(cosines, firing, f1, levels == level, latent_levels == level, ""),
            **_scores(cosines, firing, f1, levels == level, np.ones(len(latent_levels), bool), "any_"),
            "feature_f1": float(best[levels == level].mean()),
        }
        for level in range(levels.max(initial=-1) + 1)
    ]


def _scores(
    cosines: np.ndarray,
    firing: Firing,
    f1: sparse.csr_array,
    features: np.ndarray,
    latents: np.ndarray,
    prefix: str,
) -> dict[str, float | None]:
    """MCC and mean F1 of some latents against some features, and of these features' latents."""
    table = cosines[np.ix_(features, latents)]
    if not table.size:
        return {f"{prefix}mcc": None, f"{prefix}f1": None, f"{prefix}matched_f1": None}
    matching = Matching(table)
    best = np.zeros(len(latents), np.int64)
    best[latents] = np.flatnonzero(features)[matching.best]
    scores = firing.classification(best)["f1"]
    own, matched = (np.flatnonzero(some)[pair] for some, pair in zip((features, latents), matching.pairs, strict=True))
    return {
        f"{prefix}mcc": matching.mcc,
        f"{prefix}f1": float(scores[latents].mean()),
        f"{prefix}matched_f1": float(at(f1, own, matched).sum() / features.sum()),
    }


def roots_found(
    f1: sparse.csr_array, hierarchy: Hierarchy, latent_levels: Int[np.ndarray, "latents"]
) -> dict[str, dict[str, float | int] | None]:
    """How many true roots some latent detects: for each group of latents the share found and the mean best F1.

    A root is found by a group when a latent of it has an F1 above 0.5 for it, that is when both are on on more than a
    third of the tokens on which either is.

    Args:
        f1: of every feature with every latent.
        hierarchy: the true one.
        latent_levels: of the SAE's own tree.

    Returns:
        `any`: all latents. `parents`: those without a parent, None for a flat SAE. `prefix`: the first R latents, where
        R is the number of roots, for flat and Matryoshka SAEs, whose first latents are the most general; None for
        an SAE with a tree.
    """
    roots, has_tree = f1[hierarchy.roots], bool(np.any(latent_levels > 0))
    return {
        "any": _found(roots),
        "parents": _found(roots[:, np.flatnonzero(latent_levels == 0)]) if has_tree else None,
        "prefix": None if has_tree else _found(roots[:, : roots.shape[0]]),
    }


def _found(f1: sparse.csr_array) -> dict[str, float | int]:
    best = row_maxima(sparse.csr_array(f1))
    return {"roots": len(best), "found": float(np.mean(best > FOUND)), "best_f1": float(best.mean())}
