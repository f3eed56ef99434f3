"""Shardings of a training state: a table from logical axes to mesh axes.

Arrays whose annotation names `experts` or `features` are split over ``expert``; everything else is replicated. Moments
of the optimizer follow their parameter and are split over ``data`` and ``host`` as well (ZeRO, Rajbhandari et al.,
arXiv 1910.02054, stage 2: gradients arrive in that layout too). The axes of the mesh: `jhsae.parallel.mesh`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jhsae.leaf import Leaf, describe
from jhsae.ops import DATA, EXPERT, HOST, shard_rows
from jhsae.sae import AbstractSAE

LOGICAL_TO_MESH = {"experts": EXPERT, "features": EXPERT}


def shard_state(state: PyTree, mesh: Mesh) -> PyTree:
    """Constrains (inside jit) or moves (outside) every array to its sharding in `state_shardings`."""
    arrays, static = eqx.partition(state, eqx.is_array)
    return eqx.combine(jax.tree.map(_put, arrays, state_shardings(arrays, mesh)), static)


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """The sharding of every leaf.

    Args:
        state: A tree of arrays or `jax.ShapeDtypeStruct`s with SAEs in it; an SAE below a field ``opt_state`` holds
            moments.
        mesh: The devices.

    Returns:
        The same tree with a sharding for each array; what is not in an SAE is replicated.
    """

    def shardings(path: tuple[Any, ...], tree: PyTree) -> PyTree:
        if not isinstance(tree, AbstractSAE):
            return NamedSharding(mesh, PartitionSpec())
        moments = any(getattr(key, "name", None) == "opt_state" for key in path)
        return jax.tree.map(lambda leaf, a: _sharding(leaf, a.shape, mesh, moments), describe(tree), tree)

    return jax.tree_util.tree_map_with_path(shardings, state, is_leaf=lambda t: isinstance(t, AbstractSAE))


def abstract_state(make: Callable[[], PyTree], mesh: Mesh) -> PyTree:
    """The shapes, dtypes and shardings of what `make` returns; nothing is computed.

    Args:
        make: Makes the state; traced.
        mesh: The devices.

    Returns:
        The state with a `jax.ShapeDtypeStruct` in place of each array.
    """
    shapes = eqx.filter_eval_shape(make)
    arrays, static = eqx.partition(shapes, _is_shape)
    shardings = state_shardings(arrays, mesh)
    sharded = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), arrays, shardings)
    return eqx.combine(sharded, static)


def init_sharded(make: Callable[[], PyTree], mesh: Mesh) -> PyTree:
    """Initialises a state directly in its sharding, so that no device ever holds the whole of a sharded array.

    Args:
        make: Makes the state; traced. Arrays that it reads from disk (a teacher) become arguments of the compiled
            program, since compiling them as constants takes minutes.
        mesh: The devices.

    Returns:
        What `make` returns, sharded as `state_shardings` says.
    """
    arrays, static = eqx.partition(abstract_state(make, mesh), _is_shape)
    structure = jax.tree.structure(arrays)
    program = jax.make_jaxpr(lambda: jax.tree.leaves(eqx.filter(make(), eqx.is_array)))()
    shardings = [a.sharding for a in jax.tree.leaves(arrays)]
    compute = jax.jit(lambda read: jax.core.eval_jaxpr(program.jaxpr, read), out_shardings=shardings)
    return eqx.combine(jax.tree.unflatten(structure, compute(program.consts)), static)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies every array of a tree to all devices; it must be equal on every process."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec())), static)


def _sharding(leaf: Leaf, shape: tuple[int, ...], mesh: Mesh, moments: bool) -> NamedSharding:
    names: list[Any] = [LOGICAL_TO_MESH.get(axis) for axis in leaf.axes]
    names = [n if n is None or size % mesh.shape[n] == 0 else None for n, size in zip(names, shape, strict=True)]
    if moments and names and names[0] == EXPERT:
        names[0] = shard_rows(shape[0], mesh)
    return NamedSharding(mesh, PartitionSpec(*names))


def _put(a: Array, sharding: NamedSharding) -> Array:
    if not isinstance(a, jax.core.Tracer):
        return jax.device_put(a, sharding)
    if (
        sharding.mesh.shape[HOST] > 1
        and sharding.spec
        and sharding.spec[0] == EXPERT
        and a.shape[0] % sharding.mesh.size == 0
    ):
        # updated shards are all-gathered between hosts first, while they are small, then within each
        within = PartitionSpec((EXPERT, DATA), *sharding.spec[1:])
        a = jax.lax.with_sharding_constraint(a, NamedSharding(sharding.mesh, within))
    return jax.lax.with_sharding_constraint(a, sharding)


def _is_shape(leaf: object) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)
