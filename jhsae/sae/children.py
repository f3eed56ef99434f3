"""Inputs and scales of atoms: what they read of the token and of their parent, and what multiplies their value."""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.ranges import Ranged


class AbstractChildInput(Ranged, eqx.Module):
    """``part(x, residual) -> what the selected experts encode``: the token, or what the parents left of it.

    `reads_residual` says whether it reads the second argument: the parents must be decoded first then.
    """

    reads_residual: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "batch embed"], residual: Float[Array, "batch embed"]
    ) -> Float[Array, "batch embed"]:
        """The input of the experts."""


class Token(AbstractChildInput):
    """The experts read the token itself (both originals)."""

    reads_residual = False

    def __call__(
        self, x: Float[Array, "batch embed"], residual: Float[Array, "batch embed"]
    ) -> Float[Array, "batch embed"]:
        return x


class Residual(AbstractChildInput):
    """The experts read what the parents left over."""

    def __call__(
        self, x: Float[Array, "batch embed"], residual: Float[Array, "batch embed"]
    ) -> Float[Array, "batch embed"]:
        return residual


class AbstractChildScale(Ranged, eqx.Module):
    """``part(children, parents) -> children``: the value that an atom contributes."""

    @abc.abstractmethod
    def __call__(
        self, children: Float[Array, "batch k c"], parents: Float[Array, "batch k"]
    ) -> Float[Array, "batch k c"]:
        """The atoms' values, given those of their parents."""

    @abc.abstractmethod
    def undo(self, children: Float[Array, "batch k c"], parents: Float[Array, "batch k"]) -> Float[Array, "batch k c"]:
        """The values before they were scaled, 0 where the parent is inactive: those that a threshold is about."""


class Unscaled(AbstractChildScale):
    """An atom's value stands alone; it is 0 where the parent is inactive (both originals)."""

    def __call__(
        self, children: Float[Array, "batch k c"], parents: Float[Array, "batch k"]
    ) -> Float[Array, "batch k c"]:
        return children * (parents != 0)[..., None]

    def undo(self, children: Float[Array, "batch k c"], parents: Float[Array, "batch k"]) -> Float[Array, "batch k c"]:
        return children


class ScaledByParent(AbstractChildScale):
    """An atom's value is multiplied by its parent's."""

    def __call__(
        self, children: Float[Array, "batch k c"], parents: Float[Array, "batch k"]
    ) -> Float[Array, "batch k c"]:
        return children * parents[..., None]

    def undo(self, children: Float[Array, "batch k c"], parents: Float[Array, "batch k"]) -> Float[Array, "batch k c"]:
        active = (parents != 0)[..., None]
        return jnp.where(active, children / jnp.where(active, parents[..., None], 1.0), 0.0)
