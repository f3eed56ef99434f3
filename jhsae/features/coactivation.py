"""Co-activation of atoms and their parents, over all tokens of a selection.

Pearson's correlation of the two codes, ``cov(p, a) / (std(p) std(a))``, and their cosine
``sum p a / sqrt(sum p^2 sum a^2)``; a token on which neither fires counts as 0, 0. The two numbers are what
SAEDashboard writes as Pearson and l1 of correlated features (its l1 is a cosine). Sums are float64.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from jhsae.features.spill import SpilledFirings
from jhsae.sae import HierarchicalSAE


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
    """One entry per atom, row by row of experts; 0 for an atom that never fired."""

    pearson: Float64[np.ndarray, "experts atoms"]
    cosine: Float64[np.ndarray, "experts atoms"]

    def of_parent(self, parent: int) -> Links:
        """Its atoms that fired, as ``parent * atoms + a``, the most correlated first."""
        fired = np.flatnonzero(self.cosine[parent])
        order = fired[np.argsort(-self.pearson[parent, fired], kind="stable")]
        first = parent * self.cosine.shape[1]
        return Links(
            (first + order).tolist(), self.pearson[parent, order].tolist(), self.cosine[parent, order].tolist()
        )

    def of_atom(self, atom: int) -> Links:
        """Its parent, ``atom // atoms``, if the atom fired at all."""
        parent, own = divmod(atom, self.cosine.shape[1])
        if not self.cosine[parent, own]:
            return no_links(atom)
        return Links([parent], [float(self.pearson[parent, own])], [float(self.cosine[parent, own])])


def co_activation(codes: SpilledFirings, sae: HierarchicalSAE) -> CoActivation:
    """Reads the records once."""
    sums, squares, products = np.zeros((3, sae.features))
    for records in codes.parts("counting"):
        feature, value = records["feature"], records["value"].astype(np.float64)
        for total, weight in ((sums, value), (squares, value**2), (products, value * records["parent"])):
            total += np.bincount(feature, weight, minlength=sae.features)
    rows, experts = codes.selection.rows, sae.experts
    variances = np.maximum(squares / rows - (sums / rows) ** 2, 0)

    def split(per_feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return per_feature[:experts, None], per_feature[experts:].reshape(experts, sae.atoms)

    together = split(products)[1]
    mean_parent, mean_atom = split(sums / rows)
    covariance = together / rows - mean_parent * mean_atom
    return CoActivation(
        _ratio(covariance, np.prod(np.broadcast_arrays(*split(variances)), axis=0)),
        _ratio(together, np.prod(np.broadcast_arrays(*split(squares)), axis=0)),
    )


def _ratio(numerator: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """numerator / sqrt(squared), and 0 where one of the two never varies."""
    return np.where(squared > 0, numerator / np.sqrt(np.where(squared > 0, squared, 1)), 0.0)
