"""Auxiliary losses: dead features reconstruct the residual error.

They read the features of ``forward.pre``: of a hierarchical SAE the experts; `GhostAtoms` is for the atoms.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.losses.base import AbstractTerm
from jhsae.losses.matryoshka import as_widths, decode_between
from jhsae.ranges import Count
from jhsae.sae import AbstractHierarchicalSAE, AbstractSAE, FlatSAE, Forward, TreeForward

COMPACT = 4  # up to this many times k dead features are gathered into matrices of their own
LEAST_ERROR = 1e-6  # of a variance, a norm or an error that something is divided by


class AuxK(AbstractTerm):
    """``min(dead / k, 1) mean_batch |e - sum_i pre_i W_dec_i|^2`` over the k largest dead: SAELens's.

    The residual error e = target - x_hat carries no gradient, pre-activations count without ReLU, `k` is half the embed
    size unless given. Gao et al. (arXiv 2406.04093, A.2), without their normalisation: `AuxKNormalized` is theirs.

    Args:
        k: dead features that explain a token's residual; None for half the embed size.
    """

    reads_dead: ClassVar[bool] = True
    k: Count | None = eqx.field(static=True, default=None)

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        k = self.k or _half(forward)
        return _aux_error(forward, forward.dead, sae.top_level_rows(), _residual(forward), k)


class AuxKNormalized(AbstractTerm):
    """``sum |e - e_hat|^2 / sum |e - mean e|^2``, e_hat from the k largest dead after ReLU; 0 when none is dead, or
    when all rows have one and the same residual.

    Gao et al., arXiv 2406.04093, A.2 (weight 1/32 there), in the form of OpenAI's and dictionary_learning's code.

    Args:
        k: dead features that explain a token's residual; None for half the embed size.
    """

    reads_dead: ClassVar[bool] = True
    k: Count | None = eqx.field(static=True, default=None)

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        k, residual, dead = self.k or _half(forward), _residual(forward), forward.dead
        variance = _mean_square(residual - jnp.mean(residual, axis=0))
        e_hat = explained_by_dead(forward, dead, sae.top_level_rows(), k, jax.nn.relu)
        there = jnp.any(dead > 0) & (variance > 0)
        return there * _mean_square(residual - e_hat) / jnp.maximum(variance, LEAST_ERROR)


class MatryoshkaAuxK(AbstractTerm):
    """`AuxK` for each level of a Matryoshka SAE: the dead of a level explain what is left over up to that level.

    The last level, all features, is there whether `widths` lists it or not.

    Args:
        widths: numbers of features of the levels, growing.
    """

    accepts: ClassVar[type] = FlatSAE
    instead: ClassVar[str] = "write jhsae.losses.AuxK, or drop the term"
    reads_dead: ClassVar[bool] = True
    widths: tuple[Count, ...] = eqx.field(static=True, converter=as_widths)

    def __check_init__(self) -> None:
        if list(self.widths) != sorted(set(self.widths)):
            raise UserError(f"MatryoshkaAuxK: widths is {list(self.widths)}, expected growing numbers of features")

    def __call__(self, sae: FlatSAE, forward: Forward) -> Float[Array, ""]:
        if max(self.widths, default=0) > sae.features:
            raise UserError(
                f"MatryoshkaAuxK: the last of widths is {self.widths[-1]}, but the SAE has {sae.features} features; "
                "write smaller widths"
            )
        rows, dead, codes = sae.top_level_rows(), forward.dead, forward.codes.flat()
        k, start, total = _half(forward), 0, jnp.zeros(())
        left = forward.target - (forward.x_hat - decode_between(sae, codes, 0, sae.features))  # minus the bias alone
        for width in (*(w for w in self.widths if w < sae.features), sae.features):
            left = left - decode_between(sae, codes, start, width)
            here = (jnp.arange(sae.features) >= start) & (jnp.arange(sae.features) < width)
            total = total + _aux_error(forward, dead * here, rows, jax.lax.stop_gradient(left), k)
            start = width
        return total


def _aux_error(
    forward: Forward,
    dead: Float[Array, "top_level"],
    rows: Float[Array, "top_level embed"],
    left: Float[Array, "batch embed"],
    k: int,
) -> Float[Array, ""]:
    error = left - explained_by_dead(forward, dead, rows, k)
    return jnp.minimum(jnp.sum(dead) / k, 1.0) * _mean_square(error)


class GhostGradients(AbstractTerm):
    """The dead, with ``exp(pre)`` for codes, predict the residual: a legacy option (Anthropic, January 2024).

    Their output is scaled to half the residual's norm and the term to the size of the squared error, both without
    gradient. SAELens dropped it in version 6; `AuxK` is the successor.
    """

    reads_dead: ClassVar[bool] = True

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        return _ghost_loss(forward, _ghosts(forward.pre, forward.dead) @ sae.top_level_rows())


class GhostAtoms(AbstractTerm):
    """`GhostGradients` for the dead atoms of the experts that a token selects."""

    accepts: ClassVar[type] = AbstractHierarchicalSAE
    instead: ClassVar[str] = "write jhsae.losses.GhostGradients, or drop the term"
    reads_dead: ClassVar[bool] = True

    def __call__(self, sae: AbstractHierarchicalSAE, forward: TreeForward) -> Float[Array, ""]:
        parents = forward.codes.parents
        atom = parents.slot_indices()[..., None] * sae.atoms + jnp.arange(sae.atoms)
        dead = jnp.zeros(atom.shape) if forward.context.dead is None else forward.context.dead[sae.experts + atom]
        ghosts = _ghosts(forward.child_pre, dead * (parents.values != 0)[..., None])
        return _ghost_loss(forward, sae.decode_children(TreeCodes(parents, Codes(ghosts, None, sae.atoms))))


def _ghosts(pre: Float[Array, "batch *n"], dead: Float[Array, "..."]) -> Float[Array, "batch *n"]:
    """``exp(pre)`` of the dead over a token's largest, which `_ghost_loss` divides out: pre may be in the hundreds."""
    pre = jnp.where(dead > 0, pre, -jnp.inf)
    most = jax.lax.stop_gradient(jnp.max(pre, axis=tuple(range(1, pre.ndim)), keepdims=True))
    return jnp.exp(pre - jnp.where(jnp.isfinite(most), most, 0.0))


