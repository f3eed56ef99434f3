"""Orthogonality of the weights. The first three are corrected; the last three reproduce the originals.

Corrections (each original form keeps its own class, named for what it does): cross-orthogonality is the mean squared
off-diagonal cosine, by the Gram identity, where the original subtracted the diagonal as a row; bi-orthogonality is a
mean, where the original summed over all pairs; causal orthogonality acts on the child delta itself, on the residual
side of the metric, where the original subtracted the parent from a vector that already is a delta.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.losses.base import AbstractTerm
from jhsae.metric import AbstractMetric
from jhsae.sae import AbstractHierarchicalSAE, Forward, HierarchicalSAE


class CrossOrthogonality(AbstractTerm):
    """``mean_{i != j} cos(router_enc_i, router_dec_j)^2``: an expert's encoder should not read other experts."""

    accepts = HierarchicalSAE

    def __call__(self, sae: HierarchicalSAE, forward: Forward) -> Float[Array, ""]:
        router_enc, _, _ = sae.encoders()
        return ops.off_diagonal_mean(ops.unit_rows(router_enc), ops.unit_rows(sae.router_dec))


class BiOrthogonality(AbstractTerm):
    """`CrossOrthogonality` of the router plus its mean over the experts' own atom encoders and decoders."""

    accepts = HierarchicalSAE

    def __call__(self, sae: HierarchicalSAE, forward: Forward) -> Float[Array, ""]:
        router_enc, _, atom_enc = sae.encoders()
        router = ops.off_diagonal_mean(ops.unit_rows(router_enc), ops.unit_rows(sae.router_dec))
        atoms = ops.off_diagonal_mean(ops.unit_rows(atom_enc), ops.unit_rows(sae.atom_dec))
        return router + jnp.mean(atoms)


class CausalOrthogonality(AbstractTerm):
    """``mean_{e,a} cos_M(router_dec_e, atom_dec_ea up_e)^2``: a child moves orthogonally to its parent.

    The hypothesis of Park et al. (arXiv 2406.01506, theorem 8). `metric` is the residual side of the causal metric,
    because decoder rows are residual vectors. A cosine, so that shrinking `up` does not lower it.

    Args:
        metric: of residual vectors, in which directions are to be orthogonal.
    """

    accepts = AbstractHierarchicalSAE
    metric: AbstractMetric

    def __call__(self, sae: AbstractHierarchicalSAE, forward: Forward) -> Float[Array, ""]:
        parents = ops.unit_rows(self.metric.whiten(sae.router_dec))
        deltas = jnp.einsum("eas,esd->ead", sae.atom_dec, self.metric.whiten(sae.up))
        cosines = jnp.einsum("ed,ead->ea", parents, ops.unit_rows(deltas))
        return jnp.mean(cosines**2)


class CrossOrthogonalityRowDiagonal(AbstractTerm):
    """``||E D - 1 diag(E D)^T||_F / (n^2 - n)``: `MixtureOfExperts_v2` as published.

    ``jnp.diag`` of a matrix is a vector, so the diagonal is subtracted from every row; the term pulls off-diagonal
    entries towards the diagonal and is nearly inert. Expanded with the Gram identity: no n x n array.
    """

    accepts = HierarchicalSAE

    def __call__(self, sae: HierarchicalSAE, forward: Forward) -> Float[Array, ""]:
        router_enc, _, _ = sae.encoders()
        enc, dec = ops.unit_rows(router_enc), ops.unit_rows(sae.router_dec)
        n = enc.shape[0]
        diagonal = jnp.sum(enc * dec, axis=-1)
        cross = jnp.dot(jnp.sum(dec, axis=0), diagonal @ enc)
        squares = ops.sum_of_squared_inner(dec, enc) - 2 * cross + n * jnp.sum(diagonal**2)
        positive = squares > 0  # rounding may make it negative, and the slope of a root at 0 is infinite
        root = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
        return root / max(float(n * n - n), 1.0)


class BiOrthogonalityRawSum(AbstractTerm):
    """``||E D - I||_F^2 + sum_e ||atom_enc_e atom_dec_e - I||_F^2``: PolytopeSAE as published, a raw sum."""

    accepts = HierarchicalSAE

    def __call__(self, sae: HierarchicalSAE, forward: Forward) -> Float[Array, ""]:
        router_enc, _, atom_enc = sae.encoders()
        return _distance_to_identity(router_enc, sae.router_dec) + jnp.sum(
            _distance_to_identity(atom_enc, sae.atom_dec)
        )


class CausalOrthogonalityMinusParent(AbstractTerm):
    """``sum_{e,a} <router_dec_e, atom_dec_ea up_e - router_dec_e>_M^2``: PolytopeSAE as published.

    The parent is subtracted from a vector that already is a delta: at the ideal, delta orthogonal to the parent,
    each summand is 1. The original evaluates it on the unembedding side of the metric.

    Args:
        metric: of residual vectors, in which directions are to be orthogonal.
    """

    accepts = AbstractHierarchicalSAE
    metric: AbstractMetric

    def __call__(self, sae: AbstractHierarchicalSAE, forward: Forward) -> Float[Array, ""]:
        parents = self.metric.whiten(sae.router_dec)
        deltas = jnp.einsum("eas,esd->ead", sae.atom_dec, self.metric.whiten(sae.up))
        return jnp.sum(jnp.einsum("ed,ead->ea", parents, deltas - parents[:, None, :]) ** 2)


def _distance_to_identity(enc: Float[Array, "*b n d"], dec: Float[Array, "*b n d"]) -> Float[Array, "*b"]:
    diagonal = jnp.sum(enc * dec, axis=-1)
    return ops.sum_of_squared_inner(enc, dec) - 2 * jnp.sum(diagonal, axis=-1) + enc.shape[-2]
