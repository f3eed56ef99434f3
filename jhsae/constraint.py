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

from jhsae.leaf import Leaf, describe
from jhsae.metric import AbstractMetric, Euclidean
from jhsae.ranges import Ranged

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


class AncestorsOut(AbstractConstraint):
    """Unit norm, and in a forest (`jhsae.sae.PursuitSAE`) every row orthogonal to all of its ancestors; top-down.

    Gradients are left alone: at codes that solve least squares the residual is orthogonal to the active rows, so that
    little of a gradient lies along the row or its ancestors. An empty row stays empty.
    """

    def tangent(self, grads: PyTree, params: PyTree) -> PyTree:
        return grads

    def retract(self, params: PyTree) -> PyTree:
        unit = _map_unit(_retract, Euclidean(), params)
        orthogonal = lambda leaf, a: a if leaf.levels is None else _without_ancestors(a, leaf.levels)  # noqa: E731
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


def _without_ancestors(rows: Float[Array, "features embed"], levels: tuple[int, ...]) -> Float[Array, "features embed"]:
    """Unit rows of a forest, orthogonal to their ancestors, from unit rows."""
    done: list[Array] = []
    ancestors: list[Array] = []
    start, count = 0, 1
    for each in levels:
        block = rows[start : start + count * each].reshape(count, each, -1)
        for _ in range(2):  # rounding of the first pass, where little is left of a row
            for above in ancestors:  # orthogonal to each other
                block = block - jnp.einsum("aed,ad->ae", block, above)[..., None] * above[:, None]
            block = _retract(Euclidean(), block)
        start, count = start + count * each, count * each
        done.append(block.reshape(count, -1))
        ancestors = [jnp.repeat(a, each, axis=0) for a in ancestors] + [done[-1]]
    return jnp.concatenate(done)


def _tangent(metric: AbstractMetric, rows: Float[Array, "*n d"], grads: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    normal = metric.dual(rows)  # the gradient of |row|^2 / 2: the normal of the sphere at the row
    normal = normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), LEAST_NORM)
    return grads - jnp.sum(grads * normal, axis=-1, keepdims=True) * normal