def _ghost_loss(forward: Forward, ghost: Float[Array, "batch embed"]) -> Float[Array, ""]:
    residual = _residual(forward)
    # squares are kept from 0 so that a token without ghosts has a finite gradient
    norm, ghost_norm = (jnp.sqrt(jnp.sum(a**2, axis=-1, keepdims=True) + LEAST_ERROR**2) for a in (residual, ghost))
    error = _mean_square(residual - ghost * jax.lax.stop_gradient(norm / (2 * ghost_norm)))
    size = jax.lax.stop_gradient(_mean_square(residual) / (error + LEAST_ERROR))
    return jnp.where(jnp.any(ghost != 0), size * error, 0.0)


def _half(forward: Forward) -> int:
    """Half the embed size, at least 1."""
    return max(1, forward.x.shape[-1] // 2)


def _residual(forward: Forward) -> Float[Array, "batch embed"]:
    return jax.lax.stop_gradient(forward.target - forward.x_hat)


def _mean_square(error: Float[Array, "batch embed"]) -> Float[Array, ""]:
    return jnp.mean(jnp.sum(error**2, axis=-1))


def explained_by_dead(
    forward: Forward,
    dead: Float[Array, "top_level"],
    rows: Float[Array, "top_level embed"],
    k: int,
    code: Callable[[Array], Array] = lambda pre: pre,
) -> Float[Array, "batch embed"]:
    """``sum_i code(pre_i) rows_i`` over the k dead features with the largest pre-activations of each token.

    ``code(0)`` must be 0. Work grows with the number of dead: none costs nothing, up to k need no selection, up to
    `COMPACT` k are encoded and decoded on their own, and more are selected as the router selects.
    """
    size, count = forward.encoder.size, jnp.sum(dead > 0).astype(jnp.int32)
    k = min(k, size)
    wide = min(size, COMPACT * k)

    def of_few(width: int) -> Callable[[], Array]:
        def decode() -> Array:
            features = jnp.nonzero(dead > 0, size=width, fill_value=0)[0]
            there = jnp.arange(width) < count
            pre = forward.encoder.rows(features).dense()
            if width <= k:
                return code(jnp.where(there, pre, 0.0)) @ rows[features]
            first = ops.largest_of_rows(jax.lax.stop_gradient(jnp.where(there, pre, -jnp.inf)), k)
            return code(jnp.where(first, pre, 0.0)) @ rows[features]

        return decode

    def of_many() -> Array:
        if forward.encoder.values is None:
            pre, indices, _, _ = ops.route(forward.encoder, lambda pre, _: _largest_dead(pre, dead, k), jax.nn.relu)
        else:
            indices = ops.topk_of_batch(jnp.where(dead > 0, forward.pre, -jnp.inf), k)
            pre = jnp.take_along_axis(forward.pre, indices, axis=-1)
        return ops.decode_rows(Codes(code(pre), indices, size), rows)

    nothing = lambda: jnp.zeros_like(forward.x_hat)  # noqa: E731
    branches = [nothing, of_few(k), of_few(wide), of_many]
    return jax.lax.switch(1 * (count > 0) + (count > k) + (count > wide), branches)


def _largest_dead(pre: Array, dead: Array, k: int) -> Array:
    return ops.topk(jnp.where(ops.local_slice(dead, pre.shape[-1]) > 0, pre, -jnp.inf), k)[1]
