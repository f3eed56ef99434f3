"""A state made in its layout: every device computes its own part, and no device ever holds the whole."""

from collections.abc import Callable

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jhsae.mesh import state_shardings


def described(make: Callable[[], PyTree], mesh: Mesh) -> PyTree:
    """What `make` returns with the shape, dtype and layout of every array in its place; nothing is computed."""
    shapes = eqx.filter_eval_shape(make)
    arrays, static = eqx.partition(shapes, _is_shape)
    laid_out = jax.tree.map(
        lambda a, layout: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=layout), arrays, state_shardings(arrays, mesh)
    )
    return eqx.combine(laid_out, static)


def made(make: Callable[[], PyTree], mesh: Mesh) -> PyTree:
    """What `make` returns, computed in the layout of `mesh`.

    `make` is traced. What it reads from disk (a teacher) becomes an argument of the program: as constants of it they
    would be compiled, for minutes.
    """
    arrays, static = eqx.partition(described(make, mesh), _is_shape)
    structure = jax.tree.structure(arrays)
    program = jax.make_jaxpr(lambda: jax.tree.leaves(eqx.filter(make(), eqx.is_array)))()
    layout = [a.sharding for a in jax.tree.leaves(arrays)]
    compute = jax.jit(lambda read: jax.core.eval_jaxpr(program.jaxpr, read), out_shardings=layout)
    return eqx.combine(jax.tree.unflatten(structure, compute(program.consts)), static)


def on_every_device(tree: PyTree, mesh: Mesh) -> PyTree:
    """The same arrays, whole on every device: what each step reads. Equal in every process."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec())), static)


def _is_shape(leaf: object) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)
