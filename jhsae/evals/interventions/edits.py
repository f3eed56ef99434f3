"""Edits of codes: a latent ablated, set, or added to, everywhere or only where the latent above it is active.

An edit of the codes ``c`` changes the residual stream by ``sum_i (c'_i - c_i) row_i``, rows in the units of the
language model at that token. Codes are in the SAE's own units, after its normaliser; parents those before any edit.
"""

import abc
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.ranges import Ranged

Codes2d = Float[Array, "tokens rows"]


class Site(NamedTuple):
    """What an edit reads: of each token and each edited row of the dictionary.

    Args:
        codes: the value, 0 where the latent is silent.
        parents: that of the latent above it.
        row_norms: the norm of the row, in the units of the language model at that token.
        norms: the norm of the residual stream, [tokens, 1].
    """

    codes: Codes2d
    parents: Codes2d
    row_norms: Codes2d
    norms: Float[Array, "tokens 1"]


class AbstractWithin(Ranged, eqx.Module):
    """A factor for each token, by the code of the latent above; 0 where nothing is edited."""

    @property
    @abc.abstractmethod
    def needs_parent(self) -> bool:
        """Whether the edited latent must have one above it."""

    @abc.abstractmethod
    def __call__(self, parents: Codes2d) -> Codes2d:
        """The factor."""


class Everywhere(AbstractWithin):
    """1 at every token."""

    @property
    def needs_parent(self) -> bool:
        return False

    def __call__(self, parents: Codes2d) -> Codes2d:
        return jnp.ones_like(parents)


class WhereParentActive(AbstractWithin):
    """1 where the code of the latent above is not 0: an atom within its expert."""

    @property
    def needs_parent(self) -> bool:
        return True

    def __call__(self, parents: Codes2d) -> Codes2d:
        return (parents != 0).astype(parents.dtype)


class TimesParent(AbstractWithin):
    """The code of the latent above: an atom in proportion to its expert."""

    @property
    def needs_parent(self) -> bool:
        return True

    def __call__(self, parents: Codes2d) -> Codes2d:
        return parents


class AbstractEdit(Ranged, eqx.Module):
    """How much the code of a latent changes at each token."""

    within: eqx.AbstractVar[AbstractWithin]

    @abc.abstractmethod
    def __call__(self, at: Site) -> Codes2d:
        """The new code less the old one."""


class Ablate(AbstractEdit):
    """The code becomes 0.

    Args:
        within: the tokens.
    """

    within: AbstractWithin = eqx.field(default=Everywhere(), kw_only=True)

    def __call__(self, at: Site) -> Codes2d:
        return jnp.where(self.within(at.parents) != 0, -at.codes, 0.0)


class Set(AbstractEdit):
    """The code becomes `value` times the factor of `within`, and stays what it is where that is 0.

    Args:
        value: in the units of the codes.
        within: the tokens.
    """

    value: float
    within: AbstractWithin = eqx.field(default=Everywhere(), kw_only=True)

    def __call__(self, at: Site) -> Codes2d:
        factor = self.within(at.parents)
        return jnp.where(factor != 0, self.value * factor - at.codes, 0.0)


class Add(AbstractEdit):
    """`value` times the factor of `within` is added to the code.

    Args:
        value: in the units of the codes.
        within: the tokens.
    """

    value: float
    within: AbstractWithin = eqx.field(default=Everywhere(), kw_only=True)

    def __call__(self, at: Site) -> Codes2d:
        return self.value * self.within(at.parents)


class AddShare(AbstractEdit):
    """A vector along the row is added whose norm is a share of that of the token's residual stream.

    Latents of different row norms, and tokens of different norms, are steered alike so.

    Args:
        share: of the norm, times the factor of `within`; 0.5 is half as long as the stream, -0.5 against the row.
        within: the tokens.
    """

    share: float
    within: AbstractWithin = eqx.field(default=Everywhere(), kw_only=True)

    def __call__(self, at: Site) -> Codes2d:
        amount = self.share * at.norms / jnp.where(at.row_norms > 0, at.row_norms, 1.0)
        return jnp.where(at.row_norms > 0, amount, 0.0) * self.within(at.parents)
