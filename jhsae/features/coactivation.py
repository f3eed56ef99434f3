"""Co-activation of atoms and their parents, over all tokens of a selection.

Pearson's correlation of the two codes, ``cov(p, a) / (std(p) std(a))``, and their cosine
``sum p a / sqrt(sum p^2 sum a^2)``; a token on which neither fires counts as 0, 0. The two numbers are what
SAEDashboard writes as Pearson and l1 of correlated features (its l1 is a cosine). Sums are float64.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from jhsae.features.contexts import children
from jhsae.features.spill import SpilledFirings
from jhsae.sae import Forest


class Links(NamedTuple):
    """The features that a feature is linked to: their indices in their own source set, Pearson, cosine."""

    indices: list[int]
    pearson: list[float]
    cosine: list[float]


def no_links(feature: int) -> Links:
    """A flat SAE's features have no hierarchy."""
    return Links([], [], [])


@dataclass(frozen=True, eq=False)
class CoActivation:
    """Of each feature and its parent; 0 for a root and for a feature that never fired.

    Args:
        tree: which parents these are.
        pearson: by feature.
        cosine: by feature.
    """

    tree: Forest
    pearson: Float64[np.ndarray, " features"]
    cosine: Float64[np.ndarray, " features"]

    def down(self, index: int, level: int = 0) -> Links:
        """The children of a row that fired, by their places in the next level, the most correlated first.

        Args:
            index: the place of the row among those of its level.
            level: 0 for an expert.
        """
        below = np.array(children(self.tree, self.tree.blocks[level].start + index))
        own = below[self.cosine[below] != 0]
        own = own[np.argsort(-self.pearson[own], kind="stable")]
        places = own - self.tree.blocks[level + 1].start
        return Links(places.tolist(), self.pearson[own].tolist(), self.cosine[own].tolist())

    def up(self, index: int, level: int = 1) -> Links:
        """The parent of a row, by its place in the level above, if the row fired at all.

        Args:
            index: the place of the row among those of its level.
            level: 1 for an atom of an expert.
        """
        own = self.tree.blocks[level].start + index
        if not self.cosine[own]:
            return no_links(index)
        place = int(self.tree.parents[own]) - self.tree.blocks[level - 1].start
        return Links([place], [float(self.pearson[own])], [float(self.cosine[own])])


def co_activation(codes: SpilledFirings, tree: Forest) -> CoActivation:
    """Reads the records once.

    Args:
        codes: of an SAE.
        tree: ``sae.tree``.
    """
    sums, squares, products = np.zeros((3, tree.size))
    for records in codes.parts("counting"):
        feature, value = records["feature"], records["value"].astype(np.float64)
        for total, weight in ((sums, value), (squares, value**2), (products, value * records["parent"])):
            total += np.bincount(feature, weight, minlength=tree.size)
    rows, above = codes.selection.rows, np.maximum(tree.parents, 0)
    means, variances = sums / rows, np.maximum(squares / rows - (sums / rows) ** 2, 0)
    covariance = np.where(tree.parents >= 0, products / rows - means * means[above], 0)
    return CoActivation(
        tree, _ratio(covariance, variances * variances[above]), _ratio(products, squares * squares[above])
    )


def _ratio(numerator: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """numerator / sqrt(squared), and 0 where one of the two never varies."""
    return np.where(squared > 0, numerator / np.sqrt(np.where(squared > 0, squared, 1)), 0.0)
