"""Inner products on model space: Euclidean, and the causal inner product of an unembedding.

Park et al. (arXiv 2406.01506): with γ the rows of the unembedding and Σ = Cov(γ), both kinds of vector meet
in one unified space, in which the inner product is Euclidean:

    unembedding side   g(γ) = Σ^(-1/2) (γ - γ̄)      <u, v> = uᵀ Σ^(-1) v
    residual side      l(λ) = Σ^(+1/2) λ            <u, v> = uᵀ Σ v          so that  g·l = (γ - γ̄)·λ

Residual activations, decoder rows and steering vectors are on the residual side; the vector that steers along
a unified direction l is Σ^(-1/2) l, and the covector that reads it off an activation is Σ^(+1/2) l.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Shaped

from jhsae.errors import UserError
from jhsae.ranges import Fraction, NonNegative, Ranged, ranged

BLOCK = 8192  # rows of an unembedding that are held in float64 at once


class AbstractMetric(Ranged, eqx.Module):
    """An inner product on [embed]. Every method maps over leading axes."""

    # The functions that a config may name in a slot of a metric, beside derived classes: those that read a teacher.
    MADE_BY: ClassVar[tuple[str, ...]] = (
        "jhsae.init.teacher_metric",
        "jhsae.init.teacher_unembedding_metric",
        "jhsae.init.teacher_diagonal_metric",
        "jhsae.init.activation_metric",
        "jhsae.init.activation_diagonal_metric",
    )

    @abstractmethod
    def whiten(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        """Coordinates in which this inner product is Euclidean."""

    @abstractmethod
    def dual(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        """The covector of x: `dual(x) @ y == inner(x, y)`."""

    def inner(self, u: Float[Array, "*batch embed"], v: Float[Array, "*batch embed"]) -> Float[Array, "*batch"]:
        return jnp.sum(self.whiten(u) * self.whiten(v), axis=-1)

    def norm(self, u: Float[Array, "*batch embed"]) -> Float[Array, "*batch"]:
        """Its gradient at a zero vector is zero, not NaN (the value there is 1e-19)."""
        square = self.inner(u, u)
        return jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))


class Euclidean(AbstractMetric):
    """<u, v> = u·v."""

    def whiten(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        return x

    def dual(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        return x


class Whitened(AbstractMetric):
    """<u, v> = (M u)·(M v).

    Args:
        matrix: M, [embed, embed].
    """

    matrix: Float[Array, "embed embed"]

    def whiten(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        return x @ self.matrix.T

    def dual(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        return self.whiten(x) @ self.matrix


class Diagonal(AbstractMetric):
    """<u, v> = Σ_i (s_i u_i)(s_i v_i): a factor per dimension, and no correlations between them.

    Args:
        scale: The factors s, [embed].
    """

    scale: Float[Array, "embed"]

    def whiten(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        return x * self.scale

    def dual(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        return x * self.scale**2


class CausalGeometry(eqx.Module):
    """The two sides of one causal inner product, from `causal`, `causal_absolute_ridge` or `from_covariance`.

    The matrices of the two sides are symmetric and each other's inverse, so `unembedding.whiten` also takes a unified
    vector to its residual (steering) vector, and `residual.whiten` takes it to its readout.

    Args:
        sigma: Σ, [embed, embed].
        unembedding: The metric of unembedding vectors, with matrix Σ^(-1/2).
        residual: The metric of activations and decoder rows, with matrix Σ^(+1/2).
        condition: The largest over the smallest eigenvalue of Σ.
        shrinkage: The weight of the identity in Σ, where it is known.
    """

    sigma: Float[Array, "embed embed"]
    unembedding: Whitened
    residual: Whitened
    condition: float = eqx.field(static=True)
    shrinkage: float | None = eqx.field(static=True, default=None)


Shrinkage = Fraction | Literal["ledoit_wolf"]  # a weight, or the rule that estimates it


def covariance(rows: Shaped[np.ndarray, "rows embed"]) -> Float64[np.ndarray, "embed embed"]:
    """Covariance of the rows (centred, divided by rows - 1), in float64, block by block.

    Raises:
        UserError: Fewer than 2 rows.
    """
    if len(rows) < 2:
        raise UserError(f"a covariance of {len(rows)} rows; at least 2 are needed")
    mean = np.mean(rows, axis=0, dtype=np.float64)
    scatter = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), BLOCK):
        centred = rows[start : start + BLOCK].astype(np.float64) - mean
        scatter += centred.T @ centred
    return scatter / (len(rows) - 1)


@ranged
def relative_ridge(
    sigma: Float64[np.ndarray, "embed embed"], shrinkage: Fraction
) -> Float64[np.ndarray, "embed embed"]:
    """(1 - ρ) Σ + ρ (tr Σ / embed) I: the same at every scale of the unembedding.

    Args:
        sigma: Σ, a covariance.
        shrinkage: ρ, from 0 (no ridge) to 1 (Euclidean).
    """
    embed = len(sigma)
    return (1 - shrinkage) * sigma + shrinkage * np.trace(sigma) / embed * np.eye(embed)


def ledoit_wolf_of_rows(rows: Shaped[np.ndarray, "rows embed"], sigma: Float64[np.ndarray, "embed embed"]) -> float:
    """The weight of the identity in the covariance of Ledoit and Wolf (2004), equal to scikit-learn's.

    For many rows: in float64, block by block.

    Args:
        rows: The samples, not centred.
        sigma: Their `covariance`.
    """
    mean = np.mean(rows, axis=0, dtype=np.float64)
    fourth = 0.0
    for start in range(0, len(rows), BLOCK):
        centred = rows[start : start + BLOCK].astype(np.float64) - mean
        fourth += float(np.sum(np.sum(centred**2, axis=1) ** 2))
    biased = (len(rows) - 1) / len(rows)
    size, trace = biased**2 * float(np.sum(sigma**2)), biased * float(np.trace(sigma))
    return ledoit_wolf_weight(size, fourth, trace, *rows.shape)


def ledoit_wolf_weight(size: float, fourth: float, trace: float, samples: int, embed: int) -> float:
    """Ledoit and Wolf's weight, from moments of `samples` centred vectors x and S = E[x xᵀ], divided by `samples`.

    Args:
        size: The sum of the squared entries of S.
        fourth: The sum over samples of ||x||⁴.
        trace: The trace of S.
        samples: Number of vectors.
        embed: Their dimensions.
    """
    noise = fourth / samples - size
    distance = size - trace**2 / embed
    return min(noise / samples, distance) / distance if distance > 0 and noise > 0 else 0.0


@ranged
def shrunk_covariance(
    rows: Shaped[np.ndarray, "rows embed"], shrinkage: Shrinkage
) -> tuple[Float64[np.ndarray, "embed embed"], float]:
    """The covariance of the rows with a relative ridge.

    Args:
        rows: The samples, not centred.
        shrinkage: The weight of the ridge, or "ledoit_wolf", which estimates it from the rows.

    Returns:
        The covariance, and the weight of the ridge in it.

    Raises:
        UserError: Fewer than 2 rows.
    """
    sigma = covariance(rows)
    weight = ledoit_wolf_of_rows(rows, sigma) if isinstance(shrinkage, str) else float(shrinkage)
    return relative_ridge(sigma, weight), weight


def from_covariance(sigma: Shaped[np.ndarray, "embed embed"], shrinkage: float | None = None) -> CausalGeometry:
    """The geometry of a given Σ, as it is; eigenvalues that are not positive are an error.

    Args:
        sigma: The covariance.
        shrinkage: The weight of the identity that it contains already, where that is known.
    """
    values, vectors = np.linalg.eigh(np.asarray(sigma, np.float64))
    if not values[0] > 0:
        raise UserError(f"the covariance is singular (smallest eigenvalue {values[0]:.1e}); write a shrinkage above 0")
    inverse_root = (vectors * values**-0.5) @ vectors.T
    root = (vectors * values**0.5) @ vectors.T
    return CausalGeometry(
        sigma=jnp.asarray(sigma, jnp.float32),
        unembedding=Whitened(jnp.asarray(inverse_root, jnp.float32)),
        residual=Whitened(jnp.asarray(root, jnp.float32)),
        condition=float(values[-1] / values[0]),
        shrinkage=shrinkage,
    )


def to_trace(sigma: Float64[np.ndarray, "embed embed"]) -> Float64[np.ndarray, "embed embed"]:
    """Σ scaled to trace `embed`, so that norms stay comparable; that changes no angle. `UserError` for a trace of 0."""
    if not np.trace(sigma) > 0:
        raise UserError("all rows of the unembedding are equal, so it has no causal metric; is this a trained model?")
    return sigma * (len(sigma) / np.trace(sigma))


@ranged
def causal(unembedding: Shaped[np.ndarray, "vocab embed"], shrinkage: Shrinkage = 0.05) -> CausalGeometry:
    """Causal geometry with a relative ridge, Σ scaled to trace `embed`.

    Args:
        unembedding: One row per token.
        shrinkage: The weight of the ridge: 0 is Park et al.'s own Σ; "ledoit_wolf" estimates it from the rows.

    Raises:
        UserError: Fewer than 2 rows, rows that are all equal, or a singular Σ.
    """
    sigma, weight = shrunk_covariance(unembedding, shrinkage)
    return from_covariance(to_trace(sigma), weight)


@ranged
def causal_absolute_ridge(unembedding: Shaped[np.ndarray, "vocab embed"], ridge: NonNegative = 0.05) -> CausalGeometry:
    """The form of the PyTorch original, Σ + ρ I unscaled: nearly Euclidean where Σ is much smaller than ρ.

    Args:
        unembedding: One row per token.
        ridge: ρ, in the squared units of the unembedding.

    Raises:
        UserError: Fewer than 2 rows, or a singular Σ + ρ I.
    """
    sigma = covariance(unembedding)
    return from_covariance(sigma + ridge * np.eye(len(sigma)))
