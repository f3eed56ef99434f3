"""Sparsifiers: pre-activations in, sparse codes out.

``activate`` is the elementwise part (also what an L1 term over all features sees); ``__call__`` then selects. An
entry that does not survive `activate` has value 0 and is an empty slot, so at most k features are active, and fewer
when fewer than k clear the threshold.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae import ops
from jhsae.codes import Codes
from jhsae.schedule import AbstractSchedule, Scalar
from jhsae.usage import Context


class AbstractSparsifier(eqx.Module):
    """``sparsifier(pre [*batch, n], context) -> Codes`` over n features."""

    @abc.abstractmethod
    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The elementwise activation before any selection."""

    @abc.abstractmethod
    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        """The selected codes."""

    @abc.abstractmethod
    def most_active(self, size: int) -> int:
        """The number of entries it may select among `size`: k, or all of them."""


class AbstractTopK(AbstractSparsifier):
    """A sparsifier that selects the k best entries of each row, with one of the exact `ops.topk` methods."""

    k: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"{type(self).__name__}: k is {self.k}, expected at least 1 active feature")

    def most_active(self, size: int) -> int:
        return self.k


class ReLU(AbstractSparsifier):
    """``max(pre, 0)``, every feature a slot."""

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jax.nn.relu(pre)

    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        return Codes(jax.nn.relu(pre), None, pre.shape[-1])

    def most_active(self, size: int) -> int:
        return size


class TopK(AbstractTopK):
    """The k largest of ``max(pre, 0)`` (Gao et al., arXiv 2406.04093)."""

    k: int = eqx.field(static=True)
    topk: ops.Method = eqx.field(static=True, default="lax")

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jax.nn.relu(pre)

    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        values, indices = ops.topk(self.activate(pre), self.k, self.topk)
        return Codes(values, indices, pre.shape[-1])


class OffsetTopK(AbstractTopK):
    """The k largest of ``pre * 1[pre >= offset]``: a hard threshold that does not shift the value.

    The router of `MixtureOfExperts_v2` (arXiv 2506.01197), with offset 1/sqrt(embed): the size of one coordinate of
    a unit vector. The offset is a constant.
    """

    k: int = eqx.field(static=True)
    offset: float = eqx.field(static=True)
    topk: ops.Method = eqx.field(static=True, default="lax")

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jnp.where(pre >= self.offset, pre, 0.0)

    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        values, indices = ops.topk(self.activate(pre), self.k, self.topk)
        return Codes(values, indices, pre.shape[-1])


class LeakyOffsetTopK(AbstractTopK):
    """The k largest of ``pre if pre >= offset else slope * pre``: the original's atoms.

    A selected value may lie under the offset or be negative; it is kept. `TopK` is the corrected choice.
    """

    k: int = eqx.field(static=True)
    offset: float = eqx.field(static=True)
    slope: float = eqx.field(static=True, default=0.01)
    topk: ops.Method = eqx.field(static=True, default="lax")

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jnp.where(pre >= self.offset, pre, self.slope * pre)

    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        values, indices = ops.topk(self.activate(pre), self.k, self.topk)
        return Codes(values, indices, pre.shape[-1])


class GumbelTopK(AbstractTopK):
    """Noisy top-k routing with magnitudes: gate times ``max(pre, 0)``.

    In training the k largest of ``pre + temperature * Gumbel`` are selected; the gate is 1 in the forward pass and
    carries the gradient of the selected entries of ``softmax(pre / temperature)``, renormalised (straight-through).
    Without a key (evaluation) it is `TopK`. A high temperature explores experts; anneal it with a schedule.
    """

    k: int = eqx.field(static=True)
    temperature: AbstractSchedule
    topk: ops.Method = eqx.field(static=True, default="lax")

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jax.nn.relu(pre)

    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        gate, indices = _gumbel_gate(pre, self.k, self.temperature, context, self.topk)
        magnitude = jnp.take_along_axis(self.activate(pre), indices, axis=-1)
        return Codes(gate * magnitude, indices, pre.shape[-1])


class BinaryGumbelTopK(AbstractTopK):
    """`GumbelTopK` whose codes are the gates alone, 0 or 1: no magnitude reaches the decoder (PolytopeSAE).

    For k = 1 it is the hard Gumbel-softmax: noise of fixed scale, the temperature shapes the gradient alone.
    """

    k: int = eqx.field(static=True)
    temperature: AbstractSchedule
    topk: ops.Method = eqx.field(static=True, default="lax")

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jax.nn.relu(pre)

    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        if self.k == 1 and context.key is not None:
            return self._gumbel_softmax(pre, context.key, self.temperature(context.step))
        gate, indices = _gumbel_gate(pre, self.k, self.temperature, context, self.topk)
        return Codes(gate, indices, pre.shape[-1])

    def _gumbel_softmax(self, pre: Float[Array, "*batch n"], key: Key[Array, ""], temperature: Scalar) -> Codes:
        noisy = pre + jax.random.gumbel(key, pre.shape, pre.dtype)
        soft = jax.nn.softmax(noisy / temperature, axis=-1)
        _, index = ops.topk(noisy, 1, self.topk)
        # Every logit gets a gradient, so every entry needs a slot: the code is dense with one entry of 1.
        hard = jnp.where(jnp.arange(pre.shape[-1]) == index, 1.0, 0.0)
        return Codes(hard + (soft - jax.lax.stop_gradient(soft)), None, pre.shape[-1])


def _gumbel_gate(
    pre: Float[Array, "*batch n"], k: int, temperature: AbstractSchedule, context: Context, method: ops.Method
) -> tuple[Array, Array]:
    """Straight-through gates [*batch, k] (1 in the forward pass) and the selected indices."""
    if context.key is None:
        _, indices = ops.topk(pre, k, method)
        return jnp.ones(indices.shape, pre.dtype), indices
    tau = temperature(context.step)
    _, indices = ops.topk(pre + tau * jax.random.gumbel(context.key, pre.shape, pre.dtype), k, method)
    # softmax over all entries, restricted to the selected and renormalised, is softmax over the selected
    soft = jax.nn.softmax(jnp.take_along_axis(pre, indices, axis=-1) / tau, axis=-1)
    return 1.0 + (soft - jax.lax.stop_gradient(soft)), indices
