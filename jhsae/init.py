"""Initialisers: ``part(sae, key) -> sae``, applied in order after construction.

A `HierarchicalSAE` is constructed with encoders equal to decoders (tied at the start, as `MixtureOfExperts_v2`).
"""

import abc
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Array, Float, Key

from jhsae.constraint import Renormalize
from jhsae.errors import UserError
from jhsae.metric import AbstractMetric, Diagonal, Euclidean, Shrinkage, Whitened
from jhsae.ranges import Count, Positive, Ranged, Seed, Words, ranged
from jhsae.sae import AbstractSAE, HierarchicalSAE, PursuitSAE, require
from jhsae.teacher import Teacher
from jhsae.teacher.geometry import ROWS, Sampled, activation_geometry

logger = logging.getLogger(__name__)
DROP = "drop it from init"
Degrees = Annotated[float, Ge(0), Le(180)]


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

    Anthropic, Circuits Updates, April 2024. Of a hierarchical SAE it scales the experts' rows; the encoder of an SAE
    that writes something else than it reads stays as it was.
    """

    norm: Positive = eqx.field(static=True, default=0.1)

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        rows = sae.top_level.decoder
        norms = jnp.linalg.norm(rows, axis=-1, keepdims=True)
        rows = rows * self.norm / jnp.maximum(norms, jnp.finfo(rows.dtype).tiny)
        sae = eqx.tree_at(lambda s: s.top_level.decoder, sae, rows)
        if sae.top_level.encoder is None or not sae.writes_input:
            return sae
        return eqx.tree_at(lambda s: s.top_level.encoder, sae, rows)


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

    Experts and atoms beyond the teacher's stay as they were; of a teacher with more, the first ones are taken, in its
    order. Decoders get residual vectors of unit norm in the teacher's metric; encoders get their duals, so that an
    expert's code is the coefficient of its concept.

    Args:
        path: Folder of the teacher.
        parents: Experts start from the concepts.
        projectors: `up` and `down` span the teacher's subspaces.
        children: Atoms start from the children. Their coordinates are those of the teacher's subspaces, so without
            `projectors` they are other directions.
        encoders: Encoders of experts and atoms are copied too, not only decoders.
        jitter: Degrees by which every copied concept and child is rotated, in the teacher's metric, towards a random
            direction orthogonal to it.
        permuted: Seed with which the children are dealt to other parents (`permuted_teacher`), a null of the
            hierarchy; null for the teacher's own.
    """

    path: Words = eqx.field(static=True)
    parents: bool = eqx.field(static=True, default=True)
    projectors: bool = eqx.field(static=True, default=True)
    children: bool = eqx.field(static=True, default=True)
    encoders: bool = eqx.field(static=True, default=True)
    jitter: Degrees = eqx.field(static=True, default=0.0)
    permuted: Seed | None = eqx.field(static=True, default=None)

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> HierarchicalSAE:
        sae, teacher = require(sae, HierarchicalSAE, "FromTeacher", DROP), Teacher.load(self.path)
        _check_fits(sae, teacher, self)
        if self.permuted is not None:
            teacher = permuted_teacher(teacher, self.permuted, sae.experts)
        of_parents, of_children = jax.random.split(key)
        new: dict[str, Array] = {}
        if self.parents:
            new |= _experts(sae, teacher, self.jitter, of_parents)
        if self.projectors:
            count = min(sae.experts, len(teacher.up))
            new |= {
                name: getattr(sae, name).at[:count].set(getattr(teacher, name)[:count]) for name in _projectors(sae)
            }
        if self.children:
            new |= _atoms(sae, teacher, self.jitter, of_children)
        copied = [name for name in new if self.encoders or name not in ("router_enc", "atom_enc")]
        if not copied:
            return sae
        return eqx.tree_at(lambda s: [getattr(s, name) for name in copied], sae, [new[name] for name in copied])


class DecodersFromTeacher(AbstractInit):
    """`FromTeacher` without the encoders, which keep their random start: as PolytopeSAE does it.

    Args:
        path: Folder of the teacher.
    """

    path: Words = eqx.field(static=True)

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        return FromTeacher(self.path, encoders=False)(require(sae, HierarchicalSAE, "DecodersFromTeacher", DROP), key)


