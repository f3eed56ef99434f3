"""Tensors of a Hugging Face folder, read slice by slice and put where they belong.

A sharded array asks for the slices that this process's devices hold, and nothing else is read: one array at a time, of
a stacked one layer after layer, each slice once however many devices hold it.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from jhsae.errors import UserError
from jhsae.leaf import Leaf, describe
from jhsae.lm.base import AbstractLM
from jhsae.lm.sharding import shardings

Index = tuple[slice, ...]


class Weights:
    """The safetensors of a folder, one file or shards with an index; a context that closes them.

    UserError: no weights there, no such tensor, a shard that is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        self._files: dict[str, Any] = {}
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if index.exists():
            self._shard: dict[str, str] = json.loads(index.read_text())["weight_map"]
        elif single.exists():
            self._shard = dict.fromkeys(self._file(single.name).keys(), single.name)
        else:
            raise UserError(f"no model.safetensors and no {index.name} in {folder}; write a folder with weights")

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor."""
        return tuple(self._slices(name).get_shape())

    def read(self, name: str, index: Index) -> np.ndarray:
        """A slice of one tensor, in the dtype of the file."""
        return self._slices(name)[index]

    def _slices(self, name: str) -> Any:
        if name not in self._shard:
            raise UserError(f"no tensor {name} in the weights of {self._folder}; the checkpoint is not complete")
        return self._file(self._shard[name], name).get_slice(name)

    def _file(self, shard: str, wanted: str = "weights") -> Any:
        path = self._folder / shard
        if shard not in self._files:
            if not path.exists():
                raise UserError(f"shard {shard} is missing in {self._folder} (it holds {wanted}); fetch it again")
            try:
                self._files[shard] = self._stack.enter_context(safe_open(path, "np"))
            except SafetensorError as error:
                raise UserError(f"{path} is damaged ({error}); fetch it again") from error
        return self._files[shard]


def fill(model: AbstractLM, weights: Weights, mesh: Mesh | None) -> AbstractLM:
    """`model` is one of shapes; its arrays come from `weights`, on `mesh` or on the default device.

    UserError: a tensor whose shape is not what config.json says.
    """
    structs, tree = jax.tree.flatten(model)
    layouts = [None] * len(structs) if mesh is None else jax.tree.leaves(shardings(model, mesh))

    def leaf(facts: Leaf, struct: jax.ShapeDtypeStruct, layout: jax.sharding.Sharding | None) -> jax.Array:
        read = _reader(weights, model.tensors[facts.path], struct)
        if layout is None:
            return jnp.asarray(read((slice(None),) * struct.ndim))
        return jax.make_array_from_callback(struct.shape, layout, _once(read), dtype=struct.dtype)

    return jax.tree.unflatten(tree, map(leaf, jax.tree.leaves(describe(model)), structs, layouts))


def _reader(weights: Weights, name: str, struct: jax.ShapeDtypeStruct) -> Callable[[Index], np.ndarray]:
    """A function from an index into one array to its values."""

    def checked(tensor: str, expected: tuple[int, ...], index: Index) -> np.ndarray:
        if weights.shape(tensor) != expected:
            raise UserError(
                f"tensor {tensor} is {weights.shape(tensor)}, config.json makes it {expected}; "
                "write the config.json that belongs to the weights"
            )
        return weights.read(tensor, index)

    def stacked(index: Index) -> np.ndarray:
        layers = range(*index[0].indices(struct.shape[0]))
        sizes = [len(range(*part.indices(n))) for part, n in zip(index[1:], struct.shape[1:], strict=True)]
        out = np.empty((len(layers), *sizes), struct.dtype)
        for row, layer in enumerate(layers):
            out[row] = checked(name.format(layer), struct.shape[1:], index[1:])
        return out

    def alone(index: Index) -> np.ndarray:
        return checked(name, struct.shape, index).astype(struct.dtype)

    return stacked if "{}" in name else alone


def _once(read: Callable[[Index], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """The same function, reading what several devices share only once."""
    seen: dict[tuple[tuple[int | None, int | None], ...], np.ndarray] = {}

    def cached(index: Index) -> np.ndarray:
        key = tuple((part.start, part.stop) for part in index)
        if key not in seen:
            seen[key] = read(index)
        return seen[key]

    return cached
