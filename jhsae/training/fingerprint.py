"""A number for every array of a state, by which a checkpoint that came back differently is found.

``sum_i bits_i (2 i + 1) mod 2^32`` over the elements in C order, where ``bits_i`` is the i-th element as an unsigned
integer. Odd factors are invertible, so one wrong element always shows; integer sums do not depend on the layout.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped, UInt32


def fingerprints(arrays: PyTree) -> dict[str, dict[str, Any]]:
    """Shape, dtype and number of every array by its path; plain values, ready for JSON. Reads from the devices."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arrays)]
    leaves = jax.tree.leaves(arrays)
    numbers = jax.device_get(_numbers(leaves))
    return {
        path: layout(leaf) | {"fingerprint": int(number)}
        for path, leaf, number in zip(paths, leaves, numbers, strict=True)
    }


def layout(leaf: Any) -> dict[str, Any]:
    """Shape and dtype of an array, or of the description of one."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


@jax.jit
def _numbers(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_number(leaf) for leaf in leaves]


def _number(a: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    a = jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
    bits = a.astype(jnp.uint8) if a.dtype == bool else a
    bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}").astype(jnp.uint32)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(a.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, a.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= a.shape[axis]
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