class RowsFromTeacher(AbstractInit):
    """The first roots of a pursuit start from the concepts of the teacher in folder `path`, rows below from children.

    Rows are the teacher's residual vectors, of norm 1; every other slot stays as it was. Of a teacher with more
    concepts or children than there are slots, the first ones are taken, in its order.

    Args:
        path: Folder of the teacher.
        children: Whether rows below the roots start from children, as atoms in their parent's subspace.
        permuted: Seed with which the children are dealt to other parents, as in `FromTeacher`.
    """

    path: Words = eqx.field(static=True)
    children: bool = eqx.field(static=True, default=True)
    permuted: Seed | None = eqx.field(static=True, default=None)

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> PursuitSAE:
        sae = require(sae, PursuitSAE, "RowsFromTeacher", "write jhsae.init.FromTeacher")
        teacher = Teacher.load(self.path)
        _check_width("sae.embed", sae.embed, teacher.parents.shape[1], self.path)
        if self.permuted is not None:
            teacher = permuted_teacher(teacher, self.permuted, sae.forest.roots)
        roots, *below = sae.forest.split(sae.rows)
        count = min(roots.shape[1], len(teacher.parents))
        _say_larger(self.path, "sae.levels.0", sae.forest.roots, len(teacher.parents), "concepts")
        levels = [roots.at[0, :count].set(_unit(jnp.asarray(teacher.parents[:count]))), *below]
        if self.children and below:
            _say_larger(self.path, "sae.levels.1", sae.levels[1], teacher.atoms.shape[1], "children per concept")
            own = min(below[0].shape[1], teacher.atoms.shape[1])
            rows = _unit(jnp.einsum("pas,psd->pad", teacher.atoms[:count, :own], teacher.up[:count]))
            exists = (np.arange(own) < teacher.counts[:count, None])[..., None]
            levels[1] = below[0].at[:count, :own].set(jnp.where(exists, rows, below[0][:count, :own]))
        return eqx.tree_at(lambda s: s.rows, sae, jnp.concatenate([a.reshape(-1, sae.embed) for a in levels]))


@ranged
def permuted_teacher(teacher: Teacher, seed: Seed, among: Count | None = None) -> Teacher:
    """The same parents and the same families of children, each under another parent: a null of the hierarchy.

    A family is a parent's children with the subspace that they span, so every direction of the teacher occurs as often
    as before. Which parent has which family is one random cycle: none keeps its own, unless there is one parent.

    Args:
        teacher: The teacher.
        seed: Of the cycle.
        among: The first parents, among which families are dealt, as many as an SAE has experts; None for all.
    """
    count = len(teacher.parents) if among is None else min(among, len(teacher.parents))
    cycle = np.random.default_rng(seed).permutation(count)
    dealt = np.arange(len(teacher.parents))
    dealt[cycle] = np.roll(cycle, 1)
    families = {name: getattr(teacher, name)[dealt] for name in ("deltas", "up", "down", "atoms", "counts")}
    own = zip(teacher.concepts, dealt, strict=True)
    return replace(
        teacher, **families, concepts=tuple(replace(c, children=teacher.concepts[i].children) for c, i in own)
    )


@ranged
def teacher_metric(path: Words) -> AbstractMetric:
    """The residual side of the causal metric that the teacher in folder `path` was made in, for a metric slot."""
    return Teacher.load(path).geometry().residual


@ranged
def teacher_unembedding_metric(path: Words) -> AbstractMetric:
    """The unembedding side of the same metric, which PolytopeSAE applies to residual vectors by mistake.

    Args:
        path: Folder of the teacher.
    """
    return Teacher.load(path).geometry().unembedding


@ranged
def teacher_diagonal_metric(path: Words) -> AbstractMetric:
    """The diagonal of the teacher's Σ on the residual side: scales of the dimensions without their correlations.

    Args:
        path: Folder of the teacher.
    """
    return Diagonal(jnp.sqrt(jnp.diagonal(jnp.asarray(Teacher.load(path).sigma))))


@ranged
def activation_metric(path: Words, rows: Sampled = ROWS, shrinkage: Shrinkage = 0.05) -> AbstractMetric:
    """The metric in which activations of a store are white.

    Args:
        path: Folder of the store.
        rows: How many activations, from the first on.
        shrinkage: Weight of the identity in their covariance, or "ledoit_wolf".

    Raises:
        UserError: There is no such store, or its activations have no metric
            (`jhsae.teacher.geometry.activation_geometry`).
    """
    return activation_geometry(path, rows, shrinkage).residual


@ranged
def activation_diagonal_metric(path: Words, rows: Sampled = ROWS, shrinkage: Shrinkage = 0.05) -> AbstractMetric:
    """The metric in which every dimension of a store's activations has the same variance.

    Args:
        path: Folder of the store.
        rows: How many activations, from the first on.
        shrinkage: Weight of the identity in their covariance, or "ledoit_wolf".

    Raises:
        UserError: As for `activation_metric`.
    """
    sigma = activation_geometry(path, rows, shrinkage, diagonal=True).sigma
    return Diagonal(jnp.sqrt(jnp.diagonal(sigma)))


def any_metric(embed: Count) -> AbstractMetric:
    """A metric of the right shape whose values are never used, where no teacher or store is read (`jhsae plan`)."""
    return Whitened(jnp.eye(embed))


def any_diagonal(embed: Count) -> AbstractMetric:
    """The same for a diagonal metric."""
    return Diagonal(jnp.ones(embed))


