"""Sparsity of a JumpReLU: penalties on the number of active features that have a gradient, and its dead features.

In a hierarchical SAE these read the experts and their router.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.errors import UserError
from jhsae.losses.base import AbstractTerm
from jhsae.ranges import Positive
from jhsae.sae import AbstractSAE, Forward
from jhsae.sparsify import JumpReLU


class L0(AbstractTerm):
    """``mean_batch sum_i 1[pre_i > threshold_i]`` (Rajamanoharan et al., arXiv 2407.14435, eq. 9)."""

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        return jnp.mean(_l0(sae, forward))


class QuadraticL0(AbstractTerm):
    """``mean_batch (2 / target) (L0 - target)^2``: holds L0 at a target (Gemma Scope 2).

    Args:
        target: the L0 that costs nothing, in features per token.
    """

    target: Positive = eqx.field(static=True)

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        if self.target > forward.encoder.size:
            raise UserError(
                f"QuadraticL0: target is {self.target}, but there are {forward.encoder.size} features to be active; "
                "write less"
            )
        return jnp.mean(2.0 / self.target * (_l0(sae, forward) - self.target) ** 2)


class TanhL0(AbstractTerm):
    """``mean_batch sum_i tanh(scale code_i |W_dec_i|)``: a smooth count (Anthropic, January 2025).

    Args:
        scale: what a contribution is multiplied by inside the tanh.
    """

    scale: Positive = eqx.field(static=True, default=4.0)

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        codes = forward.codes.levels()[0].dense()
        return jnp.mean(jnp.sum(jnp.tanh(self.scale * codes * _norms(sae)), axis=-1))


class DeadPreActivation(AbstractTerm):
    """``mean_batch sum_dead ReLU(threshold_i - pre_i) |W_dec_i|``: lifts dead features towards their threshold.

    Anthropic's pre-activation loss (January 2025), on dead features alone as in SAELens; 0 in evaluation.
    """

    reads_dead: ClassVar[bool] = True

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        below = jnp.maximum(_jump(sae).threshold - forward.pre, 0.0)
        return jnp.mean(jnp.sum(below * forward.dead * _norms(sae), axis=-1))


def _l0(sae: AbstractSAE, forward: Forward) -> Float[Array, "batch"]:
    return jnp.sum(_jump(sae).over_threshold(forward.pre), axis=-1)


def _norms(sae: AbstractSAE) -> Float[Array, "top_level"]:
    return ops.row_norms(sae.top_level_rows())


def _jump(sae: AbstractSAE) -> JumpReLU:
    first = sae.top_rule or sae
    if not isinstance(first, JumpReLU):
        raise UserError(
            f"this term needs thresholds, but the features are selected by {type(first).__name__}; write "
            "jhsae.sparsify.JumpReLU as the sparsifier, or drop the term"
        )
    return first
