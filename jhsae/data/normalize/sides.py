"""Normalisers of several activations of a token: side by side, and of what is read and what is written apart."""

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import MinLen
from jaxtyping import Array, Float

from jhsae.data.normalize.affine import Identity
from jhsae.data.normalize.base import AbstractAffine, AbstractNormalizer, Affine, PerToken, Rows, untouched
from jhsae.data.normalize.moments import RowSource
from jhsae.errors import UserError
from jhsae.ranges import Count

AFFINE = "jhsae.data.Scale, CenterScale, Standardize, Whiten or Identity"


@runtime_checkable
class SeveralSources(Protocol):
    """Sources of rows side by side: `jhsae.data.Aligned`."""

    @property
    def stores(self) -> tuple[RowSource, ...]:
        """All of them, in order."""

    @property
    def inputs(self) -> tuple[RowSource, ...]:
        """Those that are read."""

    @property
    def targets(self) -> tuple[RowSource, ...]:
        """Those that are written."""


class SideBySide(AbstractAffine):
    """A normaliser for each of several activations that stand side by side in a row, as a crosscoder reads them.

    Args:
        parts: one for each, the same for every token.
        widths: how wide each is.

    Raises:
        UserError: another number of widths than of parts, or a part whose scale depends on the token.
    """

    parts: Annotated[tuple[AbstractNormalizer, ...], MinLen(1)]
    widths: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self, parts: Annotated[Sequence[AbstractNormalizer], MinLen(1)], widths: Annotated[Sequence[Count], MinLen(1)]
    ):
        self.parts, self.widths = tuple(parts), tuple(widths)
        if len(self.parts) != len(self.widths):
            raise UserError(f"SideBySide: {len(self.parts)} parts and {len(self.widths)} widths, expected as many")
        for part in self.parts:
            _check_affine(part, "several activations side by side")

    def fit(self, store: RowSource | SeveralSources) -> "SideBySide":
        stores = store.stores if isinstance(store, SeveralSources) else (store,)
        if len(stores) != len(self.parts):
            raise UserError(f"SideBySide: {len(self.parts)} parts and {len(stores)} stores, expected as many")
        return SideBySide([part.fit(one) for part, one in zip(self.parts, stores, strict=True)], self.widths)

    def affine(self) -> Affine:
        affines = [_affine(part).over(width) for part, width in zip(self.parts, self.widths, strict=True)]
        shift = jnp.concatenate([affine.shift for affine in affines])
        return Affine(shift, self._joined([a.matrix for a in affines]), self._joined([a.inverse for a in affines]))

    @property
    def written(self) -> tuple[int, ...]:
        return self.widths

    def _joined(self, factors: list[Any]) -> Any:
        """One factor per dimension, or a matrix of blocks where a part has one."""
        vectors = [a if a.ndim == 2 else jnp.broadcast_to(a, (w,)) for a, w in zip(factors, self.widths, strict=True)]
        if all(a.ndim == 1 for a in vectors):
            return jnp.concatenate(vectors)
        return jax.scipy.linalg.block_diag(*(a if a.ndim == 2 else jnp.diag(a) for a in vectors))

    def statistics(self, embed: int) -> dict[str, tuple[tuple[int, ...], Array | None]]:
        parts = [part.statistics(width) for part, width in zip(self.parts, self.widths, strict=True)]
        return {f"parts.{i}.{name}": one for i, part in enumerate(parts) for name, one in part.items()}

    def with_statistics(self, arrays: dict[str, Array]) -> "SideBySide":
        own = [_below(arrays, f"parts.{i}.") for i in range(len(self.parts))]
        return SideBySide([part.with_statistics(a) for part, a in zip(self.parts, own, strict=True)], self.widths)


class Between(AbstractNormalizer):
    """From the units of what is read to those of what is written: the normaliser of a transcoder.

    Called, it normalises what is read; `undo` maps a normalised reconstruction to the units of the target. What `undo`
    needs of the token it does not have, so the target's normaliser is the same for every token.

    Args:
        widths: how wide what is read and what is written are.
        source: normalises what is read.
        target: normalises what is written.

    Raises:
        UserError: a target's normaliser whose scale depends on the token.
    """

    source: AbstractNormalizer
    target: AbstractNormalizer
    widths: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self,
        widths: Annotated[Sequence[Count], MinLen(2)],
        source: AbstractNormalizer = Identity(),  # noqa: B008  (an immutable module)
        target: AbstractNormalizer = Identity(),  # noqa: B008
    ):
        if len(widths) != 2:
            raise UserError(f"Between: widths is {list(widths)}, expected two, of what is read and of what is written")
        self.source, self.target, self.widths = source, target, (widths[0], widths[1])
        _check_affine(target, "a target")

    def fit(self, store: RowSource | SeveralSources) -> "Between":
        if not isinstance(store, SeveralSources) or not store.targets:
            raise UserError("a normaliser of a target is to be fitted on a store without one; write data.target=FOLDER")
        return Between(self.widths, _fitted(self.source, store.inputs), _fitted(self.target, store.targets))

    def __call__(self, x: Rows) -> tuple[Rows, PerToken]:
        return self.source(x)

    def undo(self, x_hat: Float[Array, "batch output"], token: PerToken) -> Float[Array, "batch output"]:
        return self.target.undo(x_hat, untouched(x_hat))

    def affine(self) -> Affine | None:
        return self.source.affine()

    def affine_of_target(self) -> Affine | None:
        return self.target.affine()

    @property
    def written(self) -> tuple[int, ...]:
        return self.target.written

    def split(self, rows: Float[Array, "batch both"]) -> tuple[Rows, Float[Array, "batch output"] | None]:
        read, written = self.widths
        if rows.shape[-1] != read + written:
            raise UserError(f"rows have {rows.shape[-1]} numbers, expected {read} that are read and {written} written")
        return rows[:, :read], rows[:, read:]

    def inside(self, rows: Float[Array, "batch both"]) -> tuple[Rows, Float[Array, "batch output"] | None]:
        read, _ = self.widths
        x, y = self.split(rows)[0], rows[:, read:]
        return self.source(x)[0], self.target(y)[0]

    def statistics(self, embed: int) -> dict[str, tuple[tuple[int, ...], Array | None]]:
        sides = {"source": self.source.statistics(self.widths[0]), "target": self.target.statistics(self.widths[1])}
        return {f"{side}.{name}": one for side, part in sides.items() for name, one in part.items()}

    def with_statistics(self, arrays: dict[str, Array]) -> "Between":
        source, target = (self.source, "source."), (self.target, "target.")
        return Between(self.widths, *(part.with_statistics(_below(arrays, start)) for part, start in (source, target)))


class _Several:
    """Some sources of rows, as `SideBySide` is fitted on them."""

    def __init__(self, stores: tuple[RowSource, ...]):
        self.stores, self.inputs, self.targets = stores, stores, ()


def _fitted(part: AbstractNormalizer, stores: tuple[RowSource, ...]) -> AbstractNormalizer:
    several: Any = stores[0] if len(stores) == 1 else _Several(stores)
    return part.fit(several)


def _below(arrays: dict[str, Array], start: str) -> dict[str, Array]:
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def _affine(part: AbstractNormalizer) -> Affine:
    affine = part.affine()
    assert affine is not None  # `_check_affine`
    return affine


def _check_affine(part: AbstractNormalizer, what: str) -> None:
    if not isinstance(part, AbstractAffine | Identity):
        raise UserError(
            f"{type(part).__name__} scales every token by a number of its own, which is not known of {what}; write "
            f"{AFFINE}"
        )
