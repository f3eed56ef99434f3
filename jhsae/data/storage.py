"""Storage dtypes of activations: float32, bfloat16, or quantised to int8.

int8: with m and s the mean and standard deviation of every channel over the first rows of the harvest, a row x becomes
z = (x - m) / s, its scale c = max |z| / 127 and the integers q = round(z / c); it reads back as m + s c q. The channels
are standardised because a few of them are far larger than the rest; each row has its own scale (as in LLM.int8(),
Dettmers et al. 2022, arXiv 2208.07339), so that one large row does not reduce the precision of the others.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from jaxtyping import Float32, Int8, Shaped

PLAIN = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
DTYPES = (*PLAIN, "int8")


@dataclass(frozen=True, eq=False)
class Channels:
    """Mean and standard deviation of every channel, in the units of the activations."""

    mean: Float32[np.ndarray, "embed"]
    std: Float32[np.ndarray, "embed"]

    @classmethod
    def of(cls, x: Shaped[np.ndarray, "rows embed"]) -> "Channels":
        """Channel statistics of some rows; a constant channel gets standard deviation 1."""
        x = x.astype(np.float64)
        std = x.std(axis=0)
        return cls(x.mean(axis=0).astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32))


class AbstractStorage(ABC):
    """Encoding of a block of rows as one or more arrays with a row for each."""

    @abstractmethod
    def columns(self, embed: int) -> dict[str, tuple[int, str]]:
        """Name -> width and dtype of every array."""

    @abstractmethod
    def encode(self, x: Shaped[np.ndarray, "rows embed"]) -> tuple[np.ndarray, ...]:
        """The arrays of a block of rows, in the order of `columns`."""

    @abstractmethod
    def decode(self, *arrays: np.ndarray) -> Shaped[np.ndarray, "rows embed"]:
        """Decodes the arrays into rows."""


@dataclass(frozen=True)
class Plain(AbstractStorage):
    """The rows themselves, in `dtype`."""

    dtype: str

    def columns(self, embed: int) -> dict[str, tuple[int, str]]:
        return columns(self.dtype, embed)

    def encode(self, x: Shaped[np.ndarray, "rows embed"]) -> tuple[np.ndarray, ...]:
        return (x.astype(PLAIN[self.dtype], copy=False),)

    def decode(self, *arrays: np.ndarray) -> Shaped[np.ndarray, "rows embed"]:
        return arrays[0]


@dataclass(frozen=True, eq=False)
class Integers(AbstractStorage):
    """Standardised per channel, scaled per row to 8-bit integers; reads back as float32."""

    channels: Channels

    def columns(self, embed: int) -> dict[str, tuple[int, str]]:
        return columns("int8", embed)

    def encode(self, x: Shaped[np.ndarray, "rows embed"]) -> tuple[Int8[np.ndarray, "rows embed"], np.ndarray]:
        z = (x.astype(np.float32) - self.channels.mean) / self.channels.std
        scale = np.abs(z).max(axis=1, keepdims=True) / 127
        q = np.rint(z / np.where(scale > 0, scale, 1))
        return q.astype(np.int8), scale

    def decode(self, *arrays: np.ndarray) -> Float32[np.ndarray, "rows embed"]:
        q, scale = arrays
        return self.channels.mean + self.channels.std * (q.astype(np.float32) * scale)


def columns(dtype: str, embed: int) -> dict[str, tuple[int, str]]:
    """Name -> width and dtype of every array that has a row for each activation."""
    if dtype == "int8":
        return {"activations": (embed, "int8"), "scales": (1, "float32")}
    return {"activations": (embed, dtype)}


def storage(dtype: str, channels: Callable[[], Channels]) -> AbstractStorage:
    """The storage of `dtype`; `channels` is called only where it needs them."""
    return Integers(channels()) if dtype == "int8" else Plain(dtype)
