"""Per-array checksums that detect corrupted checkpoints.

``sum_i bits_i (2 i + 1) mod 2^32`` over the elements in C order, where ``bits_i`` is the i-th element as an unsigned
integer. Odd factors are invertible, so one wrong element always changes the sum; integer sums do not depend on the
sharding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped, UInt32


def fingerprints(arrays: PyTree) -> dict[str, dict[str, Any]]:
    """Computes the checksums on the devices and reads them.

    Args:
        arrays: A tree of arrays of any dtype, random keys included.

    Returns:
        Path in the tree -> ``{"shape": ..., "dtype": ..., "fingerprint": ...}``, ready for JSON.
    """
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arrays)]
    leaves = jax.tree.leaves(arrays)
    numbers = jax.device_get(_checksums(leaves))
    return {
        path: shape_and_dtype(leaf) | {"fingerprint": int(number)}
        for path, leaf, number in zip(paths, leaves, numbers, strict=True)
    }


def shape_and_dtype(leaf: Any) -> dict[str, Any]:
    """Shape and dtype of an array or a `jax.ShapeDtypeStruct`, ready for JSON."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


@jax.jit
def _checksums(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(a: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    a = jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
    bits = a.astype(jnp.uint8) if a.dtype == bool else a
    bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}").astype(jnp.uint32)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(a.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, a.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= a.shape[axis]
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
