"""Training data drawn from a world: an endless stream without a store.

    jhsae train scale.yaml data.store=null data.live._target_=jhsae.worlds.WorldActivations data.live.path=worlds/x

Batch i is a function of the world, ``data.seed`` and i. Each row has a key of its own, and each device draws its own
rows, so a run can be resumed on any number of devices that divides the batch, with the same rows up to rounding.
"""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Key

from jhsae.data import ArrayRows, ModelName
from jhsae.data.source import AbstractBatches, AbstractSource, SourceInfo
from jhsae.ops import ROWS
from jhsae.parallel.mesh import check_batch
from jhsae.ranges import INT32, Count, Words
from jhsae.worlds.files import load_world
from jhsae.worlds.world import World, arrays

SAMPLE, STREAM, HELD_OUT = range(3)  # what a key is for
CODES = 2**26  # codes on a device at a time, 256 MB


class WorldActivations(AbstractSource):
    """Activations of the world in the folder `path`."""

    def __init__(self, path: Words, sample_rows: Count = 2**14, *, mesh: Mesh):
        """`sample_rows`: rows of the sample that normalisers are fitted on."""
        self.path, self._rows, self._mesh = path, sample_rows, mesh
        self.world = load_world(path)

    @cached_property
    def manifest(self) -> SourceInfo:
        """The statistics of the sample; the stream has no end, so `rows` is the largest number that counts them."""
        about = {"model": ModelName.of(self.path, self.identity()).record()}
        return SourceInfo(**vars(self._sample.manifest), model=self.path, layer=0, rows=INT32, tokenizer=about)

    @property
    def rows(self) -> int:
        """Rows of the sample."""
        return self._rows

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "rows embed"]:
        """Rows `start` to `stop` of the sample."""
        return self._sample.read(start, stop)

    def identity(self) -> str:
        """A hash of the numbers of the world and of its hierarchy."""
        return identity(self.world)

    def batches(self, batch: int, seed: int) -> "WorldBatches":
        """Batches of `batch` rows over all devices. `UserError`: devices that cannot share it."""
        return WorldBatches(self.world, self._mesh, batch, seed)

    @cached_property
    def _sample(self) -> ArrayRows:
        """Each process draws all of it on one device, so that all fit the same normaliser."""
        draw = eqx.filter_jit(activations)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), SAMPLE), self._rows)
        step = max(1, CODES // self.world.size)
        parts = [draw(self.world, keys[i : i + step]) for i in range(0, self._rows, step)]
        return ArrayRows(np.concatenate([np.asarray(x) for x in parts]))


class WorldBatches(AbstractBatches):
    """Batches [batch, embed] in float32 on the mesh, split over its ``host`` and ``data`` axes."""

    def __init__(self, world: World, mesh: Mesh, batch: int, seed: int):
        check_batch(batch, mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._put: Callable[[Any], Array] = lambda a: jax.make_array_from_process_local_data(everywhere, np.asarray(a))
        self._world = jax.tree.map(self._put, world)
        self._draw = _draw(mesh, batch, seed)
        self._step = 0

    def __next__(self) -> Float[Array, "batch embed"]:
        x = self._draw(self._world, self._put(np.uint32(self._step)))
        self._step += 1
        return x

    def get_state(self) -> dict[str, Any]:
        """The number of batches drawn."""
        return {"next_index": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        self._step = state["next_index"]


def identity(world: World) -> str:
    """A hash of the numbers of a world and of its hierarchy: of all that determines its activations."""
    hierarchy = world.hierarchy
    about = (hierarchy.size, hierarchy.edges, sorted(hierarchy.exclusive), sorted(hierarchy.scaled), world.noise)
    digest = hashlib.sha256(repr(about).encode())
    for name, value in arrays(world).items():
        digest.update(f"{name} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


def activations(world: World, keys: Key[Array, "n"]) -> Float[Array, "n embed"]:
    """One activation for each key, a block after the other where their codes would need much memory."""
    most = max(1, CODES // world.size)
    if len(keys) <= most:
        return world.rows(keys)[0]
    blocks = next(p for p in range(-(-len(keys) // most), len(keys) + 1) if len(keys) % p == 0)
    return jax.lax.map(lambda some: world.rows(some)[0], keys.reshape(blocks, -1)).reshape(len(keys), -1)


def _draw(mesh: Mesh, batch: int, seed: int) -> Callable[[World, Array], Array]:
    rows, whole = PartitionSpec(ROWS), PartitionSpec()
    drawn = jax.shard_map(activations, mesh=mesh, in_specs=(whole, rows), out_specs=rows, check_vma=False)

    @partial(jax.jit, out_shardings=NamedSharding(mesh, rows))
    def draw(world: World, step: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAM), step)
        return drawn(world, jax.random.split(key, batch))

    return draw
