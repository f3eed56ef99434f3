"""Interface of on-the-fly activation sources."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32

from jhsae.data.statistics import Statistics
from jhsae.ranges import Ranged


@dataclass(frozen=True, eq=False)
class SourceInfo(Statistics):
    """The part of a manifest that a source has: model, layer, rows, and statistics of a sample."""

    model: str
    layer: int
    rows: int
    tokenizer: dict[str, Any] = field(default_factory=dict)  # as in the manifest of a store


class AbstractBatches(ABC, Iterator[Float[Array, "batch embed"]]):
    """Infinite batches on the devices; `get_state` and `set_state` are exact."""

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """The position: JSON values only."""

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes from a position."""

    def together(self, others: Sequence["AbstractBatches"]) -> None:
        """Says which `others` are drawn from in turns with these: what they need too may be computed once.

        Their batches do not depend on it. By default nothing is shared.
        """


class AbstractSource(Ranged, ABC):
    """Batches of activations; also a `RowSource` of a sample that a normaliser can be fitted on."""

    path: str

    @property
    @abstractmethod
    def manifest(self) -> SourceInfo:
        """Model, layer, width and rows, and the statistics of the sample."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows of the sample."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Float32[np.ndarray, "rows embed"]:
        """Rows `start` to `stop` of the sample."""

    @abstractmethod
    def identity(self) -> str:
        """A hash of everything that determines the activations; identifies the source."""

    def is_known_as(self, identity: Any) -> bool:
        """Whether `identity`, recorded by a run, is that of this source."""
        return identity == self.identity()

    def at(self, layer: int) -> "AbstractSource | None":
        """The source of the same stream at another layer, of which one pass can serve both; None where there is none.

        `layer` is at most the layer of this source.
        """
        return None

    @abstractmethod
    def batches(self, batch: int, seed: int) -> AbstractBatches:
        """Batches of `batch` rows over all devices, in an order determined by `seed`."""
