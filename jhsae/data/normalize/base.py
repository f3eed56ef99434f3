"""Interface of input normalisers: invertible transformations applied before an SAE and undone after it.

``x', token = normalizer(x)`` and ``x_hat = normalizer.undo(x_hat', token)``, in the units of the language model. A
normaliser that does not depend on the token is affine, ``x' = (x - shift) matrix``, and can be folded into the weights
of an SAE. Statistics are arrays but not parameters: they have no gradient.
"""

import inspect
from abc import abstractmethod
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, Array, Float

from jhsae.data.normalize.moments import RowSource
from jhsae.ranges import Ranged

Rows = Float[Array, "batch embed"]
Factor = Float[Array, ""] | Float[Array, "embed"] | Float[Array, "embed embed"]


class PerToken(eqx.Module):
    """The part of a normaliser that depends on the token: ``x = x' scale + shift``.

    Args:
        scale: One factor per row, [batch, 1].
        shift: One shift per row, [batch, 1].
    """

    scale: Float[Array, "batch 1"]
    shift: Float[Array, "batch 1"]


class Affine(eqx.Module):
    """An affine map, the same for every token.

    ``x' = times(x - shift, matrix)`` and ``x = times(x', inverse) + shift``.

    Args:
        shift: [embed], or the scalar 0 without a shift; `over` broadcasts it.
        matrix: A scalar, one factor per dimension [embed], or [embed, embed], which acts on rows from the right.
        inverse: Its inverse, in the same form.
    """

    shift: Float[Array, "embed"] | Float[Array, ""]
    matrix: Factor
    inverse: Factor

    def over(self, embed: int) -> "Affine":
        """The same with a shift of shape [embed]."""
        return Affine(jnp.broadcast_to(self.shift, (embed,)), self.matrix, self.inverse)


def times(
    rows: Float[Array, "*batch embed"] | Float[np.ndarray, "*batch embed"], factor: Factor
) -> Float[Array, "*batch embed"]:
    """Applies a factor to rows, in full float32 on every device.

    Args:
        rows: [rows, embed].
        factor: A matrix [embed, embed] (``rows @ factor``), or a factor per dimension or a scalar (``rows * factor``).
    """
    if factor.ndim == 2:
        return jnp.matmul(rows, factor, precision=jax.lax.Precision.HIGHEST)
    return jnp.asarray(rows) * factor


class AbstractNormalizer(Ranged, eqx.Module):
    """``x_normal, token = normalizer(x)`` and ``normalizer.undo(x_hat, token)``.

    Statistics are array fields, None before `fit`.
    """

    def fit(self, store: RowSource) -> "AbstractNormalizer":
        """The normaliser with the statistics of a `Store` or `ArrayRows`; `self` where none are needed."""
        return self

    @abstractmethod
    def __call__(self, x: Rows) -> tuple[Rows, PerToken]:
        """The normalised rows, and the per-token statistics that `undo` needs."""

    @abstractmethod
    def undo(self, x_hat: Rows, token: PerToken) -> Rows:
        """Maps normalised rows back to the original units.

        Args:
            x_hat: Normalised rows, [rows, embed].
            token: The second result of the call on the same rows.
        """

    @abstractmethod
    def affine(self) -> Affine | None:
        """The map from a row to its normalised form, or None where it depends on the token."""

    def affine_of_target(self) -> Affine | None:
        """The map from what is written to its normalised form: `affine`, unless that is not what is read."""
        return self.affine()

    @property
    def written(self) -> tuple[int, ...]:
        """The widths of several layers that are written side by side; () for one vector."""
        return ()

    def split(self, rows: Rows) -> tuple[Rows, Float[Array, "batch output"] | None]:
        """What is read and what is written of rows that hold both; None where the one is the other."""
        return rows, None

    def inside(self, rows: Rows) -> tuple[Rows, Float[Array, "batch output"] | None]:
        """`split`, normalised: the input of an SAE, and its target where that is not the input."""
        return self(rows)[0], None

    def statistics(self, embed: int) -> dict[str, tuple[tuple[int, ...], Array | None]]:
        """The arrays that `fit` makes over rows of size `embed`, by name: shape, and array once it is fitted."""
        return {name: (shape, getattr(self, name)) for name, shape in self.shapes(embed).items()}

    def with_statistics(self, arrays: dict[str, Array]) -> "AbstractNormalizer":
        """The normaliser fitted with the arrays of `statistics`."""
        return replace(self, **arrays)

    def shapes(self, embed: int) -> dict[str, tuple[int, ...]]:
        """The arrays that `fit` makes over rows of size `embed`: field -> shape."""
        hints = get_type_hints(type(self))
        arrays = {field.name: _array_hint(hints[field.name]) for field in fields(self)}
        return {name: (embed,) * len(hint.dim_str.split()) for name, hint in arrays.items() if hint is not None}


class AbstractAffine(AbstractNormalizer):
    """A normaliser that is the same for every token, defined by `affine`."""

    @abstractmethod
    def affine(self) -> Affine:
        """The map from a row to its normalised form."""

    def __call__(self, x: Rows) -> tuple[Rows, PerToken]:
        affine = self.affine()
        return times(x - affine.shift, affine.matrix), untouched(x)

    def undo(self, x_hat: Rows, token: PerToken) -> Rows:
        affine = self.affine()
        return times(x_hat, affine.inverse) + affine.shift


def untouched(x: Rows) -> PerToken:
    """Per-token statistics of a transformation that does not depend on the token."""
    return PerToken(jnp.ones_like(x[:, :1]), jnp.zeros_like(x[:, :1]))


def fitted(statistic: Array | None) -> Array:
    """A statistic under `stop_gradient`; ValueError before `fit`."""
    if statistic is None:
        raise ValueError("the normaliser has no statistics yet; call fit(store) and use what it returns")
    return jax.lax.stop_gradient(statistic)


def divisor(scale: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A divisor: 1 where the scale is 0."""
    return jnp.where(scale == 0, 1.0, scale)


def _array_hint(hint: object) -> type[AbstractArray] | None:
    found = (h for h in (hint, *get_args(hint)) if inspect.isclass(h) and issubclass(h, AbstractArray))
    return next(found, None)
