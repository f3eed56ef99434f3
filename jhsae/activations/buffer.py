"""A shuffling buffer on the devices: residual streams in, batches out, each a pure function of the step.

The buffer has `lanes` of `SEGMENTS` segments. Refill r runs the model over the next sequences of the epoch's order and
overwrites segment ``r mod SEGMENTS`` of every lane with rows of that lane's sequences, in random order. Window w draws
its batches, in random order, from part 0 of the newest refill, part 1 of the one before, and so on; then refill w + 1
overwrites the oldest segment, all of whose parts have been drawn. So every row is drawn once, beside rows of four
refills, no row leaves its device, and the buffer at any step follows from the last `SEGMENTS` refills: to resume, they
are run again.

Buffers whose refills read the same sequences, of one layer or of several, can be filled from one pass of the model: the
first that needs a refill writes it into all that need it next. That is each of them as long as none is drawn from ahead
of the others; one that is ahead or behind gets its rows from passes of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Int32, Int64

from jhsae.activations.passes import Passes
from jhsae.data.source import AbstractBatches
from jhsae.data.stream import Stream
from jhsae.errors import UserError
from jhsae.ops import ROWS
from jhsae.parallel.mesh import rows_shards

SEGMENTS = 4


@dataclass(frozen=True, eq=False)
class Plan:
    """What is read and drawn when. `segment` and `per_lane` count rows of one lane, `sequences` those of its passes.

    A refill takes ``segment`` rows of each lane: where its sequences hold more ordinary tokens the rest is left out,
    where they hold fewer some come twice.
    """

    stream: Stream
    seed: int
    lanes: int
    per_lane: int
    segment: int
    sequences: int
    passes: int

    @classmethod
    def of(cls, stream: Stream, batch: int, lanes: int, sequences: int, buffer_rows: int, seed: int) -> "Plan":
        """`sequences` per forward pass and `buffer_rows` over all lanes, about.

        `UserError`: a batch that the lanes cannot share, or a text shorter than one refill.
        """
        if batch % lanes:
            raise UserError(f"data.batch is {batch}, which {lanes} lanes cannot share; write a multiple of {lanes}")
        kept = stream.rows / len(stream.tokens)
        segment = batch // lanes * max(1, round(buffer_rows / (SEGMENTS * batch)))
        wanted, most = math.ceil(segment / kept), max(1, sequences // lanes)
        # as many at a time as allowed, but for those numbers that leave more over
        each = min(range(most, most // 2, -1), key=lambda n: -(-wanted // n) * n)
        plan = cls(stream, seed, lanes, batch // lanes, segment, each, -(-wanted // each))
        if plan.per_epoch < 1:
            raise UserError(
                f"the text has {len(stream.tokens)} sequences, but one refill of the buffer takes {plan._taken}; write "
                "a smaller data.live.buffer_rows or data.batch, or more data.live.rows"
            )
        return plan

    @property
    def _taken(self) -> int:
        return self.passes * self.lanes * self.sequences

    @property
    def per_epoch(self) -> int:
        """How many refills an epoch has; the sequences that do not fill one are left out of it."""
        return len(self.stream.tokens) // self._taken

    @property
    def per_window(self) -> int:
        """How many batches are drawn between two refills."""
        return self.segment // self.per_lane

    def refills_as(self, other: "Plan") -> bool:
        """Whether each refill has the same sequences in the same places; windows may have other batches."""
        names = ("seed", "lanes", "segment", "sequences", "passes")
        return self.stream is other.stream and all(getattr(self, name) == getattr(other, name) for name in names)

    def chosen(self, refill: int) -> Int64[np.ndarray, "passes lanes sequences"]:
        """The sequences of a refill."""
        epoch, number = divmod(refill, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.stream.tokens))
        part = order[number * self._taken : (number + 1) * self._taken]
        return part.reshape(self.passes, self.lanes, self.sequences)

    def targets(
        self, refill: int, chosen: Int64[np.ndarray, "passes lanes sequences"], mine: list[int]
    ) -> Int32[np.ndarray, "passes rounds mine positions"]:
        """Where in the buffer every position of the lanes `mine` goes, or one past its end.

        There is more than one round where some lane, of whatever process, has too few rows and repeats them.
        """
        keep = self.stream.keep[chosen].swapaxes(0, 1).reshape(self.lanes, -1)
        counts = keep.sum(axis=1)
        if not counts.all():
            raise UserError("a lane of the buffer got sequences without one ordinary token; write a larger context")
        rounds = int(-(-self.segment // counts).max())
        outside = SEGMENTS * self.segment
        out = np.full((rounds, len(mine), keep.shape[1]), outside, np.int32)
        for i, lane in enumerate(mine):
            rng = np.random.default_rng([self.seed, refill, lane, 1])
            order = rng.permutation(np.nonzero(keep[lane])[0])
            for number, start in enumerate(range(0, self.segment, len(order))):
                some = order[: self.segment - start]
                out[number, i, some] = refill % SEGMENTS * self.segment + start + np.arange(len(some))
        return out.reshape(rounds, len(mine), self.passes, -1).transpose(2, 0, 1, 3)

    def slots(self, window: int) -> Int32[np.ndarray, "batches per_lane"]:
        """Where in each lane the batches of a window are."""
        bounds = np.arange(SEGMENTS + 1) * self.segment // SEGMENTS
        newest = window + SEGMENTS - 1
        places = [(newest - j) % SEGMENTS * self.segment + np.arange(bounds[j], bounds[j + 1]) for j in range(SEGMENTS)]
        order = np.random.default_rng([self.seed, window, 0, 2]).permutation(self.segment)
        return np.concatenate(places)[order].reshape(self.per_window, self.per_lane).astype(np.int32)


class LiveBatches(AbstractBatches):
    """Batches [batch, embed] in float32 on the mesh, split over its ``host`` and ``data`` axes."""

    def __init__(self, passes: Passes, layer: int, mesh: Mesh, plan: Callable[[int], Plan], lanes: int | None):
        """`plan` gives the plan for a number of lanes; `lanes` is that number, or None for one per shard."""
        self._passes, self._layer, self._mesh, self._make = passes, layer, mesh, plan
        self._streams = passes.join(layer)
        self._write, self._draw = _operations(mesh)
        self._others: list[LiveBatches] = []
        self._lay(rows_shards(mesh) if lanes is None else lanes)
        self._step = 0

    def __next__(self) -> Float[Array, "batch embed"]:
        while self._needs(self._following):
            self._refill(self._following)
        window, number = divmod(self._step, self._plan.per_window)
        slots = self._put(self._plan.slots(window)[number], PartitionSpec())
        self._step += 1
        return self._draw(self._buffer, slots)

    def get_state(self) -> dict[str, Any]:
        """The number of batches drawn, and of lanes."""
        return {"next_index": self._step, "lanes": self._plan.lanes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from `state`; the next batch refills the buffer first. `UserError`: devices that cannot share it."""
        if state["lanes"] != self._plan.lanes:
            self._lay(state["lanes"])
        self._step = state["next_index"]

    def together(self, others: Sequence[AbstractBatches]) -> None:
        """Refills are shared with those of `others` that read the same model and text."""
        live = [other for other in others if isinstance(other, LiveBatches) and other is not self]
        self._others = [other for other in live if other._passes is self._passes]

    def _lay(self, lanes: int) -> None:
        shards = rows_shards(self._mesh)
        if lanes < 1 or lanes % shards:
            raise UserError(
                f"the buffer has {lanes} lanes, which {shards} devices cannot share; write a mesh.data that divides "
                f"{lanes}, or, for a new run, data.live.lanes={-(-max(lanes, 1) // shards) * shards}"
            )
        self._plan = self._make(lanes)
        share = lanes // shards
        self._mine = [shard * share + i for shard in self._streams.shards for i in range(share)]
        self._newest: int | None = None

    @property
    def _window(self) -> int:
        """The window of the next batch."""
        return self._step // self._plan.per_window

    @property
    def _following(self) -> int:
        """The refill after the newest one that is of use to this window; the first of them where none is there."""
        first, newest = self._window, self._newest
        return newest + 1 if newest is not None and first - 1 <= newest < first + SEGMENTS else first

    def _needs(self, refill: int) -> bool:
        """Whether the next batch waits for `refill`, and has those before it."""
        return refill == self._following < self._window + SEGMENTS

    def _refill(self, refill: int) -> None:
        same = [other for other in self._others if other._plan.refills_as(self._plan) and other._needs(refill)]
        filled = [self, *same]
        for buffer in filled:
            buffer._make_room(refill)
        chosen = self._plan.chosen(refill)
        targets = self._plan.targets(refill, chosen, self._mine)
        layers = tuple(sorted({buffer._layer for buffer in filled}))
        for sequences, rounds in zip(chosen, targets, strict=True):
            tokens = self._plan.stream.tokens[sequences[self._mine].reshape(-1)]
            residuals = self._passes(tokens, layers)
            for places in (self._put(places, PartitionSpec(ROWS)) for places in rounds):
                for buffer in filled:
                    buffer._buffer = buffer._write(buffer._buffer, *residuals[buffer._layer], places)
        for buffer in filled:
            buffer._newest = refill

    def _make_room(self, refill: int) -> None:
        """Begins with an empty buffer where the refill before this one is not there."""
        if self._newest is None or self._newest != refill - 1:
            shape = (self._plan.lanes, SEGMENTS * self._plan.segment, self._streams.embed)
            place = NamedSharding(self._mesh, PartitionSpec(ROWS))
            self._buffer = jax.jit(partial(jnp.zeros, shape, self._streams.dtype), out_shardings=place)()
            self._newest = refill - 1

    def _put(self, a: np.ndarray, spec: PartitionSpec) -> Array:
        return jax.make_array_from_process_local_data(NamedSharding(self._mesh, spec), a)


