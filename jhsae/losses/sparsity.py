"""L1 and Lp penalties; which codes they cover differs between the originals and is named in the class."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.losses.base import AbstractTerm
from jhsae.ranges import Positive
from jhsae.sae import AbstractHierarchicalSAE, AbstractSAE, Forward, TreeForward
from jhsae.schedule import AbstractSchedule


class L1Active(AbstractTerm):
    """``mean_batch sum |codes|`` over the active features alone: the corrected scope."""

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        values = forward.codes.flat().values
        return jnp.sum(jnp.abs(values)) / values.shape[0]


class L1All(AbstractTerm):
    """``mean_batch (sum |all activated experts| + sum |all atoms of the selected experts|)``.

    The scope of `MixtureOfExperts_v2`: experts outside the top k and losing atoms are penalised too.
    """

    accepts = AbstractHierarchicalSAE
    instead = "write jhsae.losses.L1Active, or drop the term"

    def __call__(self, sae: AbstractHierarchicalSAE, forward: TreeForward) -> Float[Array, ""]:
        children = jnp.sum(jnp.abs(sae.pick.activate(forward.child_pre)))
        return (forward.l1 + children) / forward.x.shape[0]


class MeanL1Parents(AbstractTerm):
    """``mean over batch and experts of |parent code|`` (PolytopeSAE). Constant for binary codes: no gradient."""

    accepts = AbstractHierarchicalSAE

    def __call__(self, sae: AbstractHierarchicalSAE, forward: TreeForward) -> Float[Array, ""]:
        codes = forward.codes.parents
        return jnp.sum(jnp.abs(codes.values)) / (codes.values.shape[0] * codes.size)


class MeanL1Children(AbstractTerm):
    """``mean over batch, experts and atoms of |atom code|`` (PolytopeSAE)."""

    accepts = AbstractHierarchicalSAE

    def __call__(self, sae: AbstractHierarchicalSAE, forward: TreeForward) -> Float[Array, ""]:
        codes = forward.codes
        size = codes.children.values.shape[0] * codes.parents.size * codes.children.size
        return jnp.sum(jnp.abs(codes.children.values)) / size


class Contributions(AbstractTerm):
    """``mean_batch (sum_i (code_i |W_dec_i|)^p)^(1/p)``: the p-norm of what each feature adds to the reconstruction.

    With p = 1 the L1 penalty that free decoder norms cannot evade (Anthropic, April 2024; SAELens's standard SAE).

    Args:
        p: the exponent of the norm, above 0.
    """

    p: Positive = eqx.field(static=True, default=1.0)

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        sizes = _contributions(sae, forward)
        if self.p == 1.0:
            return jnp.mean(jnp.sum(sizes, axis=-1))
        # a code of 0 has no finite slope for p < 1, nor has a token without any code
        powers = jnp.where(sizes > 0, jnp.where(sizes > 0, sizes, 1.0) ** self.p, 0.0)
        totals = jnp.sum(powers, axis=-1)
        return jnp.mean(jnp.where(totals > 0, jnp.where(totals > 0, totals, 1.0) ** (1 / self.p), 0.0))


class AnnealedLp(AbstractTerm):
    """``mean_batch sum_i (code_i |W_dec_i|)^p`` with p from a schedule, scaled to the size of the L1 penalty.

    p falling from 1 towards 0 turns L1 into L0 (p-annealing: Karvonen et al., arXiv 2408.00113). They rescale the
    weight at each change of p by the ratio of the penalties; here the ratio to p = 1 is taken on every batch, without
    gradient, to which theirs multiplies up.

    Args:
        p: the exponent, above 0: a schedule of the step.
    """

    p: Annotated[AbstractSchedule, Gt(0)]

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        sizes, p = _contributions(sae, forward), self.p(forward.context.step)
        powers = jnp.where(sizes > 0, jnp.where(sizes > 0, sizes, 1.0) ** p, 0.0)
        ratio = jnp.sum(sizes) / jnp.maximum(jnp.sum(powers), jnp.finfo(sizes.dtype).tiny)
        return jax.lax.stop_gradient(ratio) * jnp.mean(jnp.sum(powers, axis=-1))


def _contributions(sae: AbstractSAE, forward: Forward) -> Float[Array, "batch slots"]:
    codes, norms = forward.codes.flat(), ops.row_norms(sae.dictionary())
    return jnp.abs(codes.values) * (norms if codes.indices is None else norms[codes.indices])
