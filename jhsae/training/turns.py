"""Batches for runs that take turns: what more than one of them needs is read, or computed, once.

Runs that need the same batches want each of them one after the other (`jhsae.training.many`), so one loader serves them
and its newest batch alone is kept. Loaders of one language model share its passes (`AbstractBatches.together`).
"""

import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from jax.sharding import Mesh
from jaxtyping import Array, Float

from jhsae.data.source import AbstractBatches
from jhsae.parallel.mesh import shard_batch
from jhsae.training.run import Loader


class _Shared:
    """A loader, and its newest batch on the devices."""

    def __init__(self, loader: Loader, mesh: Mesh):
        self.loader, self._mesh = loader, mesh
        self._index: int | None = None
        self._batch: Array | None = None

    def at(self, index: int) -> Float[Array, "batch embed"]:
        """Batch number `index`."""
        if self._batch is None or index != self._index:
            if self._batch is None or index - 1 != self._index:
                self.loader.set_state(self.loader.get_state() | {"next_index": index})
            self._batch = None  # where reading fails, the next run starts again
            self._batch, self._index = shard_batch(next(self.loader), self._mesh), index
        return self._batch


class Turns(AbstractBatches):
    """The batches of one run, from a loader that `share` may give to others too."""

    def __init__(self, loader: Loader, mesh: Mesh, kind: Hashable):
        """Runs of one `kind` need the same batches in the same order."""
        self.kind, self._mesh, self._index = kind, mesh, 0
        self._shared = _Shared(loader, mesh)

    @property
    def loader(self) -> Loader:
        """What the batches come from."""
        return self._shared.loader

    def __next__(self) -> Float[Array, "batch embed"]:
        batch = self._shared.at(self._index)
        self._index += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position that a loader of this run alone would have."""
        return self.loader.get_state() | {"next_index": self._index}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position; to be called before `share`."""
        self.loader.set_state(state)
        self._index = state["next_index"]

    def follow(self, first: "Turns") -> None:
        """Reads from the loader of `first`."""
        self._shared = first._shared

    def layout(self) -> str:
        """What else than the number of batches a position says, such as the lanes of a buffer."""
        return json.dumps({**self.get_state(), "next_index": None}, sort_keys=True)

    @property
    def index(self) -> int:
        """The number of the next batch."""
        return self._index


def share(turns: Sequence[Turns]) -> None:
    """One loader for those of one kind; of several, the one of the run that is furthest behind."""
    kinds = defaultdict(list)
    for one in turns:
        kinds[one.kind, one.layout()].append(one)
    for same in kinds.values():
        first = min(same, key=lambda one: one.index)
        for one in same:
            one.follow(first)
    share_passes(turns)


def share_passes(turns: Sequence[Turns]) -> None:
    """Tells the loaders of these runs of each other; to be called again when a run has ended."""
    loaders = {id(one.loader): one.loader for one in turns}
    live = [loader for loader in loaders.values() if isinstance(loader, AbstractBatches)]
    for loader in live:
        loader.together(live)
