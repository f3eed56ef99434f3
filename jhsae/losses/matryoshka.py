"""Matryoshka: every prefix of the features is a dictionary of its own (Bussmann et al., arXiv 2503.17547)."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from annotated_types import MinLen
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.losses.base import AbstractTerm
from jhsae.ranges import Count
from jhsae.sae import FlatSAE, Forward


def as_widths(widths: Sequence[Count]) -> tuple[int, ...]:
    """A tuple of a list, which YAML and scripts give."""
    return tuple(widths) if isinstance(widths, list) else widths  # type: ignore[return-value]


class Prefixes(AbstractTerm):
    """Squared error of the reconstructions from the first w features, for every w in `widths`.

    One code serves all prefixes: the selection is that of the whole SAE.

    Args:
        widths: numbers of features, growing; without the full width, whose error is `SquaredError`'s.
        over: whether the errors of the widths are added up ("sum", SAELens) or averaged ("mean", dictionary_learning).

    Raises:
        UserError: `widths` does not grow, or reaches the number of features of the SAE.
    """

    accepts: ClassVar[type] = FlatSAE
    widths: Annotated[tuple[Count, ...], MinLen(1)] = eqx.field(static=True, converter=as_widths)
    over: Literal["sum", "mean"] = eqx.field(static=True, default="sum")

    def __check_init__(self) -> None:
        if list(self.widths) != sorted(set(self.widths)):
            raise UserError(f"Prefixes: widths is {list(self.widths)}, expected growing numbers of features")

    def __call__(self, sae: FlatSAE, forward: Forward) -> Float[Array, ""]:
        if self.widths[-1] >= sae.features:
            raise UserError(
                f"Prefixes: the last of widths is {self.widths[-1]}, but the SAE has {sae.features} features, whose "
                "error SquaredError counts; write smaller widths"
            )
        codes, errors = forward.codes.flat(), []
        x_hat, start = jnp.broadcast_to(sae.b_dec, forward.x_hat.shape), 0
        for width in self.widths:
            x_hat = x_hat + decode_between(sae, codes, start, width)
            errors.append(jnp.mean(jnp.sum((forward.target - x_hat) ** 2, axis=-1)))
            start = width
        total = sum(errors, jnp.zeros(()))
        return total if self.over == "sum" else total / len(errors)


def decode_between(sae: FlatSAE, codes: Codes, start: int, end: int) -> Float[Array, "batch embed"]:
    """What the features from `start` to before `end` add to the reconstruction."""
    rows = sae.dictionary()
    if codes.indices is None:
        return codes.values[:, start:end] @ rows[start:end]
    here = (codes.indices >= start) & (codes.indices < end)
    some = Codes(jnp.where(here, codes.values, 0.0), codes.indices, codes.size)
    return ops.decode_rows(some, rows, sae.kernel, sae.chunk)