def _operations(mesh: Mesh) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Writing into the buffer and drawing from it, each device in its own lanes."""
    lanes = PartitionSpec(ROWS)

    @partial(jax.jit, donate_argnums=0, static_argnums=2)
    def write(
        buffer: Float[Array, "lanes rows embed"],
        residuals: Float[Array, "taps batch context embed"],
        tap: int,
        places: Int[Array, "lanes positions"],
    ) -> Float[Array, "lanes rows embed"]:
        return within(buffer, residuals[tap], places)

    @partial(jax.shard_map, mesh=mesh, in_specs=(lanes, lanes, lanes), out_specs=lanes, check_vma=False)
    def within(
        buffer: Float[Array, "lanes rows embed"],
        residual: Float[Array, "share context embed"],
        places: Int[Array, "lanes positions"],
    ) -> Float[Array, "lanes rows embed"]:
        x = residual.reshape(*places.shape, -1)
        return jax.vmap(lambda b, x, at: b.at[at].set(x, mode="drop"))(buffer, x, places)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(lanes, PartitionSpec()), out_specs=lanes, check_vma=False)
    def draw(buffer: Float[Array, "lanes rows embed"], slots: Int[Array, " slots"]) -> Float[Array, "batch embed"]:
        return buffer[:, slots].reshape(-1, buffer.shape[-1]).astype(jnp.float32)

    return write, draw
