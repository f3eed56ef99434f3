"""Input normalisers: what is done to an activation before an SAE sees it, and how it is undone.

Each is x' = (x - shift) / scale with a scale per row or for all rows, so that ``undo`` returns a
reconstruction to the units of the language model. Statistics come from the store's manifest by ``fit``;
they are arrays, but not parameters: a normaliser stands outside the SAE and no gradient step touches it.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.data.manifest import Manifest
from jhsae.data.statistics import Statistics

Rows = Float[Array, "batch embed"]
Scales = Float[Array, "batch 1"]


class AbstractNormalizer(eqx.Module):
    """``x_normal, scale = normalizer(x)`` and ``normalizer.undo(x_hat, scale)``."""

    def fit(self, manifest: Manifest | Statistics) -> "AbstractNormalizer":
        """The normaliser with the statistics of a store; itself where none are needed."""
        return self

    @abstractmethod
    def __call__(self, x: Rows) -> tuple[Rows, Scales]:
        """The normalised rows, and the scale that `undo` needs."""

    @abstractmethod
    def undo(self, x_hat: Rows, scale: Scales) -> Rows:
        """Normalised rows back in the original units."""


class Identity(AbstractNormalizer):
    """x' = x."""

    def __call__(self, x: Rows) -> tuple[Rows, Scales]:
        return x, jnp.ones_like(x[:, :1])

    def undo(self, x_hat: Rows, scale: Scales) -> Rows:
        return x_hat


class UnitNorm(AbstractNormalizer):
    """x' = x / (||x|| + eps), as in MixtureOfExperts_v2 (Muchane et al., arXiv 2506.01197)."""

    eps: float = eqx.field(static=True, default=1e-6)

    def __call__(self, x: Rows) -> tuple[Rows, Scales]:
        scale = jnp.linalg.norm(x, axis=-1, keepdims=True) + self.eps
        return x / scale, scale

    def undo(self, x_hat: Rows, scale: Scales) -> Rows:
        return x_hat * scale


class CenteredUnitNorm(AbstractNormalizer):
    """x' = (x - mean) / (||x - mean|| + eps), with the mean of the store."""

    eps: float = eqx.field(static=True, default=1e-6)
    mean: Float[Array, "embed"] | None = None

    def fit(self, manifest: Manifest | Statistics) -> "CenteredUnitNorm":
        return CenteredUnitNorm(self.eps, jnp.asarray(manifest.mean, jnp.float32))

    def __call__(self, x: Rows) -> tuple[Rows, Scales]:
        return UnitNorm(self.eps)(x - _fitted(self.mean))

    def undo(self, x_hat: Rows, scale: Scales) -> Rows:
        return x_hat * scale + _fitted(self.mean)


class Scale(AbstractNormalizer):
    """x' = x sqrt(embed) / E||x||: the mean norm becomes sqrt(embed), as in SAELens."""

    scale: Float[Array, ""] | None = None

    def fit(self, manifest: Manifest | Statistics) -> "Scale":
        return Scale(jnp.float32(manifest.mean_norm / manifest.embed**0.5))

    def __call__(self, x: Rows) -> tuple[Rows, Scales]:
        scale = jnp.broadcast_to(_fitted(self.scale), (len(x), 1))
        return x / scale, scale

    def undo(self, x_hat: Rows, scale: Scales) -> Rows:
        return x_hat * scale


class CenterScale(AbstractNormalizer):
    """x' = (x - mean) sqrt(embed / E||x - mean||^2): centred, with E||x'||^2 = embed."""

    mean: Float[Array, "embed"] | None = None
    scale: Float[Array, ""] | None = None

    def fit(self, manifest: Manifest | Statistics) -> "CenterScale":
        scale = (manifest.total_variance / manifest.embed) ** 0.5
        return CenterScale(jnp.asarray(manifest.mean, jnp.float32), jnp.float32(scale))

    def __call__(self, x: Rows) -> tuple[Rows, Scales]:
        scale = jnp.broadcast_to(_fitted(self.scale), (len(x), 1))
        return (x - _fitted(self.mean)) / scale, scale

    def undo(self, x_hat: Rows, scale: Scales) -> Rows:
        return x_hat * scale + _fitted(self.mean)


def _fitted(statistic: Array | None) -> Array:
    if statistic is None:
        raise ValueError("the normaliser has no statistics yet; call fit(store.manifest) and use what it returns")
    return jax.lax.stop_gradient(statistic)
