"""Stores of the same tokens, side by side: what an SAE reads, and what it writes where that is something else.

Stores of one harvest hold the same tokens in the same order (`jhsae.commands.harvest`), and so do those of harvests
that differ in the hook alone. `Aligned` checks it: the arrays of tokens and of rows have the same checksums. Its rows
are those of all stores, one after the other: ``[inputs | targets]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt32

from jhsae.data.arrays import Pending
from jhsae.data.hook import Hook
from jhsae.data.manifest import Manifest
from jhsae.data.same_model import ModelName, same_model
from jhsae.data.store import Store
from jhsae.errors import UserError

TOGETHER = "harvest both in one pass, lm.hooks=[...]"


@dataclass(frozen=True, eq=False)
class Aligned:
    """Stores of the same tokens.

    Args:
        inputs: what is read.
        targets: what is written; none where that is what is read.

    Raises:
        UserError: stores of another model or text, or whose rows are not the same tokens in the same order.
    """

    inputs: tuple[Store, ...]
    targets: tuple[Store, ...] = ()

    def __post_init__(self) -> None:
        for other in self.stores[1:]:
            _check_same_rows(self.inputs[0], other)

    @property
    def stores(self) -> tuple[Store, ...]:
        """All of them, inputs first."""
        return (*self.inputs, *self.targets)

    @property
    def path(self) -> str:
        """The folders, for messages."""
        return " and ".join(store.path for store in self.stores)

    @property
    def manifest(self) -> Manifest:
        """That of the first store, for what all share: the model, the tokenizer, the rows and their layout."""
        return self.inputs[0].manifest

    @property
    def rows(self) -> int:
        """Number of tokens."""
        return self.inputs[0].rows

    @property
    def embed(self) -> int:
        """The width of all stores together."""
        return sum(store.embed for store in self.stores)

    @property
    def mean(self) -> Float64[np.ndarray, "output"]:
        """The mean of what is written."""
        return np.concatenate([store.manifest.mean for store in self.targets or self.inputs])

    def read_alone(self) -> "Store | Aligned":
        """The inputs without the targets."""
        return self.inputs[0] if len(self.inputs) == 1 else Aligned(self.inputs)

    def identity(self) -> str:
        """A hash of the identities of all stores and of which are targets."""
        words = [store.identity() for store in self.inputs] + ["to"] + [store.identity() for store in self.targets]
        return sha256(" ".join(words).encode()).hexdigest()

    def is_known_as(self, identity: Any) -> bool:
        """Whether `identity`, recorded by a run, is that of these stores."""
        return identity == self.identity()

    def request(self, start: int, stop: int) -> Pending:
        """Starts reading rows `start` to `stop` of all stores; the result is [rows, embed]."""
        ends = list(accumulate((len(store.columns) for store in self.stores), initial=0))

        def decode(*columns: np.ndarray) -> np.ndarray:
            parts = [s.decode(*columns[a:b]) for s, a, b in zip(self.stores, ends, ends[1:], strict=False)]
            same = len({part.dtype for part in parts}) == 1
            return np.concatenate(parts if same else [part.astype(np.float32) for part in parts], axis=1)

        columns = [column for store in self.stores for column in store.columns]
        return Pending(columns, *self.inputs[0].bounds(start, stop), f"{self.path}", decode)

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "rows embed"]:
        """Reads rows `start` to `stop` of all stores, in float32."""
        return self.request(start, stop).result().astype(np.float32)

    def index(self, start: int, stop: int) -> Int32[np.ndarray, "rows 3"]:
        """(sequence, position, token id) of rows `start` to `stop`."""
        return self.inputs[0].index(start, stop)

    def tokens(self) -> UInt32[np.ndarray, "sequences context"]:
        """The packed sequences."""
        return self.inputs[0].tokens()


Stores = Store | Aligned


def open_stores(store: str | Path | Sequence[str], target: str | Sequence[str] | None = None) -> Stores:
    """Opens what an SAE reads and writes.

    Args:
        store: a folder, or several, which are read side by side.
        target: what is written, a folder or several; None for what is read.

    Returns:
        A `Store` of one folder without a target, else `Aligned`.

    Raises:
        UserError: a store that cannot be opened, or stores that do not hold the same tokens in the same order.
    """
    if isinstance(store, str | Path) and target is None:
        return Store.open(store)
    return Aligned(_opened(store), () if target is None else _opened(target))


def mean_of(store: Stores) -> Float64[np.ndarray, "output"]:
    """The mean of what an SAE of these stores writes."""
    return store.mean if isinstance(store, Aligned) else store.manifest.mean


def places_of(store: Stores) -> tuple[tuple[Hook, ...], tuple[Hook, ...]]:
    """The hooks that are read and those that are written."""
    inputs, targets = (store.inputs, store.targets) if isinstance(store, Aligned) else ((store,), ())
    read = tuple(one.manifest.place for one in inputs)
    return read, tuple(one.manifest.place for one in targets) or read


def _opened(paths: str | Path | Sequence[str]) -> tuple[Store, ...]:
    if isinstance(paths, str | Path):
        return (Store.open(paths),)
    if not paths:
        raise UserError("an empty list of stores; write at least one folder")
    return tuple(Store.open(path) for path in paths)


def _check_same_rows(one: Store, other: Store) -> None:
    """`UserError` unless row i of both is of the same token of the same text in the same model."""
    a, b = one.manifest, other.manifest
    names = ModelName.recorded(a), ModelName.recorded(b)
    if not same_model(*names, one.path):
        raise UserError(
            f"{one.path} holds activations of {a.model} and {other.path} of {b.model}, expected one model; {TOGETHER}"
        )
    if a.rows != b.rows:
        raise UserError(f"{one.path} has {a.rows} rows and {other.path} {b.rows}, expected as many; {TOGETHER}")
    for array, what in (("tokens", "another text"), ("index", "the same tokens in another order, or other ones")):
        if _sums(a, array) != _sums(b, array):
            raise UserError(f"{other.path} holds {what} than {one.path}, so row i is not of one token; {TOGETHER}")


def _sums(manifest: Manifest, array: str) -> dict[str, str]:
    return {name: known["sha256"] for name, known in manifest.files.items() if name.startswith(f"{array}/")}
