"""What stands in for a store where activations are made while they are trained on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32

from jhsae.data.statistics import Statistics
from jhsae.ranges import Ranged


@dataclass(frozen=True, eq=False)
class SourceInfo(Statistics):
    """What a manifest says of a store: which model and layer, how many rows of text, and statistics of a sample."""

    model: str
    layer: int
    rows: int
    tokenizer: dict[str, Any] = field(default_factory=dict)  # as in the manifest of a store


class AbstractBatches(ABC, Iterator[Float[Array, "batch embed"]]):
    """Batches on the devices, forever; `get_state` and `set_state` are exact."""

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """The position: JSON values only."""

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position."""


class AbstractSource(Ranged, ABC):
    """Activations by the batch; a `RowSource` too, whose rows are a sample that a normaliser can be fitted on."""

    path: str

    @property
    @abstractmethod
    def manifest(self) -> SourceInfo:
        """Model, layer, width and rows, and the statistics of the sample."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """How many rows the sample has."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Float32[np.ndarray, "rows embed"]:
        """Rows `start` to `stop` of the sample."""

    @abstractmethod
    def identity(self) -> str:
        """A hash of everything that decides the activations, to know the source again by."""

    def is_known_as(self, identity: Any) -> bool:
        """Whether a run that wrote down `identity` read this source."""
        return identity == self.identity()

    @abstractmethod
    def batches(self, batch: int, seed: int) -> AbstractBatches:
        """Batches of `batch` rows over all devices, in an order that `seed` decides."""
