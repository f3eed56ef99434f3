"""Unit norm of the leaves that declare a unit axis, under a metric.

``tangent`` removes the part of a gradient that would change the norm (gradient projection); ``retract`` puts
parameters back on the sphere (renormalisation). Both are pure; `optimizer.py` wraps them as optax transformations.
A metric applies along the ``embed`` axis; other unit axes (inside an expert's subspace) are Euclidean.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jhsae.leaf import Leaf, describe
from jhsae.metric import AbstractMetric, Euclidean

TINY = 1e-12  # a zero row stays zero instead of becoming NaN


class AbstractConstraint(eqx.Module):
    """A constraint on the parameters; frozen or unmarked leaves pass through unchanged."""

    @abc.abstractmethod
    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        """The gradients, projected onto directions that keep the constraint."""

    @abc.abstractmethod
    def retract(self, params: PyTree) -> PyTree:
        """The parameters, put back on the constraint."""


class Free(AbstractConstraint):
    """No constraint."""

    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        return grads

    def retract(self, params: PyTree) -> PyTree:
        return params


class Renormalize(AbstractConstraint):
    """Unit norm by renormalising after each update; gradients are left alone (PolytopeSAE, `Euclidean`)."""

    metric: AbstractMetric = Euclidean()

    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        return grads

    def retract(self, params: PyTree) -> PyTree:
        return _map_unit(lambda leaf, p: _retract(_metric_of(self.metric, leaf), p, leaf.unit), params)


class ProjectAndRenormalize(AbstractConstraint):
    """Unit norm by projecting gradients onto the sphere's tangent, then renormalising after each update.

    The order of `MixtureOfExperts_v2`: projection before clipping and Adam.
    """

    metric: AbstractMetric = Euclidean()

    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        def project(leaf: Leaf, p: Array, g: Array) -> Array:
            return _tangent(_metric_of(self.metric, leaf), p, g, leaf.unit)

        return _map_unit(project, params, grads)

    def retract(self, params: PyTree) -> PyTree:
        return _map_unit(lambda leaf, p: _retract(_metric_of(self.metric, leaf), p, leaf.unit), params)


def _map_unit(fn, params: PyTree, *rest: PyTree) -> PyTree:
    """Applies ``fn(leaf, param, *rest)`` at leaves with a unit axis; elsewhere keeps the last tree's value."""
    return jax.tree.map(
        lambda leaf, p, *r: fn(leaf, p, *r) if leaf.unit is not None else (p, *r)[-1],
        describe(params),
        params,
        *rest,
    )


def _metric_of(metric: AbstractMetric, leaf: Leaf) -> AbstractMetric:
    return metric if leaf.unit is not None and leaf.axes[leaf.unit] == "embed" else Euclidean()


def _retract(metric: AbstractMetric, p: Float[Array, "..."], axis: int | None) -> Float[Array, "..."]:
    rows = jnp.moveaxis(p, axis, -1)
    rows = rows / jnp.maximum(metric.norm(rows)[..., None], TINY)
    return jnp.moveaxis(rows, -1, axis)


def _tangent(
    metric: AbstractMetric, p: Float[Array, "..."], g: Float[Array, "..."], axis: int | None
) -> Float[Array, "..."]:
    rows, grads = jnp.moveaxis(p, axis, -1), jnp.moveaxis(g, axis, -1)
    normal = metric.dual(rows)  # the gradient of |row|^2 / 2: the normal of the sphere at the row
    normal = normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), TINY)
    return jnp.moveaxis(grads - jnp.sum(grads * normal, axis=-1, keepdims=True) * normal, -1, axis)
