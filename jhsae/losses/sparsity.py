"""L1 penalties; which codes they cover differs between the originals and is named in the class."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.errors import UserError
from jhsae.losses.base import AbstractTerm
from jhsae.sae import AbstractSAE, Forward, HierarchicalSAE


class L1Active(AbstractTerm):
    """``mean_batch sum |codes|`` over the active features alone: the corrected scope."""

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        values = forward.codes.flat().values
        return jnp.sum(jnp.abs(values)) / values.shape[0]


class L1All(AbstractTerm):
    """``mean_batch (sum |all activated experts| + sum |all atoms of the selected experts|)``.

    The scope of `MixtureOfExperts_v2`: experts outside the top k and losing atoms are penalised too.
    """

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        if not isinstance(sae, HierarchicalSAE):
            raise UserError("L1All needs a hierarchical SAE; write L1Active for a flat one")
        parents = jnp.sum(jnp.abs(sae.route.activate(forward.pre)))
        children = jnp.sum(jnp.abs(sae.pick.activate(forward.tree_pre())))
        return (parents + children) / forward.x.shape[0]


class MeanL1Parents(AbstractTerm):
    """``mean over batch and experts of |parent code|`` (PolytopeSAE). Constant for binary codes: no gradient."""

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        codes = forward.tree().parents
        return jnp.sum(jnp.abs(codes.values)) / (codes.values.shape[0] * codes.size)


class MeanL1Children(AbstractTerm):
    """``mean over batch, experts and atoms of |atom code|`` (PolytopeSAE)."""

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        codes = forward.tree()
        size = codes.children.values.shape[0] * codes.parents.size * codes.children.size
        return jnp.sum(jnp.abs(codes.children.values)) / size
