"""Normalisers whose scale depends on the token; they cannot be folded into the weights of an SAE."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.data.normalize.base import AbstractNormalizer, PerToken, Rows, divisor, fitted
from jhsae.data.normalize.moments import RowSource
from jhsae.ranges import NonNegative


class UnitNorm(AbstractNormalizer):
    """x' = x / (||x|| + eps), as in MixtureOfExperts_v2 (Muchane et al., arXiv 2506.01197).

    Args:
        eps: added to the divisor, so that a row of zeros stays finite.
    """

    eps: NonNegative = eqx.field(static=True, default=1e-6)

    def __call__(self, x: Rows) -> tuple[Rows, PerToken]:
        return _scaled(x, divisor(_norm(x) + self.eps))

    def undo(self, x_hat: Rows, token: PerToken) -> Rows:
        return x_hat * token.scale

    def affine(self) -> None:
        return None


class CenteredUnitNorm(AbstractNormalizer):
    """x' = (x - mean) / (||x - mean|| + eps), with the mean of the store.

    Args:
        eps: added to the divisor, so that a row of zeros stays finite.
        mean: the mean of the training rows, [embed]; set by `fit`.
    """

    eps: NonNegative = eqx.field(static=True, default=1e-6)
    mean: Float[Array, "embed"] | None = None

    def fit(self, store: RowSource) -> "CenteredUnitNorm":
        return CenteredUnitNorm(self.eps, jnp.asarray(store.manifest.mean, jnp.float32))

    def __call__(self, x: Rows) -> tuple[Rows, PerToken]:
        return UnitNorm(self.eps)(x - fitted(self.mean))

    def undo(self, x_hat: Rows, token: PerToken) -> Rows:
        return x_hat * token.scale + fitted(self.mean)

    def affine(self) -> None:
        return None


class ConstantNorm(AbstractNormalizer):
    """x' = x sqrt(embed) / ||x||: every token has norm sqrt(embed) (SAELens: constant_norm_rescale).

    A token of zeros stays zeros, where SAELens divides by 0.
    """

    def __call__(self, x: Rows) -> tuple[Rows, PerToken]:
        norm = _norm(x)
        return _scaled(x, divisor(norm) / x.shape[-1] ** 0.5)

    def undo(self, x_hat: Rows, token: PerToken) -> Rows:
        return x_hat * token.scale

    def affine(self) -> None:
        return None


class LayerNorm(AbstractNormalizer):
    """x' = (x - m) / (s + eps) with the token's own mean m and standard deviation s (divided by embed - 1).

    As in SAELens (layer_norm), it is undone with s and not with s + eps: ``x_hat = x_hat' s + m``. A token of a single
    dimension has s = 0.

    Args:
        eps: added to the divisor, so that a row of zeros stays finite.
    """

    eps: NonNegative = eqx.field(static=True, default=1e-5)

    def __call__(self, x: Rows) -> tuple[Rows, PerToken]:
        mean = jnp.mean(x, axis=-1, keepdims=True)
        std = jnp.std(x, axis=-1, keepdims=True, ddof=1) if x.shape[-1] > 1 else jnp.zeros_like(x)
        return (x - mean) / divisor(std + self.eps), PerToken(std, mean)

    def undo(self, x_hat: Rows, token: PerToken) -> Rows:
        return x_hat * token.scale + token.shift

    def affine(self) -> None:
        return None


def _norm(x: Rows) -> Float[Array, "batch 1"]:
    return jnp.linalg.norm(x, axis=-1, keepdims=True)


def _scaled(x: Rows, scale: Float[Array, "batch 1"]) -> tuple[Rows, PerToken]:
    return x / scale, PerToken(scale, jnp.zeros_like(scale))
