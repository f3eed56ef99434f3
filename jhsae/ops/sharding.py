"""Operations on several devices: inside ``sharded_over(mesh)`` each hot operation runs under `jax.shard_map`.

Every device then works on its share of the batch and of the experts, and what must be exchanged is written down as the
layout of a result: k candidates per token and shard (`topk`), sums over experts (reconstructions), sums over the batch
(gradients of weights). Left to itself the compiler gathers batch x experts for a selection over a split axis.

Gradients of experts are summed by reduce-scatter: each device keeps the share whose moments it has, and what crosses
between hosts has been summed within them before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

HOST, DATA, EXPERT = "host", "data", "expert"
SHARDS = (HOST, DATA, EXPERT)
ROWS = (HOST, DATA)
"""The mesh axes over which the batch is split."""


class ShardingKind(Enum):
    """How an argument or a result is split; the last three are results of which each device has a part to be added."""

    TOKENS = "the first axis counts tokens"
    ALL_TOKENS = "as TOKENS, and then over the devices that share the experts: for what needs no expert of its own"
    EXPERTS = "the first axis counts experts, or features"
    BOTH = "tokens, then features"
    SHARE = "as EXPERTS, and then over the devices that share the batch: the layout of moments and gradients"
    WHOLE = "every device has all of it"
    OWN = "what a device keeps for a later call; the others have other numbers"
    TOKEN_SUM = "as TOKENS, each shard of experts with a summand"
    EXPERT_SUM = "as EXPERTS, each share of the batch with a summand; the sum is laid out as SHARE"
    TOTAL = "every device has a summand"


class Shard(NamedTuple):
    """Where the code of one device runs: on which mesh, and whether it has all experts or a share."""

    mesh: Mesh
    split: bool


MESH: ContextVar[Mesh | None] = ContextVar("mesh", default=None)
HERE: ContextVar[Shard | None] = ContextVar("here", default=None)


@contextmanager
def sharded_over(mesh: Mesh | None) -> Iterator[None]:
    """Operations traced inside are split over the mesh; one device, or None, leaves them whole."""
    token = MESH.set(None if mesh is None or mesh.size == 1 else mesh)
    try:
        yield
    finally:
        MESH.reset(token)


def shard_mapped(
    function: Callable[..., Any], inputs: tuple[Any, ...], outputs: Any, experts: int
) -> Callable[..., Any]:
    """`function` of one device's share as a function of whole arrays; without a mesh, `function` itself.

    Args:
        function: what one device computes from its share of the arguments.
        inputs: the kind of each argument, or a tree of kinds that is a prefix of the argument's.
        outputs: the kinds of the results: a prefix of their tree.
        experts: the number of experts, or features, of the whole; where the shards do not divide it, every device has
            all of them.

    Returns:
        A function of whole arrays, which `jax.shard_map` runs on the mesh of `sharded_over`.
    """
    mesh = MESH.get()
    if mesh is None:
        return function
    shard = Shard(mesh, experts % mesh.shape[EXPERT] == 0)

    def of_one_device(*arguments: Any) -> Any:
        outer, here = MESH.set(None), HERE.set(shard)
        try:
            arguments = tuple(_received(a, kind) for a, kind in zip(arguments, inputs, strict=True))
            return jax.tree.map(lambda kind, part: _given(part, kind, shard), outputs, function(*arguments))
        finally:
            HERE.reset(here)
            MESH.reset(outer)

    spec = lambda kind: _spec(kind, shard, experts)  # noqa: E731
    return jax.shard_map(
        of_one_device,
        mesh=mesh,
        in_specs=jax.tree.map(spec, inputs),
        out_specs=jax.tree.map(spec, outputs),
        check_vma=False,  # a sum over shards of experts is the same on each, which the check cannot know
    )


def constrain(a: Array, kind: ShardingKind) -> Array:
    """The array with its sharding fixed for the compiler, where the mesh divides its sizes.

    Args:
        a: an array.
        kind: how it is split.
    """
    mesh = MESH.get()
    if mesh is None:
        return a
    spec = _spec(kind, Shard(mesh, True), a.shape[0])
    sizes = [(n, (name,) if isinstance(name, str) else name or ()) for n, name in zip(a.shape, spec, strict=False)]
    if any(n % _count(mesh, names) for n, names in sizes):
        return a
    return jax.lax.with_sharding_constraint(a, NamedSharding(mesh, spec))


def shard_rows(size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """The mesh axes over which the gradient of `size` experts is split: all of them, where they divide the number.

    Args:
        size: the length of the first axis.
        mesh: the devices.
    """
    if size % mesh.shape[EXPERT]:
        return None
    return (EXPERT, DATA, HOST) if size % mesh.size == 0 else EXPERT


def token_kind(tokens: int) -> ShardingKind:
    """How tokens are split for work that needs all experts: over all devices, where those divide their number.

    Args:
        tokens: of the batch.
    """
    mesh = MESH.get()
    return ShardingKind.TOKENS if mesh is None or tokens % mesh.size else ShardingKind.ALL_TOKENS


def shards() -> int:
    """Among how many devices the experts of a token are split, inside `shard_mapped`; else 1."""
    here = HERE.get()
    return here.mesh.shape[EXPERT] if here and here.split else 1


def first(size: int) -> Int[Array, ""] | int:
    """The number of the first of this device's `size` experts."""
    return jax.lax.axis_index(EXPERT) * size if shards() > 1 else 0


