"""Unit norm of the leaves that declare a unit axis, under a metric.

``tangent`` removes the part of a gradient that would change the norm (gradient projection); ``retract`` puts
parameters back on the sphere (renormalisation). Both are pure; `optimizer.py` wraps them as optax transformations, and
keeps leaves that are declared `NonNegative` at 0 or above (`optimizer.nonnegative`), whatever the constraint.
A metric applies along the ``embed`` axis; other unit axes (inside an expert's subspace) are Euclidean.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jhsae.leaf import Leaf, check_has, describe
from jhsae.metric import AbstractMetric, Euclidean
from jhsae.ranges import Count, Ranged

LEAST_NORM = 1e-12  # what rows are divided by at least: a zero row stays zero instead of becoming NaN


class AbstractConstraint(Ranged, eqx.Module):
    """A constraint on the parameters; leaves without a unit axis pass through unchanged."""

    @abc.abstractmethod
    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        """The gradients, projected onto directions that keep the constraint."""

    @abc.abstractmethod
    def retract(self, params: PyTree) -> PyTree:
        """The parameters, put back on the constraint."""


class Unconstrained(AbstractConstraint):
    """No constraint."""

    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        return grads

    def retract(self, params: PyTree) -> PyTree:
        return params


class Renormalize(AbstractConstraint):
    """Unit norm by renormalising after each update; gradients are left alone (PolytopeSAE, with `Euclidean`)."""

    metric: AbstractMetric = Euclidean()

    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        return grads

    def retract(self, params: PyTree) -> PyTree:
        return _map_unit(_retract, self.metric, params)


class ProjectAndRenormalize(AbstractConstraint):
    """Unit norm by projecting gradients onto the sphere's tangent, then renormalising after each update.

    The order of `MixtureOfExperts_v2`: projection before clipping and Adam.
    """

    metric: AbstractMetric = Euclidean()

    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        return _map_unit(_tangent, self.metric, params, grads)

    def retract(self, params: PyTree) -> PyTree:
        return _map_unit(_retract, self.metric, params)


class NearOrthonormal(AbstractConstraint):
    """`ProjectAndRenormalize`, and the subspace of every expert of a `HierarchicalSAE` near orthonormal.

    After each update one Newton-Schulz step, ``up <- 1.5 up - 0.5 (up up^T) up``, moves the rows of an expert's
    projector towards orthonormal ones; then the direction of the expert itself is projected out of them, so that what
    its atoms add is no part of it. Rows that are far from orthonormal are made shorter first, for the step to converge.
    """

    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        return ProjectAndRenormalize().tangent(grads, params)

    def retract(self, params: PyTree) -> PyTree:
        instead = "jhsae.constraint.ProjectAndRenormalize, or jhsae.constraint.AncestorsOut for a pursuit"
        check_has(params, ("up", "router_dec"), "NearOrthonormal", instead)
        params = ProjectAndRenormalize().retract(params)
        up, parent = params.up, params.router_dec
        gram = jnp.einsum("esd,etd->est", up, up)
        largest = jnp.max(jnp.sum(jnp.abs(gram), axis=-1), axis=-1)  # at least the largest singular value, squared
        shorter = 1 / jnp.maximum(largest, 1.0)
        step = 1.5 * up - 0.5 * jnp.einsum("est,etd->esd", gram * shorter[:, None, None], up)
        up = step * jnp.sqrt(shorter)[:, None, None]
        up = up - jnp.einsum("esd,ed->es", up, parent)[..., None] * parent[:, None]
        return eqx.tree_at(lambda p: p.up, params, up)


class AncestorsOut(AbstractConstraint):
    """Unit norm, and in a forest (`jhsae.sae.PursuitSAE`) every row orthogonal to all of its ancestors; top-down.

    Gradients are left alone: at codes that solve least squares the residual is orthogonal to the active rows, so that
    little of a gradient lies along the row or its ancestors. An empty row stays empty.

    Args:
        subspace: the dimensions that the rows below one row may span, as the atoms of a `HierarchicalSAE` do: after
            each update they are projected onto their largest principal directions. None for any number.
    """

    subspace: Count | None = eqx.field(static=True, default=None)

    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        return grads

    def retract(self, params: PyTree) -> PyTree:
        unit = _map_unit(_retract, Euclidean(), params)

        def orthogonal(leaf: Leaf, rows: Array) -> Array:
            return rows if leaf.levels is None else _without_ancestors(rows, leaf.levels, self.subspace)

        return jax.tree.map(orthogonal, describe(params), unit)


def _map_unit(fn: Callable[..., Array], metric: AbstractMetric, params: PyTree, *rest: PyTree) -> PyTree:
    """``fn(metric, rows, ...)`` at leaves with a unit axis, brought last; elsewhere the last tree's value stays."""

    def one(leaf: Leaf, *values: Array) -> Array:
        if leaf.unit is None:
            return values[-1]
        here = metric if leaf.axes[leaf.unit] == "embed" else Euclidean()
        return jnp.moveaxis(fn(here, *(jnp.moveaxis(v, leaf.unit, -1) for v in values)), -1, leaf.unit)

    return jax.tree.map(one, describe(params), params, *rest)


def _retract(metric: AbstractMetric, rows: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    return rows / jnp.maximum(metric.norm(rows)[..., None], LEAST_NORM)


def _without_ancestors(
    rows: Float[Array, "features embed"], levels: tuple[int, ...], subspace: int | None
) -> Float[Array, "features embed"]:
    """Unit rows of a forest, orthogonal to their ancestors and in subspaces, from unit rows."""
    done: list[Array] = []
    ancestors: list[Array] = []
    start, count = 0, 1
    for each in levels:
        block = rows[start : start + count * each].reshape(count, each, -1)
        for _ in range(2):  # rounding of the first pass, where little is left of a row
            for above in ancestors:  # orthogonal to each other
                block = block - jnp.einsum("aed,ad->ae", block, above)[..., None] * above[:, None]
            block = _retract(Euclidean(), block)
        if subspace is not None and start and subspace < each:
            block = _retract(Euclidean(), _principal(block, subspace))  # in the span of the rows, so orthogonal as they
        start, count = start + count * each, count * each
        done.append(block.reshape(count, -1))
        ancestors = [jnp.repeat(a, each, axis=0) for a in ancestors] + [done[-1]]
    return jnp.concatenate(done)


def _principal(block: Float[Array, "above each embed"], most: int) -> Float[Array, "above each embed"]:
    """The part of the rows below each row that lies along the `most` largest principal directions of those rows."""
    there = jnp.any(block != 0, axis=-1, keepdims=True)
    _, vectors = jnp.linalg.eigh(jnp.einsum("aed,afd->aef", block, block))  # ascending
    largest = vectors[..., -most:]
    parts = jnp.einsum("aem,afm,afd->aed", largest, largest, block)
    return jnp.where(there, parts, 0.0)  # an empty row stays one: its part is a rounding error, not 0


def _tangent(metric: AbstractMetric, rows: Float[Array, "*n d"], grads: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    normal = metric.dual(rows)  # the gradient of |row|^2 / 2: the normal of the sphere at the row
    normal = normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), LEAST_NORM)
    return grads - jnp.sum(grads * normal, axis=-1, keepdims=True) * normal
