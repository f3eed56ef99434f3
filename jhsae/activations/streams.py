"""Activations of a language model on a mesh: its weights over ``expert``, token sequences over ``host`` and ``data``.

Every process feeds the sequences of its own devices and gets their activations; all processes run every forward
pass together, because they may share the weights. Processes that hold the same sequences (those along ``expert``) count
as one writer, of which the one with the lowest index writes.
"""

from collections import deque
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Int32, Shaped, UInt32

from jhsae import lm
from jhsae.data import Hook
from jhsae.data.hook import RESIDUAL
from jhsae.data.stream import Stream
from jhsae.ops import ROWS
from jhsae.parallel.distributed import share_of
from jhsae.parallel.mesh import rows_shards


def read(model: lm.AbstractLM, ids: Int[Array, "batch time"], hooks: tuple[Hook, ...]) -> Shaped[Array, "taps ..."]:
    """The activations at `hooks` in one pass, [hooks, batch, time, embed]."""
    layers = tuple(hook.block for hook in hooks if hook.name == RESIDUAL)
    if len(layers) < len(hooks):
        return model.hooked(ids, hooks)
    return model.residual(ids, layers[0])[None] if len(layers) == 1 else model.residuals(ids, layers)


class Streams:
    """Reads `hooks` of a model that is sharded over `mesh`, `batch` sequences at a time over all devices.

    `shards` are the indices of this process's shards of a batch, `local_batch` the number of sequences in them. Its
    sequences are those of writer `writer` of `writers`; it writes them to disk itself where `writes` is True.
    """

    def __init__(self, model: lm.AbstractLM, hooks: tuple[Hook, ...], mesh: Mesh, batch: int, dtype: str):
        """Compiles nothing yet.

        Args:
            model: The language model, its weights placed on the mesh.
            hooks: Places to read.
            mesh: The devices.
            batch: Sequences per forward pass over all devices; rounded up to a multiple of the devices that share it.
            dtype: Of the activations that are returned.
        """
        shards = rows_shards(mesh)
        self.batch = -(-batch // shards) * shards
        self._model = model
        self.hooks, self.embed, self.dtype = hooks, model.embed, jnp.dtype(dtype)
        self._place = NamedSharding(mesh, PartitionSpec(ROWS))
        out = NamedSharding(mesh, PartitionSpec(None, ROWS))
        here = share_of(mesh)
        self.writers, self.writer = here.count, here.index
        self.local_batch = self.batch // here.count
        self.shards = range(here.index * shards // here.count, (here.index + 1) * shards // here.count)
        holders = mesh.devices.reshape(shards, -1)[self.shards.start]
        self.writes = jax.process_index() == min(device.process_index for device in holders)

        @eqx.filter_jit
        def forward(model: lm.AbstractLM, ids: Int[Array, "batch time"]) -> Shaped[Array, "taps batch time embed"]:
            return jax.lax.with_sharding_constraint(read(model, ids, hooks).astype(dtype), out)

        self._forward = forward

    def __call__(self, tokens: UInt32[np.ndarray, "local_batch context"]) -> Shaped[Array, "taps batch context embed"]:
        """The activations of the global batch; `tokens` are this process's sequences of it."""
        ids = jax.make_array_from_process_local_data(self._place, tokens.astype(np.int32))
        return self._forward(self._model, ids)

    def passes(self, stream: Stream, start: int, stop: int) -> int:
        """Number of forward passes that the rows `start` to `stop` take."""
        first, last = stream.span(start, stop)
        return -(-(last - first) // self.local_batch)

    def rows(
        self, stream: Stream, start: int, stop: int, passes: int
    ) -> Iterator[tuple[Shaped[np.ndarray, "taps rows embed"], Int32[np.ndarray, "rows 3"]]]:
        """Yields the rows `start` to `stop` of a stream in order, one forward pass behind the devices.

        Args:
            stream: This process's tokens and their order.
            start: First row.
            stop: End of the rows.
            passes: Forward passes to run; equal on every process, since all run each pass together.

        Yields:
            Activations [hooks, rows, embed] and (sequence, position, token id) of each row.
        """
        first, last = stream.span(start, stop) if stop > start else (0, 0)
        running: deque[tuple[int, int, Array]] = deque()
        for number in range(passes):
            begin = min(first + number * self.local_batch, last)
            end = min(begin + self.local_batch, last)
            tokens = np.zeros((self.local_batch, stream.tokens.shape[1]), np.uint32)
            tokens[: end - begin] = stream.tokens[stream.order[begin:end]]
            running.append((begin, end, self(tokens)))
            if len(running) == 2:
                yield self._cut(stream, start, stop, *running.popleft())
        for entry in running:
            yield self._cut(stream, start, stop, *entry)

    @staticmethod
    def _cut(
        stream: Stream, start: int, stop: int, begin: int, end: int, found: Array
    ) -> tuple[np.ndarray, np.ndarray]:
        sequence, position, index = stream.rows_at(begin, end, start, stop)
        return _local(found)[:, sequence, position], index


def _local(found: Array) -> np.ndarray:
    """This process's sequences of the activations, in the order of its tokens."""
    shards = {shard.index[1].start or 0: shard for shard in found.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)], axis=1)
