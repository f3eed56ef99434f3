"""Resampling of any SAE: every so many steps, dead features are re-initialised at inputs with a large error."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jhsae.ranges import Count, Positive
from jhsae.resampling.base import AbstractResampling, Marked, check_period, is_due
from jhsae.sae import AbstractSAE, Forward, TopLevel

LEAST_NORM = 1e-12  # of a direction, and of a squared error whose logarithm is taken


class Resample(AbstractResampling):
    """Every `every` steps until step `until`, each dead feature is re-initialised at a badly reconstructed input.

    An input of the batch is drawn with probability proportional to its squared error squared; its direction from the
    decoder bias becomes the decoder row, times `encoder_norm` times the mean norm of living encoder rows the encoder
    row; biases and thresholds become 0 and the optimizer forgets the feature (Bricken et al., Towards Monosemanticity,
    2023, appendix; they draw from 819,200 inputs). Of a hierarchical SAE it resamples the experts. In a
    stage that freezes parameters of these features nothing is resampled.

    Args:
        every: how many steps lie between two resamplings.
        until: the last step at which features may be resampled.
        encoder_norm: the norm of a new encoder row, as a multiple of the mean norm of living ones.
    """

    every: Count = eqx.field(static=True)
    until: Count = eqx.field(static=True)
    encoder_norm: Positive = eqx.field(static=True, default=0.2)

    def __check_init__(self) -> None:
        check_period(self, self.every, self.until)

    def __call__(
        self,
        sae: AbstractSAE,
        opt_state: Any,
        optimizer: optax.GradientTransformation,
        forward: Forward,
        step: Int[Array, ""],
        key: Key[Array, ""],
    ) -> tuple[AbstractSAE, Any, Marked]:
        params, static = eqx.partition(sae, eqx.is_inexact_array)
        due = is_due(step, self.every, self.until)
        dead = due & (forward.dead > 0)

        def again(params: Any, opt_state: Any) -> tuple[Any, Any]:
            directions = bad_directions(sae.top_level.decoder.shape[0], sae, forward, key)
            old = _leaves(params)
            new = _resampled(eqx.combine(params, static).top_level, dead, directions, self.encoder_norm)
            nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, bool), params)
            touched = eqx.tree_at(_leaves, nothing, [jnp.broadcast_to(_mask(dead, a), a.shape) for a in old])
            fresh = [jnp.where(_mask(dead, a), b, a) for a, b in zip(old, new, strict=True)]
            return eqx.tree_at(_leaves, params, fresh), optax.tree_map_params(optimizer, _forget, opt_state, touched)

        params, opt_state = jax.lax.cond(due, again, lambda p, o: (p, o), params, opt_state)
        return eqx.combine(params, static), opt_state, dead


def _leaves(sae: AbstractSAE) -> list[Any]:
    encoder, decoder, biases = sae.top_level
    return [leaf for leaf in (encoder, decoder, *biases) if leaf is not None]


def _resampled(
    top_level: TopLevel, dead: Marked, directions: Float[Array, "top_level embed"], encoder_norm: float
) -> list[Array]:
    """What the leaves of dead features become, in the order of `_leaves`."""
    encoder, decoder, biases = top_level
    zeros = [jnp.zeros_like(b) for b in biases]
    decoder_norm = jnp.linalg.norm(decoder, axis=-1, keepdims=True)  # free or unit: a row keeps its norm
    rows = [directions * decoder_norm, *zeros]
    if encoder is None:
        return rows
    norms = jnp.linalg.norm(encoder, axis=-1)
    counted = ~dead | jnp.all(dead)  # where nothing lives, the norm of the dead is the best guess
    living = jnp.sum(norms * counted) / jnp.sum(counted)
    return [directions * encoder_norm * living, *rows]


def _forget(moment: Array, gone: Bool[Array, "..."]) -> Array:
    """A moment without the rows that are `gone`, all of a row or none of it: it may have one number for each row."""
    return jnp.where(gone[..., : moment.shape[-1]] if moment.ndim else gone, 0, moment)


def bad_directions(count: int, sae: AbstractSAE, forward: Forward, key: Key[Array, ""]) -> Float[Array, "count embed"]:
    """Directions, from the decoder bias, of inputs drawn in proportion to their squared error squared.

    Args:
        count: how many.
        sae: the SAE.
        forward: its forward pass.
        key: for the draws.
    """
    error = jnp.sum((forward.target - forward.x_hat) ** 2, axis=-1)
    share = jax.nn.softmax(2 * jnp.log(error + LEAST_NORM))
    chosen = jax.random.choice(key, len(error), (count,), p=share)  # `categorical` would hold count x batch numbers
    # of one token: without codes all are decoded to the same, and a batch would be decoded on every device
    rows = forward.target[chosen] - sae.decode(jax.tree.map(lambda a: jnp.zeros_like(a[:1]), forward.codes))
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), LEAST_NORM)


def _mask(dead: Marked, like: Array) -> Bool[Array, "..."]:
    return dead.reshape(-1, *(1,) * (like.ndim - 1))
