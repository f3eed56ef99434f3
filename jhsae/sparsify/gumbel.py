"""Noisy top-k routing: Gumbel noise selects in training, a straight-through gate carries the gradient.

A temperature of 0, where a schedule may end, is the limit: noise times the temperature is none, and the gates are 1
without gradient.
"""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float, Int

from jhsae import ops
from jhsae.ranges import Count
from jhsae.schedule import AbstractSchedule, Scalar, as_schedule
from jhsae.sparsify.base import AbstractTopK
from jhsae.usage import Context

Temperature = Annotated[float | AbstractSchedule, Ge(0)]
COLDEST = 1e-6  # a softmax at a lower temperature is its limit, and its slope there would overflow


class GumbelTopK(AbstractTopK):
    """Noisy top-k routing with magnitudes: gate times ``max(pre, 0)``.

    In training the k largest of ``pre + temperature * Gumbel`` are selected; the gate is 1 in the forward pass and
    carries the gradient of the selected entries of ``softmax(pre / temperature)``, renormalised (straight-through).
    Without a key (evaluation) it is `TopK`. A high temperature explores experts; anneal it with a schedule.

    Args:
        k: the number of active features per token, at least 1.
        temperature: of the noise and of the softmax: a number or a schedule.
        topk: how the largest are found (`jhsae.ops.Method`); "auto" for what suits the machine.
    """

    k: Count = eqx.field(static=True)
    temperature: Annotated[AbstractSchedule, Ge(0)]
    topk: ops.Method = eqx.field(static=True, default="auto")

    def __init__(self, k: Count, temperature: Temperature, topk: ops.Method = "auto"):
        self.k, self.temperature, self.topk = k, as_schedule(temperature), topk

    def select(self, pre: Float[Array, "*batch n"], context: Context) -> Int[Array, "*batch k"]:
        return _noisy_topk(pre, self.k, self.temperature, context, self.topk)

    def value(self, pre: Float[Array, "*batch k"], context: Context) -> Float[Array, "*batch k"]:
        return _gate(pre, self.temperature, context) * self.activate(pre)


class BinaryGumbelTopK(AbstractTopK):
    """`GumbelTopK` whose codes are the gates alone, 0 or 1: no magnitude reaches the decoder (PolytopeSAE).

    For k = 1 it is the hard Gumbel-softmax: noise of fixed scale, the temperature shapes the gradient alone.

    Args:
        k: the number of active features per token, at least 1.
        temperature: of the noise and of the softmax: a number or a schedule.
        topk: how the largest are found (`jhsae.ops.Method`); "auto" for what suits the machine.
    """

    k: Count = eqx.field(static=True)
    temperature: Annotated[AbstractSchedule, Ge(0)]
    topk: ops.Method = eqx.field(static=True, default="auto")

    def __init__(self, k: Count, temperature: Temperature, topk: ops.Method = "auto"):
        self.k, self.temperature, self.topk = k, as_schedule(temperature), topk

    def select(self, pre: Float[Array, "*batch n"], context: Context) -> Int[Array, "*batch k"] | None:
        if self.is_dense(context):
            return None
        return _noisy_topk(pre, self.k, self.temperature, context, self.topk)

    def value(self, pre: Float[Array, "*batch k"], context: Context) -> Float[Array, "*batch k"]:
        if self.is_dense(context):
            return self._gumbel_softmax(pre, context)
        return _gate(pre, self.temperature, context)

    def is_dense(self, context: Context) -> bool:
        return self.k == 1 and context.key is not None

    def _gumbel_softmax(self, pre: Float[Array, "*batch n"], context: Context) -> Float[Array, "*batch n"]:
        assert context.key is not None
        noisy = pre + jax.random.gumbel(context.key, pre.shape, pre.dtype)
        soft = _softmax(noisy, self.temperature(context.step))
        _, index = ops.topk(noisy, 1, self.topk)
        # Every logit gets a gradient, so every entry needs a slot: the code is dense with one entry of 1.
        hard = jnp.where(jnp.arange(pre.shape[-1]) == index, 1.0, 0.0)
        return hard + (soft - jax.lax.stop_gradient(soft))


def _softmax(pre: Float[Array, "*batch k"], temperature: Scalar) -> Float[Array, "*batch k"]:
    """``softmax(pre / temperature)`` for a straight-through gate, which is without gradient where it is cold."""
    if isinstance(temperature, int | float):
        return jax.nn.softmax(pre / temperature, axis=-1) if temperature > COLDEST else jnp.zeros_like(pre)
    warm = temperature > COLDEST
    return jnp.where(warm, jax.nn.softmax(pre / jnp.where(warm, temperature, 1.0), axis=-1), 0.0)


def _noisy_topk(
    pre: Float[Array, "*batch n"], k: int, temperature: AbstractSchedule, context: Context, method: ops.Method
) -> Int[Array, "*batch k"]:
    """The k largest after Gumbel noise times the temperature; without a key, of `pre` itself."""
    if context.key is None:
        return ops.topk(pre, k, method)[1]
    noise = ops.row_noise(context.key, pre.reshape(-1, pre.shape[-1]), context.tokens).reshape(pre.shape)
    return ops.topk(pre + temperature(context.step) * noise, k, method)[1]


def _gate(pre: Float[Array, "*batch k"], temperature: AbstractSchedule, context: Context) -> Float[Array, "*batch k"]:
    """Straight-through gates of the selected: 1 in the forward pass."""
    if context.key is None:
        return jnp.ones(pre.shape, pre.dtype)
    # softmax over all entries, restricted to the selected and renormalised, is softmax over the selected
    soft = _softmax(pre, temperature(context.step))
    return 1.0 + (soft - jax.lax.stop_gradient(soft))