def to_local_index(indices: Int[Array, "*some"], size: int) -> Int[Array, "*some"]:
    """Numbers of experts as this device counts its `size` own; `size` for those of others."""
    if shards() == 1:
        return indices
    own = indices - first(size)
    return jnp.where((own >= 0) & (own < size), own, size)


def local_slice(a: Float[Array, "*rest features"], size: int) -> Float[Array, "*rest size"]:
    """This device's `size` of all features.

    Args:
        a: an array whose last axis counts all features.
        size: features on this device.
    """
    return a if shards() == 1 else jax.lax.dynamic_slice_in_dim(a, first(size), size, axis=a.ndim - 1)


def token_numbers(tokens: int) -> Int[Array, "tokens"]:
    """Which tokens of the batch this device's are."""
    here = HERE.get()
    start = jax.lax.axis_index(ROWS) * tokens if here else 0
    return start + jnp.arange(tokens, dtype=jnp.int32)


def sum_over_experts(a: Array) -> Array:
    """The sum over the devices that share the experts."""
    return jax.lax.psum(a, EXPERT) if shards() > 1 else a


def sum_over_all(a: Array) -> Array:
    """The sum over all devices of which each has a part."""
    here = HERE.get()
    return a if here is None else jax.lax.psum(a, SHARDS if here.split else ROWS)


def all_gather_experts(a: Array, axis: int) -> Array:
    """The parts of the devices that share the experts, side by side."""
    return jax.lax.all_gather(a, EXPERT, axis=axis, tiled=True) if shards() > 1 else a


def before_rows(a: Array) -> Array:
    """The sum of `a` over the devices with earlier tokens."""
    if HERE.get() is None:
        return jnp.zeros_like(a)
    everywhere = jax.lax.all_gather(a, ROWS)
    earlier = jnp.arange(everywhere.shape[0]) < jax.lax.axis_index(ROWS)
    return jnp.sum(jnp.where(earlier.reshape(-1, *(1,) * a.ndim), everywhere, 0), axis=0, dtype=a.dtype)


def _spec(kind: ShardingKind, shard: Shard, experts: int) -> PartitionSpec:
    expert = EXPERT if shard.split else None
    match kind:
        case ShardingKind.TOKENS | ShardingKind.TOKEN_SUM:
            return PartitionSpec(ROWS)
        case ShardingKind.ALL_TOKENS:
            return PartitionSpec(SHARDS)
        case ShardingKind.EXPERTS:
            return PartitionSpec(expert)
        case ShardingKind.BOTH:
            return PartitionSpec(ROWS, expert)
        case ShardingKind.OWN:
            return PartitionSpec(SHARDS)
        case ShardingKind.EXPERT_SUM | ShardingKind.SHARE:
            return PartitionSpec(shard_rows(experts, shard.mesh))
    return PartitionSpec()


def _received(argument: Any, kind: Any) -> Any:
    return jax.tree.map(lambda a: a[0], argument) if kind is ShardingKind.OWN else argument


def _given(part: Any, kind: ShardingKind, shard: Shard) -> Any:
    match kind:
        case ShardingKind.OWN:
            return jax.tree.map(lambda a: a[None], part)
        case ShardingKind.TOKEN_SUM:
            return jax.tree.map(sum_over_experts, part)
        case ShardingKind.TOTAL:
            return jax.tree.map(sum_over_all, part)
        case ShardingKind.EXPERT_SUM:
            return jax.tree.map(lambda a: _scattered(a, shard), part)
    return part


def _scattered(a: Array, shard: Shard) -> Array:
    """The sum over tokens of this device's share; first within a host, so that little is left to cross between them."""
    share = shard.split and a.shape[0] % _count(shard.mesh, ROWS) == 0
    for axis in (name for name in (DATA, HOST) if shard.mesh.shape[name] > 1):
        a = jax.lax.psum_scatter(a, axis, tiled=True) if share else jax.lax.psum(a, axis)
    return a


def _count(mesh: Mesh, names: tuple[str, ...]) -> int:
    count = 1
    for name in names:
        count *= mesh.shape[name]
    return count
