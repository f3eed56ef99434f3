"""Affine normalisers, the same for every token: a shift and a factor, shared or per dimension, or a matrix.

Constant dimensions are not scaled: a statistic of 0 (up to float32 rounding) is replaced by 1.
"""

from typing import Annotated

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge
from jaxtyping import Array, Float

from jhsae.data.normalize.base import (
    AbstractAffine,
    AbstractNormalizer,
    Affine,
    PerToken,
    Rows,
    divisor,
    fitted,
    untouched,
)
from jhsae.data.normalize.moments import RowSource, mean_and_covariance, mean_and_variance
from jhsae.ranges import NonNegative

SeveralRows = Annotated[int, Ge(2)]  # the deviation of one row is 0

ROUNDING = 2.0**-23  # of float32: a standard deviation below this fraction of the mean is rounding


class Identity(AbstractNormalizer):
    """x' = x."""

    def __call__(self, x: Rows) -> tuple[Rows, PerToken]:
        return x, untouched(x)

    def undo(self, x_hat: Rows, token: PerToken) -> Rows:
        return x_hat

    def affine(self) -> Affine:
        return Affine(jnp.float32(0), jnp.float32(1), jnp.float32(1))


class Scale(AbstractAffine):
    """x' = x sqrt(embed) / E||x||: the mean norm becomes sqrt(embed) (SAELens: expected_average_only_in).

    Args:
        scale: the divisor, a number; set by `fit`.
    """

    scale: Float[Array, ""] | None = None

    def fit(self, store: RowSource) -> "Scale":
        return Scale(jnp.float32(store.manifest.mean_norm / store.manifest.embed**0.5))

    def affine(self) -> Affine:
        scale = divisor(fitted(self.scale))
        return Affine(jnp.float32(0), 1 / scale, scale)


class CenterScale(AbstractAffine):
    """x' = (x - mean) sqrt(embed / E||x - mean||^2): centred, with E||x'||^2 = embed.

    Args:
        mean: the mean of the training rows, [embed]; set by `fit`.
        scale: the divisor, a number; set by `fit`.
    """

    mean: Float[Array, "embed"] | None = None
    scale: Float[Array, ""] | None = None

    def fit(self, store: RowSource) -> "CenterScale":
        manifest = store.manifest
        varies = manifest.total_variance > (ROUNDING * manifest.rms_norm) ** 2
        scale = (manifest.total_variance / manifest.embed) ** 0.5 if varies else 1.0
        return CenterScale(jnp.asarray(store.manifest.mean, jnp.float32), jnp.float32(scale))

    def affine(self) -> Affine:
        scale = divisor(fitted(self.scale))
        return Affine(fitted(self.mean), 1 / scale, scale)


class Standardize(AbstractAffine):
    """x' = (x - mean) / (std + eps) in every dimension by itself (mlxterp's normalize_input).

    Mean and standard deviation (divided by n) come from at most `rows` rows of the store.

    Args:
        eps: added to the standard deviations.
        rows: rows of the store that are read to fit, at most.
        mean: [embed]; set by `fit`.
        std: [embed]; set by `fit`.
    """

    eps: NonNegative = eqx.field(static=True, default=1e-8)
    rows: SeveralRows = eqx.field(static=True, default=1_000_000)
    mean: Float[Array, "embed"] | None = None
    std: Float[Array, "embed"] | None = None

    def fit(self, store: RowSource) -> "Standardize":
        mean, variance = mean_and_variance(store, self.rows)
        std = np.sqrt(variance)
        std = np.where(std > ROUNDING * np.abs(mean), std, 1.0)
        arrays = (jnp.asarray(a, jnp.float32) for a in (mean, std))
        return Standardize(self.eps, self.rows, *arrays)

    def affine(self) -> Affine:
        scale = divisor(fitted(self.std) + self.eps)
        return Affine(fitted(self.mean), 1 / scale, scale)


class Whiten(AbstractAffine):
    """x' = (x - mean) E diag(lambda + eps)^(-1/2), where the covariance is E diag(lambda) E^T (PCA whitening).

    SAELens's covariance_whitening (arXiv 2511.13981), from at most `rows` rows of the store, in float64. SAELens
    leaves the sign of an eigenvector undefined; here its largest entry is positive, so that a run resumed on another
    machine sees the same inputs. With eps = 0, directions in which no row varies become 0.

    Args:
        eps: added to the eigenvalues of the covariance.
        rows: rows of the store that are read to fit, at most.
        mean: [embed]; set by `fit`.
        matrix: the whitening matrix, [embed, embed]; set by `fit`.
        inverse: its inverse; set by `fit`.
    """

    eps: NonNegative = eqx.field(static=True, default=1e-3)
    rows: SeveralRows = eqx.field(static=True, default=1_000_000)
    mean: Float[Array, "embed"] | None = None
    matrix: Float[Array, "embed embed"] | None = None
    inverse: Float[Array, "embed embed"] | None = None

    def fit(self, store: RowSource) -> "Whiten":
        mean, covariance = mean_and_covariance(store, self.rows)
        values, vectors = np.linalg.eigh(covariance)
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
        vectors = vectors * np.where(largest < 0, -1.0, 1.0)
        if self.eps == 0:  # eigenvalues at rounding level are noise
            values = np.where(values > len(values) * np.finfo(np.float64).eps * values[-1], values, 0.0)
        root = np.sqrt(np.maximum(values, 0) + self.eps)
        scaled = np.divide(vectors, root, out=np.zeros_like(vectors), where=root > 0)
        arrays = (jnp.asarray(a, jnp.float32) for a in (mean, scaled, root[:, None] * vectors.T))
        return Whiten(self.eps, self.rows, *arrays)

    def affine(self) -> Affine:
        return Affine(fitted(self.mean), fitted(self.matrix), fitted(self.inverse))
