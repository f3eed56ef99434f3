"""Residual streams on a mesh: the language model's weights over ``expert``, token sequences over ``host`` and ``data``.

Every process gives the sequences of its own devices and gets their residual streams; all processes run every forward
pass together, because they may share the weights. Processes that hold the same sequences (``expert`` reaches over them)
are one writer, and the first of them writes.
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
from jhsae.data.stream import Stream
from jhsae.ops import ROWS
from jhsae.parallel.distributed import share_of
from jhsae.parallel.mesh import rows_shards


class Streams:
    """Reads `layers` of a model that lies on `mesh`, `batch` sequences at a time over all devices.

    `shards` are this process's shares of a batch, `share` how many sequences that is; it is writer `number` of
    `writers`, if it `leads`.
    """

    def __init__(self, model: lm.AbstractLM, layers: tuple[int, ...], mesh: Mesh, batch: int, dtype: str):
        """`batch` is rounded up to a multiple of the devices that share it; residual streams come in `dtype`."""
        shards = rows_shards(mesh)
        self.batch = -(-batch // shards) * shards
        self._model = model
        self.layers, self.embed, self.dtype = layers, model.embed, jnp.dtype(dtype)
        self._place = NamedSharding(mesh, PartitionSpec(ROWS))
        out = NamedSharding(mesh, PartitionSpec(None, ROWS))
        here = share_of(mesh)
        self.writers, self.number = here.count, here.index
        self.share = self.batch // here.count
        self.shards = range(here.index * shards // here.count, (here.index + 1) * shards // here.count)
        holders = mesh.devices.reshape(shards, -1)[self.shards.start]
        self.leads = jax.process_index() == min(device.process_index for device in holders)

        @eqx.filter_jit
        def forward(model: lm.AbstractLM, ids: Int[Array, "batch time"]) -> Shaped[Array, "taps batch time embed"]:
            found = model.residual(ids, layers[0])[None] if len(layers) == 1 else model.residuals(ids, layers)
            return jax.lax.with_sharding_constraint(found.astype(dtype), out)

        self._forward = forward

    def __call__(self, tokens: UInt32[np.ndarray, "share context"]) -> Shaped[Array, "taps batch context embed"]:
        """The residual streams of the whole batch, from this process's `share` of its sequences."""
        ids = jax.make_array_from_process_local_data(self._place, tokens.astype(np.int32))
        return self._forward(self._model, ids)

    def passes(self, stream: Stream, start: int, stop: int) -> int:
        """How many forward passes the rows `start` to `stop` take."""
        first, last = stream.span(start, stop)
        return -(-(last - first) // self.share)

    def rows(
        self, stream: Stream, start: int, stop: int, passes: int
    ) -> Iterator[tuple[Shaped[np.ndarray, "taps rows embed"], Int32[np.ndarray, "rows 3"]]]:
        """The rows `start` to `stop` of this process, in order; every process makes the same number of `passes`.

        While the devices compute one batch, the caller has the one before.
        """
        first, last = stream.span(start, stop) if stop > start else (0, 0)
        running: deque[tuple[int, int, Array]] = deque()
        for number in range(passes):
            begin = min(first + number * self.share, last)
            end = min(begin + self.share, last)
            tokens = np.zeros((self.share, stream.tokens.shape[1]), np.uint32)
            tokens[: end - begin] = stream.tokens[stream.order[begin:end]]
            running.append((begin, end, self(tokens)))
            if len(running) == 2:
                yield self._cut(stream, start, stop, *running.popleft())
        for entry in running:
            yield self._cut(stream, start, stop, *entry)

    @staticmethod
    def _cut(
        stream: Stream, start: int, stop: int, begin: int, end: int, residual: Array
    ) -> tuple[np.ndarray, np.ndarray]:
        sequence, position, index = stream.rows_at(begin, end, start, stop)
        return _local(residual)[:, sequence, position], index


def _local(residual: Array) -> np.ndarray:
    """This process's sequences of a residual stream, in the order in which it gave them."""
    shards = {shard.index[1].start or 0: shard for shard in residual.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)], axis=1)
