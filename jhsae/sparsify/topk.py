"""ReLU and the top-k rules: per row, of the activation or of a hard threshold."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.errors import UserError
from jhsae.ranges import Count, NonNegative
from jhsae.schedule import Linear
from jhsae.sparsify.base import AbstractSparsifier, AbstractTopK
from jhsae.usage import Context


class ReLU(AbstractSparsifier):
    """``max(pre, 0)``, every feature a slot."""

    def most_active(self, size: int) -> int:
        return size


class TopK(AbstractTopK):
    """The k largest of ``max(pre, 0)`` (Gao et al., arXiv 2406.04093).

    Args:
        k: the number of active features per token, at least 1.
        topk: how the largest are found (`jhsae.ops.Method`); "auto" for what suits the machine.
    """

    k: Count = eqx.field(static=True)
    topk: ops.Method = eqx.field(static=True, default="auto")


class AnnealedTopK(AbstractTopK):
    """`TopK` whose k falls linearly from `start` to `k` over `steps` steps: fewer dead features early on.

    `start` slots are kept per row and those beyond the k of the step are emptied. In evaluation k is the final one;
    at inference it is a `TopK`.

    Args:
        k: active features per token at the end.
        start: active features per token at step 0, at least `k`.
        steps: over which k falls.
        topk: how the largest are found (`jhsae.ops.Method`); "auto" for what suits the machine.
    """

    k: Count = eqx.field(static=True)
    start: Count = eqx.field(static=True)
    steps: Count = eqx.field(static=True)
    topk: ops.Method = eqx.field(static=True, default="auto")

    def __check_init__(self) -> None:
        if self.start < self.k:
            raise UserError(f"AnnealedTopK: start is {self.start} and k {self.k}; write a start of at least k")

    def value(self, pre: Float[Array, "*batch k"], context: Context) -> Float[Array, "*batch k"]:
        fall = Linear(float(self.start), float(self.k), self.steps)
        k = self.k if context.key is None else jnp.round(fall(context.step))
        return jnp.where(jnp.arange(self.start) < k, self.activate(pre), 0.0)

    def most_active(self, size: int) -> int:
        return self.start

    def for_inference(self, threshold: Float[Array, ""]) -> AbstractSparsifier:
        return TopK(self.k, self.topk)


class OffsetTopK(AbstractTopK):
    """The k largest of ``pre * 1[pre >= offset]``: a hard threshold that does not shift the value.

    The router of `MixtureOfExperts_v2` (arXiv 2506.01197), with offset 1/sqrt(embed): the size of one coordinate of
    a unit vector. The offset is a constant.

    Args:
        k: the number of active features per token, at least 1.
        offset: the least pre-activation that counts, in units of the pre-activations.
        topk: how the largest are found (`jhsae.ops.Method`); "auto" for what suits the machine.
    """

    k: Count = eqx.field(static=True)
    offset: NonNegative = eqx.field(static=True)
    topk: ops.Method = eqx.field(static=True, default="auto")

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jnp.where(pre >= self.offset, pre, 0.0)


class BestAtoms(AbstractTopK):
    """Of every active expert the atom with the largest ``max(pre, 0)``; then a token keeps its `keep` largest atoms.

    For ``pick`` of `HierarchicalSAE`: with k experts a token has k parents and `keep` atoms.

    Args:
        keep: atoms per token, at least 1; those of all active experts where there are no more.
        topk: how the largest are found (`jhsae.ops.Method`); "auto" for what suits the machine.
    """

    across_experts = True
    keep: Count = eqx.field(static=True)
    topk: ops.Method = eqx.field(static=True, default="auto")
    k: int = eqx.field(static=True, default=1, init=False)  # atoms per expert

    def value(self, pre: Float[Array, "*batch experts 1"], context: Context) -> Float[Array, "*batch experts 1"]:
        values = self.activate(pre)
        if pre.ndim < 2 or pre.shape[-2] <= self.keep:
            return values
        best = jax.lax.stop_gradient(values[..., 0])
        kept = ops.topk(best, self.keep, self.topk)[1]
        return jnp.where(jnp.any(kept[..., None] == jnp.arange(best.shape[-1]), axis=-2)[..., None], values, 0.0)


class LeakyOffsetTopK(AbstractTopK):
    """The k largest of ``pre if pre >= offset else slope * pre``: the original's atoms.

    A selected value may lie under the offset or be negative; it is kept. `TopK` is the corrected choice.

    Args:
        k: the number of active features per token, at least 1.
        offset: the pre-activation below which a value is multiplied by `slope`.
        slope: the factor, -1 to 1.
        topk: how the largest are found (`jhsae.ops.Method`); "auto" for what suits the machine.
    """

    k: Count = eqx.field(static=True)
    offset: NonNegative = eqx.field(static=True)
    slope: Annotated[float, Ge(-1), Le(1)] = eqx.field(static=True, default=0.01)
    topk: ops.Method = eqx.field(static=True, default="auto")

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jnp.where(pre >= self.offset, pre, self.slope * pre)
