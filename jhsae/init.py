"""Initialisers: ``part(sae, key) -> sae``, applied in order after construction.

A `HierarchicalSAE` is constructed with encoders equal to decoders (tied at the start, as `MixtureOfExperts_v2`).
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae.constraint import Renormalize
from jhsae.errors import UserError
from jhsae.metric import AbstractMetric, Euclidean
from jhsae.ranges import Positive, Ranged, Words, ranged
from jhsae.sae import AbstractSAE, HierarchicalSAE, require
from jhsae.teacher import Teacher

DROP = "drop it from init"


class AbstractInit(Ranged, eqx.Module):
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

    factor: Positive = eqx.field(static=True)

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        encoder = sae.top_level.encoder
        if encoder is None:
            raise UserError("ScaleEncoder needs an untied encoder; drop it, or take 'router' out of sae.tie")
        return eqx.tree_at(lambda s: s.top_level.encoder, sae, encoder * self.factor)


class SmallDecoder(AbstractInit):
    """Decoder rows of norm `norm`, encoder rows equal to them: the start of SAELens, for free decoder norms.

    Anthropic, Circuits Updates, April 2024. Of a hierarchical SAE it scales the experts' rows.
    """

    norm: Positive = eqx.field(static=True, default=0.1)

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        rows = sae.top_level.decoder
        norms = jnp.linalg.norm(rows, axis=-1, keepdims=True)
        rows = rows * self.norm / jnp.maximum(norms, jnp.finfo(rows.dtype).tiny)
        sae = eqx.tree_at(lambda s: s.top_level.decoder, sae, rows)
        return sae if sae.top_level.encoder is None else eqx.tree_at(lambda s: s.top_level.encoder, sae, rows)


class IndependentStart(AbstractInit):
    """Encoders drawn independently of decoders: Xavier routers and atoms, orthonormal projectors (PolytopeSAE)."""

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        sae = require(sae, HierarchicalSAE, "IndependentStart", DROP)
        if sae.router_enc is None or sae.down is None or sae.atom_enc is None:
            raise UserError(f"IndependentStart needs untied encoders; write sae.tie=[] (got {_tied(sae)} tied)")
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


class FromTeacher(AbstractInit):
    """Copies the concept directions of the teacher in folder `path`: router, projectors, atoms, encoders too.

    Experts and atoms beyond the teacher's stay as they were. Decoders get residual vectors of unit norm in the
    teacher's metric; encoders get their duals, so that an expert's code is the coefficient of its concept.
    """

    path: Words = eqx.field(static=True)

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> HierarchicalSAE:
        sae, teacher = require(sae, HierarchicalSAE, "FromTeacher", DROP), Teacher.load(self.path)
        _check_fits(sae, teacher, self.path)
        parents, children, _ = teacher.atoms.shape
        exists = (jnp.arange(children) < jnp.asarray(teacher.counts)[:, None])[..., None]

        def with_atoms(rows: Float[Array, "experts atoms sub"]) -> Float[Array, "experts atoms sub"]:
            own = rows[:parents, :children]
            return rows.at[:parents, :children].set(jnp.where(exists, jnp.asarray(teacher.atoms), own))

        new = {
            "router_dec": sae.router_dec.at[:parents].set(teacher.parents),
            "up": sae.up.at[:parents].set(teacher.up),
            "atom_dec": with_atoms(sae.atom_dec),
        }
        if sae.router_enc is not None:
            new["router_enc"] = sae.router_enc.at[:parents].set(teacher.readouts)
        if sae.down is not None:
            new["down"] = sae.down.at[:parents].set(teacher.down)
        if sae.atom_enc is not None:
            new["atom_enc"] = with_atoms(sae.atom_enc)
        return eqx.tree_at(lambda s: [getattr(s, name) for name in new], sae, list(new.values()))


class DecodersFromTeacher(AbstractInit):
    """`FromTeacher` without the encoders, which keep their random start: as PolytopeSAE does it."""

    path: Words = eqx.field(static=True)

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        started = require(sae, HierarchicalSAE, "DecodersFromTeacher", DROP)
        taught = FromTeacher(self.path)(started, key)
        return eqx.tree_at(
            lambda s: (s.router_enc, s.atom_enc), taught, (started.router_enc, started.atom_enc), is_leaf=_is_none
        )


@ranged
def teacher_metric(path: Words) -> AbstractMetric:
    """The residual side of the causal metric that the teacher in folder `path` was made in, for a metric slot."""
    return Teacher.load(path).geometry().residual


@ranged
def teacher_unembedding_metric(path: Words) -> AbstractMetric:
    """The other side of it, which PolytopeSAE applies to residual vectors by mistake."""
    return Teacher.load(path).geometry().unembedding


def _is_none(leaf: object) -> bool:
    return leaf is None


def _check_fits(sae: HierarchicalSAE, teacher: Teacher, path: str) -> None:
    parents, children, sub = teacher.atoms.shape
    embed = teacher.parents.shape[1]
    for key, have, need, exact in (
        ("sae.embed", sae.embed, embed, True),
        ("sae.sub", sae.sub, sub, True),
        ("sae.experts", sae.experts, parents, False),
        ("sae.atoms", sae.atoms, children, False),
    ):
        if have != need if exact else have < need:
            raise UserError(
                f"{key} is {have}, but the teacher {path} has {need}; write {key}={need}{'' if exact else ' or more'}"
            )


def _orthonormal_rows(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "experts sub embed"]:
    experts, sub, embed = shape
    q, _ = jnp.linalg.qr(jax.random.normal(key, (experts, max(sub, embed), min(sub, embed))))
    return jnp.swapaxes(q, -1, -2) if sub <= embed else q


def _tied(sae: HierarchicalSAE) -> str:
    names = {"router": sae.router_enc, "projectors": sae.down, "atoms": sae.atom_enc}
    return ", ".join(name for name, array in names.items() if array is None)