STAND_INS: dict[Callable[..., AbstractMetric], Callable[[int], AbstractMetric]] = {
    teacher_metric: any_metric,
    teacher_unembedding_metric: any_metric,
    teacher_diagonal_metric: any_diagonal,
    activation_metric: any_metric,
    activation_diagonal_metric: any_diagonal,
}


def rotated(key: Key[Array, ""], rows: Float[Array, "*batch embed"], degrees: float) -> Float[Array, "*batch embed"]:
    """Every row rotated towards a random direction orthogonal to it; norms stay, zero rows stay zero.

    Args:
        key: Of the random directions.
        rows: Vectors, [*batch, embed].
        degrees: The angle of the rotation.

    Raises:
        UserError: Rows of one dimension, which have no orthogonal direction.
    """
    if rows.shape[-1] < 2:
        raise UserError(
            "jitter rotates directions, and those of 1 dimension cannot be; write jitter=0, or a larger sub"
        )
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    unit = _unit(rows)
    tangent = jax.random.normal(key, rows.shape)
    tangent -= jnp.sum(tangent * unit, axis=-1, keepdims=True) * unit
    tangent /= jnp.linalg.norm(tangent, axis=-1, keepdims=True)
    angle = jnp.deg2rad(degrees)
    return norm * (jnp.cos(angle) * unit + jnp.sin(angle) * tangent)


def _experts(sae: HierarchicalSAE, teacher: Teacher, jitter: float, key: Key[Array, ""]) -> dict[str, Array]:
    """Decoder and encoder rows of the experts, with the teacher's concepts in the first ones."""
    count = min(sae.experts, len(teacher.parents))
    decoder, encoder = jnp.asarray(teacher.parents[:count]), jnp.asarray(teacher.readouts[:count])
    if jitter:
        geometry = teacher.geometry()
        unified = rotated(key, geometry.residual.whiten(decoder), jitter)
        decoder, encoder = geometry.unembedding.whiten(unified), geometry.residual.whiten(unified)
    new = {"router_dec": sae.router_dec.at[:count].set(decoder)}
    return new if sae.router_enc is None else new | {"router_enc": sae.router_enc.at[:count].set(encoder)}


def _projectors(sae: HierarchicalSAE) -> tuple[str, ...]:
    return ("up",) if sae.down is None else ("up", "down")


def _atoms(sae: HierarchicalSAE, teacher: Teacher, jitter: float, key: Key[Array, ""]) -> dict[str, Array]:
    """Decoder and encoder rows of the atoms, with the teacher's children in the first ones of each expert."""
    parents, children = min(sae.experts, len(teacher.atoms)), min(sae.atoms, teacher.atoms.shape[1])
    rows = jnp.asarray(teacher.atoms[:parents, :children])
    if jitter:
        rows = rotated(key, rows, jitter)
    exists = (jnp.arange(children) < jnp.asarray(teacher.counts[:parents])[:, None])[..., None]

    def with_atoms(own: Float[Array, "experts atoms sub"]) -> Float[Array, "experts atoms sub"]:
        return own.at[:parents, :children].set(jnp.where(exists, rows, own[:parents, :children]))

    new = {"atom_dec": with_atoms(sae.atom_dec)}
    return new if sae.atom_enc is None else new | {"atom_enc": with_atoms(sae.atom_enc)}


def _unit(rows: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), jnp.finfo(rows.dtype).tiny)


def _check_width(key: str, have: int, need: int, path: str) -> None:
    if have != need:
        raise UserError(f"{key} is {have}, but the teacher {path} has {need}; write {key}={need}")


def _check_fits(sae: HierarchicalSAE, teacher: Teacher, init: FromTeacher) -> None:
    """Raises `UserError` for widths that differ; logs how much of a larger teacher is taken."""
    parents, children, sub = teacher.atoms.shape
    _check_width("sae.embed", sae.embed, teacher.parents.shape[1], init.path)
    if init.projectors or init.children:
        _check_width("sae.sub", sae.sub, sub, init.path)
    _say_larger(init.path, "sae.experts", sae.experts, parents, "concepts")
    _say_larger(init.path, "sae.atoms", sae.atoms, children, "children per concept")


def _say_larger(path: str, key: str, have: int, given: int, what: str) -> None:
    if have < given:
        _say(f"{key} is {have}: of the teacher {path}, which has {given} {what}, the first {have} are used")


@cache
def _say(sentence: str) -> None:
    """Logs a sentence once: a run builds its SAE several times, first as shapes alone."""
    logger.info(sentence)


def _orthonormal_rows(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "experts sub embed"]:
    experts, sub, embed = shape
    q, _ = jnp.linalg.qr(jax.random.normal(key, (experts, max(sub, embed), min(sub, embed))))
    return jnp.swapaxes(q, -1, -2) if sub <= embed else q


def _tied(sae: HierarchicalSAE) -> str:
    names = {"router": sae.router_enc, "projectors": sae.down, "atoms": sae.atom_enc}
    return ", ".join(name for name, array in names.items() if array is None)
