"""Tensors of a Hugging Face folder, read slice by slice and put where they belong.

A sharded array asks for the slices that this process's devices hold, and nothing else is read: one array at a time, of
a stacked one layer after layer, each slice once however many devices hold it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jhsae.leaf import Leaf, describe
from jhsae.lm.accounting import tensor_names
from jhsae.lm.base import AbstractLM
from jhsae.lm.scaled import Weights
from jhsae.lm.sharding import shardings
from jhsae.lm.tensors import Index

THREE = "qkv"  # an axis of queries, keys and values, which files hold as one with the next axis: one after another


def load_weights(model: AbstractLM, weights: Weights, mesh: Mesh | None) -> AbstractLM:
    """`model` is one of shapes; its arrays come from `weights`, on `mesh` or on the default device.

    UserError: a tensor is missing, or has another dtype or shape than config.json implies; before any is read.
    """
    _check(model, weights)
    structs, tree = jax.tree.flatten(model)
    layouts = [None] * len(structs) if mesh is None else jax.tree.leaves(shardings(model, mesh))

    def leaf(facts: Leaf, struct: jax.ShapeDtypeStruct, layout: jax.sharding.Sharding | None) -> jax.Array:
        read = _reader(weights, model.tensors[facts.path], struct, facts)
        if layout is None:
            return jnp.asarray(read((slice(None),) * struct.ndim))
        return jax.make_array_from_callback(struct.shape, layout, _once(read), dtype=struct.dtype)

    return jax.tree.unflatten(tree, map(leaf, jax.tree.leaves(describe(model)), structs, layouts))


def _check(model: AbstractLM, weights: Weights) -> None:
    names = tensor_names(model)
    for facts, struct in zip(jax.tree.leaves(describe(model)), jax.tree.leaves(model), strict=True):
        stacked = "{}" in model.tensors[facts.path]
        shape = _fused_shape(struct.shape, facts)
        for name in names[facts.path]:
            weights.check(name, shape[1:] if stacked else shape)


def fused(values: np.ndarray, facts: Leaf) -> np.ndarray:
    """A leaf in the shape that files have it in."""
    return values.reshape(_fused_shape(values.shape, facts))


def _fused_shape(shape: tuple[int, ...], facts: Leaf) -> tuple[int, ...]:
    if THREE not in facts.axes:
        return shape
    place = facts.axes.index(THREE)
    return (*shape[:place], shape[place] * shape[place + 1], *shape[place + 2 :])


def _reader(weights: Weights, name: str, struct: jax.ShapeDtypeStruct, facts: Leaf) -> Callable[[Index], np.ndarray]:
    """A function from an index into one array to its values."""

    def stacked(index: Index) -> np.ndarray:
        layers = range(*index[0].indices(struct.shape[0]))
        sizes = [len(range(*part.indices(n))) for part, n in zip(index[1:], struct.shape[1:], strict=True)]
        out = np.empty((len(layers), *sizes), struct.dtype)
        for row, layer in enumerate(layers):
            one = jax.ShapeDtypeStruct(struct.shape[1:], struct.dtype)
            out[row] = _read(weights, name.format(layer), index[1:], one, facts.axes[1:])
        return out

    return stacked if "{}" in name else lambda index: _read(weights, name, index, struct, facts.axes)


def _read(weights: Weights, name: str, index: Index, struct: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> np.ndarray:
    """A slice of one tensor with logical `axes`."""
    if THREE not in axes:
        return weights.read(name, index, struct.dtype)
    at = axes.index(THREE)
    size = struct.shape[at + 1]
    first, last, _ = index[at + 1].indices(size)
    parts = range(*index[at].indices(struct.shape[at]))
    places = [(*index[:at], slice(part * size + first, part * size + last), *index[at + 2 :]) for part in parts]
    return np.stack([weights.read(name, place, struct.dtype) for place in places], axis=at)


def _once(read: Callable[[Index], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """The same function, reading what several devices share only once."""
    seen: dict[tuple[tuple[int | None, int | None], ...], np.ndarray] = {}

    def cached(index: Index) -> np.ndarray:
        key = tuple((part.start, part.stop) for part in index)
        if key not in seen:
            seen[key] = read(index)
        return seen[key]

    return cached
