"""A batch in chunks of tokens, so that what is large per token exists for one chunk at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

CPU_BYTES = 1 << 21  # what a chunk may take: on a CPU it should stay in the second-level cache
ACCELERATOR_BYTES = 1 << 27
PLATFORM: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def sized_for(platform: str) -> Iterator[None]:
    """Sizes chunks and groups of tiles for `platform`, when a program is compiled for another than the default one."""
    token = PLATFORM.set(platform)
    try:
        yield
    finally:
        PLATFORM.reset(token)


def on_cpu() -> bool:
    """Whether sizes should suit a CPU's caches."""
    return (PLATFORM.get() or jax.default_backend()) == "cpu"


def chunk_size(batch: int, bytes_per_token: int, at_least: int = 1) -> int:
    """How many tokens a chunk holds: what the memory allows, and a divisor of the batch where one is near."""
    budget = CPU_BYTES if on_cpu() else ACCELERATOR_BYTES
    most = min(max(batch, 1), max(at_least, budget // max(bytes_per_token, 1)))
    divisor = next(size for size in range(most, 0, -1) if batch % size == 0)
    return divisor if 2 * divisor >= most else most


def scan_chunks(
    body: Callable[[Any, Any, Int[Array, ""]], tuple[Any, Any]], init: Any, arrays: Any, chunk: int
) -> tuple[Any, Any]:
    """``carry, out = body(carry, tokens, number of the chunk)`` over chunks; returns the last carry and all `out`.

    Chunk i of n takes every n-th token from i on, so that a batch that is split over devices gives each of them a
    share of every chunk. A remainder of the batch is a chunk of its own.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1 token, or null for a size that suits the machine")
    batch = jax.tree.leaves(arrays)[0].shape[0]
    if chunk >= batch:
        return body(init, arrays, jnp.zeros((), jnp.int32))
    count = batch // chunk
    whole = count * chunk
    split = jax.tree.map(lambda a: a[:whole].reshape(chunk, count, *a.shape[1:]), arrays)

    def step(carry: Any, i: Int[Array, ""]) -> tuple[Any, Any]:
        return body(carry, jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, 1, keepdims=False), split), i)

    carry, out = jax.lax.scan(step, init, jnp.arange(count, dtype=jnp.int32))
    out = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(whole, *a.shape[2:]), out)
    if whole == batch:
        return carry, out
    rest = jax.tree.map(lambda a: a[whole:], arrays)
    carry, last = body(carry, rest, jnp.asarray(count, jnp.int32))
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, last)


def map_chunks(body: Callable[..., Any], chunk: int, *arrays: Any) -> Any:
    """``body(*tokens)`` over chunks of the arrays."""
    return scan_chunks(lambda _, some, __: (None, body(*some)), None, arrays, chunk)[1]
