"""Rules for the geometry of a teacher: which covariance Σ whitens its samples.

Park et al. (arXiv 2406.01506) take the covariance of the unembedding; the others are its ablations. A teacher stores Σ
alone: unembedding vectors are whitened by Σ^(-1/2) and residual ones by Σ^(+1/2). The covariance C of activations
whitens residual vectors by C^(-1/2), so its Σ is the inverse of C. Every Σ is scaled to trace `embed`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import equinox as eqx
import numpy as np
from annotated_types import Ge
from jaxtyping import Float64, Shaped

from jhsae.data import ModelName, Store, same_model
from jhsae.errors import UserError
from jhsae.metric import CausalGeometry, Shrinkage, causal, from_covariance, shrunk_covariance, to_trace
from jhsae.ranges import Ranged, Words, ranged

ROWS = 16_384
Sampled = Annotated[int, Ge(2)]  # one row has no variance


@dataclass(frozen=True)
class Model:
    """The language model that a geometry belongs to.

    Args:
        name: Its name, as far as it is known.
        unembedding: One row per token.
    """

    name: ModelName
    unembedding: Shaped[np.ndarray, "vocab embed"]


class AbstractGeometry(Ranged, eqx.Module):
    """A rule that makes the geometry of a teacher."""

    @abstractmethod
    def __call__(self, model: Model, shrinkage: Shrinkage) -> CausalGeometry:
        """The geometry; `shrinkage` is the weight of the identity in the covariance, or "ledoit_wolf"."""


class UnembeddingCovariance(AbstractGeometry):
    """The causal metric: Σ is the covariance of the rows of the unembedding."""

    def __call__(self, model: Model, shrinkage: Shrinkage) -> CausalGeometry:
        return causal(model.unembedding, shrinkage)


class UnembeddingVariances(AbstractGeometry):
    """The diagonal of the causal Σ: scales of the dimensions, without their correlations."""

    def __call__(self, model: Model, shrinkage: Shrinkage) -> CausalGeometry:
        sigma, weight = shrunk_covariance(model.unembedding, shrinkage)
        return from_covariance(to_trace(np.diag(np.diag(sigma))), weight)


class ActivationCovariance(AbstractGeometry):
    """Residual vectors are whitened by the covariance of activations.

    Args:
        path: Folder of a store of the same language model.
        rows: How many of its activations, from the first on.
    """

    path: Words = eqx.field(static=True)
    rows: Sampled = eqx.field(static=True, default=ROWS)

    def __call__(self, model: Model, shrinkage: Shrinkage) -> CausalGeometry:
        _check_model(model, self.path)
        return activation_geometry(self.path, self.rows, shrinkage)


class ActivationVariances(AbstractGeometry):
    """The diagonal of `ActivationCovariance`: every dimension is divided by its standard deviation.

    Args:
        path: Folder of a store of the same language model.
        rows: How many of its activations, from the first on.
    """

    path: Words = eqx.field(static=True)
    rows: Sampled = eqx.field(static=True, default=ROWS)

    def __call__(self, model: Model, shrinkage: Shrinkage) -> CausalGeometry:
        _check_model(model, self.path)
        return activation_geometry(self.path, self.rows, shrinkage, diagonal=True)


class EuclideanGeometry(AbstractGeometry):
    """Σ is the identity: no whitening. `shrinkage` has no effect."""

    def __call__(self, model: Model, shrinkage: Shrinkage) -> CausalGeometry:
        return from_covariance(np.eye(model.unembedding.shape[1]))


@ranged
def activation_geometry(
    path: Words, rows: Sampled = ROWS, shrinkage: Shrinkage = 0.05, diagonal: bool = False
) -> CausalGeometry:
    """The geometry in which activations of a store are white, or have equal variances.

    Args:
        path: Folder of the store; its rows are shuffled, so that the first ones are a sample.
        rows: Number of rows to use, at most.
        shrinkage: Weight of the identity in their covariance, or "ledoit_wolf".
        diagonal: Only the variances count.

    Raises:
        UserError: Fewer than 2 rows, rows that are all equal or not finite, or a singular covariance.
    """
    store = Store.open(path)
    x = store.read(0, min(rows, store.rows))
    if not np.isfinite(x).all():
        raise UserError(f"{path} holds activations that are not finite, so they have no covariance; harvest them again")
    covariance, weight = shrunk_covariance(x, shrinkage)
    if not np.trace(covariance) > 0:
        raise UserError(f"the first {len(x)} activations of {path} are all equal, so they have no metric; use others")
    kept = np.diag(np.diag(covariance)) if diagonal else covariance
    return from_covariance(to_trace(_inverse(kept)), weight)


def _inverse(covariance: Float64[np.ndarray, "embed embed"]) -> Float64[np.ndarray, "embed embed"]:
    """The inverse. `UserError` for a singular matrix."""
    from_covariance(covariance)
    inverse = np.linalg.inv(covariance)
    return (inverse + inverse.T) / 2


def _check_model(model: Model, path: str) -> None:
    """Raises `UserError` where the store was made from another language model."""
    manifest = Store.open(path).manifest
    if not same_model(model.name, ModelName.recorded(manifest), path):
        raise UserError(
            f"the store {path} holds activations of {manifest.model}, but the teacher is made from {model.name.name}; "
            "write a store of the same model"
        )
