"""Agreement of an SAE's tree with the true hierarchy, beside chance.

Every true feature below a root is a unit. Its latent is the one matched with it one to one by cosine, over all features
and latents. `tree`: the root above its latent is the latent matched with a true root above the feature. `edges`: the
direct parent of its latent is the latent matched with a true parent. In a graph where a feature has several parents
any of them counts. A unit without a latent, or whose true parent has none, does not agree.

Chance: on each level of the SAE, the parents are dealt anew among the latents of the level (`nulls.permuted_parents`),
200 times; the matching, the level of each latent and the number of each parent's children stay. So the p-value is exact
for an SAE whose latents of one level are exchangeable, such as a random dictionary.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from jhsae.evals.nulls import compare, many_permuted_parents, permutation_p, sentence
from jhsae.evals.truth.forest import tops_of
from jhsae.worlds import Hierarchy

Kind = Literal["tree", "edges"]
PERMUTATIONS = 200
DRAWS = 20  # of which a one-sided p-value below 0.05 can come
NAMES: dict[Kind, str] = {"tree": "Agreement of roots", "edges": "Agreement of direct parents"}


@dataclass(frozen=True, eq=False)
class Agreement:
    """What `nulls.compare` takes: one value per true feature below a root, and those of each permutation.

    Args:
        units: the features.
        agrees: whether each agrees.
        null: the same for each permutation of the SAE's parents.
    """

    units: Int[np.ndarray, " units"]
    agrees: Bool[np.ndarray, " units"]
    null: Bool[np.ndarray, "permutations units"]


def agreement(
    kind: Kind,
    latent_of: Int[np.ndarray, "features"],
    parents: Int[np.ndarray, "latents"],
    hierarchy: Hierarchy,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Agreement:
    """The units of `tree` or `edges`, and of their null.

    Args:
        kind: whether the latents' roots are compared, or their direct parents.
        latent_of: the latent matched with each true feature, -1 for none.
        parents: the parent of each latent, -1 for a root.
        hierarchy: the true one.
        permutations: how often the parents are dealt anew.
        seed: of the permutations.
    """
    units = np.flatnonzero(hierarchy.levels > 0)
    is_root = hierarchy.levels == 0
    direct = np.array(hierarchy.edges, np.int64).reshape(-1, 2)[:, ::-1]
    # pairs of a feature and one that counts as above it
    child, parent = np.nonzero(hierarchy.ancestors & is_root) if kind == "tree" else direct.T
    place = np.searchsorted(units, child)
    wanted = (latent_of[child] >= 0) & (latent_of[parent] >= 0)

    def agrees(own: np.ndarray) -> np.ndarray:
        over = tops_of(own) if kind == "tree" else own
        hit = wanted & (over[latent_of[child]] == latent_of[parent]) if len(own) else wanted
        return np.bincount(place[hit], minlength=len(units)) > 0

    rng = np.random.default_rng(seed)
    null = [agrees(own) for own in many_permuted_parents(parents, rng, permutations)]
    return Agreement(units, agrees(parents), np.array(null).reshape(permutations, len(units)))


def summary(kind: Kind, found: Agreement, hierarchy: Hierarchy) -> dict[str, Any] | None:
    """The share of units that agree and its chance, overall and by level of the truth; None without units.

    `sentence` says the same in words, with an interval for which the units below one root, the first of several, are
    resampled together; it is None where there are too few permutations for a verdict.
    """
    if not len(found.units):
        return None
    own = hierarchy.levels[found.units]
    by_level = {str(level): _row(found, own == level) for level in np.unique(own)}
    whole = _row(found, np.ones(len(own), bool))
    return whole | {"sentence": _sentence(kind, found, hierarchy), "by_level": by_level}


def _sentence(kind: Kind, found: Agreement, hierarchy: Hierarchy) -> str | None:
    if len(found.null) < DRAWS:
        return None
    roots = hierarchy.roots[np.argmax(hierarchy.ancestors[np.ix_(found.units, hierarchy.roots)], axis=1)]
    result = compare(found.agrees, found.null, alternative="greater", groups=roots)
    return sentence(result, NAMES[kind])


def _row(found: Agreement, which: Bool[np.ndarray, " units"]) -> dict[str, float | int]:
    share, null = float(found.agrees[which].mean()), found.null[:, which].mean(axis=1)
    return {"share": share, "features": int(which.sum()), **_chance(share, null)}


def _chance(share: float, null: Float[np.ndarray, " permutations"]) -> dict[str, float | int]:
    p95, p99 = np.percentile(null, [95, 99])
    return {
        "chance": float(null.mean()),
        "chance_p95": float(p95),
        "chance_p99": float(p99),
        "p": permutation_p(share, null, "greater"),
    }
