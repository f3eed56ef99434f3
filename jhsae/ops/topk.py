"""Top-k along the last axis, in several implementations of one signature.

The exact ones give the same values and the same indices: sorted by value, ties to the lowest index, -0.0 equal to
0.0, NaN first. The selection itself is not differentiable; the gradient of a value flows to the
entry that was selected.

- ``lax``: `jax.lax.top_k`.
- ``scan``: k passes of argmax and mask (the original's); reads the array k times, works for any k on any backend.
- ``blocked``: the top k lie in the k blocks with the largest maxima, so only those are sorted, with `lax.top_k`.
- ``bits``: a threshold by bit search (`jhsae.ops.select`), then the entries above it; 32 passes, no sort.
- ``blocked_bits``: blocks as in ``blocked``, chosen and searched as in ``bits``.
- ``approx``: `jax.lax.approx_max_k`, APPROXIMATE on TPU (its recall target is 0.95; see `recall`), exact elsewhere
  but for the order of ties. Never chosen by ``auto``.
- ``per_shard``: APPROXIMATE where the entries are split over devices: k / shards of each, without asking the others
  (Gemma Scope 2). Exact on one device, and where none of the others has more of the top k.
- ``tpu``, ``gpu``: kernels that read every row once (`jhsae.ops.pallas`), for k up to 256 and, on TPU, rows up to
  131,072; no TPU or GPU has run them. Never chosen by ``auto``.
- ``auto``: an exact one, by platform and shape (`_auto`).

Inside `shard_mapped` the last axis may be split over devices. Then every device selects k of its own, all gather the
k x shards candidates and select again: positions count through the whole axis, and ties give what one device would.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jhsae.ops import select
from jhsae.ops.sharding import (
    ShardingKind,
    all_gather_experts,
    first,
    local_slice,
    shard_mapped,
    shards,
    sum_over_experts,
    to_local_index,
)

Method = Literal["auto", "lax", "scan", "blocked", "bits", "blocked_bits", "approx", "per_shard", "tpu", "gpu"]
SHORT = 64  # entries of a row times those taken from it
Pair = tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]


def topk(x: Float[Array, "*batch n"], k: int, method: Method = "auto") -> Pair:
    """The k largest entries of the last axis and their positions (int32), largest first.

    A k below 1 or above n, and a NaN, raise a ValueError. Inside `jax.jit`, where entries are
    not known, a NaN is selected first: it reaches the loss, and the training loop stops the run. So
    only a call outside of a traced function waits for its input.

    Args:
        x: rows, [*batch, n].
        k: how many of each row.
        method: how they are found.
    """
    size = x.shape[-1] * shards()
    if not 1 <= k <= size:
        raise ValueError(f"topk: k is {k}, expected 1 <= k <= {size} (the size of the last axis)")
    _refuse_nan(x)
    fixed = jax.lax.stop_gradient(x)
    indices = METHODS[method](fixed, k) if shards() == 1 else _across(fixed, k, method)
    return take(x, indices), indices


def topk_of_batch(x: Float[Array, "batch n"], k: int, method: Method = "auto") -> Int[Array, "batch k"]:
    """The positions of `topk` in each row of a batch whose rows and entries may both be split over devices.

    Args:
        x: rows, [batch, n].
        k: how many of each row.
        method: how they are found.
    """
    select = shard_mapped(lambda x: topk(x, k, method)[1], (ShardingKind.BOTH,), ShardingKind.TOKENS, x.shape[1])
    return select(jax.lax.stop_gradient(x))


def _across(x: Float[Array, "*batch n"], k: int, method: Method) -> Int[Array, "*batch k"]:
    """Candidates stand in the order of the shards, and within one by value and position: the order of ties."""
    of_each = k
    if method == "per_shard":
        of_each, rest = divmod(k, shards())
        if rest:
            raise ValueError(f"topk: per_shard takes k / {shards()} of each shard, but k is {k}; write a multiple")
    own = METHODS[method](x, min(of_each, x.shape[-1]))
    values = all_gather_experts(jnp.take_along_axis(x, own, axis=-1), x.ndim - 1)
    best = METHODS["lax" if values.shape[-1] * k <= SHORT else "auto"](values, k)
    return jnp.take_along_axis(all_gather_experts(own + first(x.shape[-1]), x.ndim - 1), best, axis=-1)


def take(x: Float[Array, "*batch n"], indices: Int[Array, "*batch k"]) -> Float[Array, "*batch k"]:
    """The entries at `indices` of each row; from short rows by comparison, whose gradient needs no scatter.

    Args:
        x: [*batch, n].
        indices: [*batch, k].
    """
    n = x.shape[-1]
    if shards() > 1:
        here = to_local_index(indices, n)
        own = jnp.take_along_axis(x, here, axis=-1, mode="clip")
        return sum_over_experts(jnp.where(here < n, own, 0))
    if n * indices.shape[-1] > SHORT:
        return jnp.take_along_axis(x, indices, axis=-1)
    here = indices[..., None] == jnp.arange(n)
    return jnp.sum(jnp.where(here, x[..., None, :], 0), axis=-1)


def row_noise(
    key: Key[Array, ""], like: Float[Array, "rows n"], numbers: Int[Array, "rows"] | None = None
) -> Float[Array, "rows n"]:
    """Gumbel noise that depends on key and token alone: not on chunks, and not on how devices share the batch.

    Args:
        key: the key of the step.
        like: an array of the shape and dtype of the noise.
        numbers: the number of the token in each row; 0 to rows - 1 by default.

    Returns:
        The noise of these rows; inside `shard_mapped`, of this device's entries.
    """
    numbers = jnp.arange(like.shape[0]) if numbers is None else numbers
    size = like.shape[1] * shards()

    def of_row(number: Int[Array, ""]) -> Float[Array, "size"]:
        return jax.random.gumbel(jax.random.fold_in(key, number), (size,), like.dtype)

    return local_slice(jax.vmap(of_row)(numbers), like.shape[1])


def recall(indices: Int[Array, "*batch k"], exact: Int[Array, "*batch k"]) -> Float[Array, ""]:
    """The fraction, 0 to 1, of the `exact` positions of each row that are among its `indices`, on average.

    Args:
        indices: found, [batch, k].
        exact: the right ones, [batch, k].
    """
    return jnp.mean(jnp.any(exact[..., :, None] == indices[..., None, :], axis=-1).astype(jnp.float32))


def _refuse_nan(x: Array) -> None:
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return  # unknown here, or in part on another host
    found = int(np.isnan(np.asarray(x)).sum())
    if found:
        raise ValueError(
            f"topk: {found} of the {x.size} entries are NaN, expected none; find where they arise (for "
            "example with jax_debug_nans) or select from jnp.nan_to_num(x)"
        )


def _auto(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    """By platform and shape: on CPU from single runs of `experiments/bench/topk.py`; else from what is written of them.

    On GPU `lax.top_k` has a kernel of its own for a k below 16 and sorts whole rows above; on TPU it is slow. So both
    take the two-stage bit search. NOT MEASURED on either. `lax.platform_dependent` chooses where the program will
    run, which need not be where it is compiled.
    """
    if k == 1:
        return _argmax(x, k)

    def on(method: str) -> Callable[[Array], Array]:
        return lambda x: METHODS[method](x, k)

    gpu = on("lax" if k < 16 else "blocked_bits")
    branches = {"cpu": on(_on_cpu(x, k)), "cuda": gpu, "rocm": gpu, "tpu": on("blocked_bits")}
    return jax.lax.platform_dependent(x, default=on("lax"), **branches)


def _on_cpu(x: Float[Array, "*batch n"], k: int) -> str:
    return "blocked_bits" if x.size >= SMALL and k <= MANY and x.shape[-1] >= 32 * k else "lax"


SMALL = 2**16  # entries; under it, compiling and starting the passes of a bit search is not worth it (not measured)
MANY = 64  # ranking takes k² comparisons: slower than lax.top_k at k = 128 of 2048, faster at k = 64 of 34816


def _argmax(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    return jnp.argmax(x, axis=-1, keepdims=True).astype(jnp.int32)


def _lax(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    # lax.top_k puts -0.0 below 0.0, and nan with a sign below -inf; here they are as for argmax.
    return jax.lax.top_k(jnp.where(x == 0, 0.0, jnp.where(jnp.isnan(x), jnp.nan, x)), k)[1]


def _scan(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    positions = jnp.arange(x.shape[-1])

    def step(taken: Bool[Array, "*batch n"], _: None) -> tuple[Array, Array]:
        best = jnp.argmax(jnp.where(taken, -jnp.inf, x), axis=-1)
        # Where only -inf is left, the first entry that is not taken, not one that was masked to -inf.
        first = jnp.argmax(~taken, axis=-1)
        left = jnp.take_along_axis(x, best[..., None], axis=-1)[..., 0] != -jnp.inf
        best = jnp.where(left & ~jnp.take_along_axis(taken, best[..., None], axis=-1)[..., 0], best, first)
        return taken | (positions == best[..., None]), best.astype(jnp.int32)

    return jnp.moveaxis(jax.lax.scan(step, jnp.zeros(x.shape, bool), None, length=k)[1], 0, -1)


def _bits(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    keys = select.ordered(x)
    chosen = select.positions(keys, k)
    return select.largest_first(jnp.take_along_axis(keys, chosen, axis=-1), chosen)


def _blocked(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    n = x.shape[-1]
    width = max(1, min(128, n // (2 * k)))  # wide enough to skip most of the row, narrow enough to have k blocks
    return _two_stages(x, k, width, lambda maxima: jnp.sort(_lax(maxima, k), axis=-1), _lax)


def _blocked_bits(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    width = 2 ** round(math.log2(math.sqrt(2 * x.shape[-1] / k)))  # as many maxima as entries in k blocks, or half
    if x.shape[-1] < 2 * k * width:
        return _bits(x, k)
    return _two_stages(x, k, width, lambda maxima: select.positions(select.ordered(maxima), k), _bits)


def _two_stages(
    x: Float[Array, "*batch n"],
    k: int,
    width: int,
    best_blocks: Callable[[Array], Array],
    inner: Callable[[Array, int], Array],
) -> Int[Array, "*batch k"]:
    """`best_blocks` gives the k blocks in the order of their positions: this keeps ties at the lowest index."""
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % width)], constant_values=-jnp.inf)
    blocks = padded.reshape(*x.shape[:-1], -1, width)
    chosen = best_blocks(blocks.max(axis=-1))
    candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=-2).reshape(*x.shape[:-1], k * width)
    within = inner(candidates, k)
    return jnp.take_along_axis(chosen, within // width, axis=-1) * width + within % width


def _approx(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    return jax.lax.approx_max_k(x, k)[1]


def _tpu(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    from jhsae.ops.pallas.tile_pipeline import INTERPRET, check_platform  # Pallas takes more than a second to import
    from jhsae.ops.pallas.topk_tpu import topk_tpu

    check_platform('topk is "tpu"', "topk: auto")
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return topk_tpu(rows, k, interpret=bool(INTERPRET.get()))[1].reshape(*x.shape[:-1], k)


def _gpu(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    from jhsae.ops.pallas.topk_gpu import topk_gpu  # Pallas takes more than a second to import
    from jhsae.ops.pallas.wide_gpu import INTERPRET, check_platform

    check_platform('topk is "gpu"', "topk: auto")
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return topk_gpu(rows, k, interpret=INTERPRET.get())[1].reshape(*x.shape[:-1], k)


METHODS: dict[str, Callable[[Array, int], Array]] = {
    "auto": _auto,
    "lax": _lax,
    "scan": _scan,
    "blocked": _blocked,
    "bits": _bits,
    "blocked_bits": _blocked_bits,
    "approx": _approx,
    "per_shard": _auto,
    "tpu": _tpu,
    "gpu": _gpu,
}
