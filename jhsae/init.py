"""Initialisers: ``part(sae, key) -> sae``, applied in order after construction.

A `HierarchicalSAE` is constructed with encoders equal to decoders (tied at the start, as `MixtureOfExperts_v2`).
"""

import abc
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae.constraint import Renormalize
from jhsae.errors import UserError
from jhsae.metric import AbstractMetric, Euclidean
from jhsae.sae import AbstractSAE, HierarchicalSAE
from jhsae.teacher import Teacher


class AbstractInit(eqx.Module):
    """``part(sae, key) -> sae`` with other starting values."""

    @abc.abstractmethod
    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        """The SAE with other starting values."""


class UnitDecoder(AbstractInit):
    """Decoder rows start with norm 1 under `metric`, instead of reaching it with the first update."""

    metric: AbstractMetric = Euclidean()

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        params, static = eqx.partition(sae, eqx.is_inexact_array)
        return eqx.combine(Renormalize(self.metric).retract(params), static)


class ScaleEncoder(AbstractInit):
    """Multiplies the router's (or the flat SAE's) encoder by `factor`; 0.1 starts with small codes."""

    factor: float = eqx.field(static=True)

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        where = (lambda s: s.router_enc) if isinstance(sae, HierarchicalSAE) else (lambda s: s.W_enc)
        if where(sae) is None:
            raise UserError("ScaleEncoder needs an untied encoder; drop it, or take 'router' out of sae.tie")
        return eqx.tree_at(where, sae, where(sae) * self.factor)


class IndependentStart(AbstractInit):
    """Encoders drawn independently of decoders: Xavier routers and atoms, orthonormal projectors (PolytopeSAE)."""

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        sae = _hierarchical(sae)
        if sae.router_enc is None or sae.down is None or sae.atom_enc is None:
            raise UserError(
                f"IndependentStart needs untied encoders; write sae.tie=[] (got {_tied(sae)} tied)"
            )
        keys = jax.random.split(key, 6)
        xavier = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2, batch_axis=())
        atoms = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2, batch_axis=(0,))
        return eqx.tree_at(
            lambda s: (s.router_enc, s.router_dec, s.down, s.up, s.atom_enc, s.atom_dec),
            sae,
            (
                xavier(keys[0], sae.router_enc.shape),
                xavier(keys[1], sae.router_dec.shape),
                _orthonormal_rows(keys[2], sae.down.shape),
                _orthonormal_rows(keys[3], sae.up.shape),
                atoms(keys[4], sae.atom_enc.shape),
                atoms(keys[5], sae.atom_dec.shape),
            ),
        )


def _orthonormal_rows(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "experts sub embed"]:
    experts, sub, embed = shape
    q, _ = jnp.linalg.qr(jax.random.normal(key, (experts, max(sub, embed), min(sub, embed))))
    return jnp.swapaxes(q, -1, -2) if sub <= embed else q


def _hierarchical(sae: AbstractSAE) -> HierarchicalSAE:
    if not isinstance(sae, HierarchicalSAE):
        raise UserError(
            f"this initialiser is for a HierarchicalSAE, got {type(sae).__name__}; drop it from init"
        )
    return sae


def _tied(sae: HierarchicalSAE) -> str:
    names = {"router": sae.router_enc, "projectors": sae.down, "atoms": sae.atom_enc}
    return ", ".join(name for name, array in names.items() if array is None)
