"""Running statistics of activations, in float64, merged block by block.

For n rows x: mean = E[x]; total variance = E||x - mean||^2; mean, root mean square, minimum and maximum of
||x||. Blocks merge by Chan, Golub and LeVeque (1979): with d = mean_b - mean_a, mean = mean_a + d n_b/n and
S = S_a + S_b + ||d||^2 n_a n_b/n, where S is the sum of squared deviations.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of the rows in a manifest, in the units of the activations (`total_variance`: squared).

    Args:
        embed: The width of a row.
        mean: The mean row, [embed].
        mean_norm: The mean of the norms.
        rms_norm: The root of the mean squared norm.
        min_norm: The smallest norm.
        max_norm: The largest norm.
        total_variance: The mean squared distance to `mean`: the sum of the variances of all dimensions.
    """

    embed: int
    mean: Float64[np.ndarray, "embed"]
    mean_norm: float
    rms_norm: float
    min_norm: float
    max_norm: float
    total_variance: float


@dataclass(frozen=True, eq=False)
class Running:
    """Running sums over rows; `merge` combines two of them."""

    rows: int
    mean: Float64[np.ndarray, "embed"]
    squared_deviation: float
    sum_norm: float
    sum_squared_norm: float
    min_norm: float
    max_norm: float

    @classmethod
    def empty(cls, embed: int) -> "Running":
        """Of no rows."""
        return cls(0, np.zeros(embed), 0.0, 0.0, 0.0, np.inf, 0.0)

    @classmethod
    def of(cls, x: Shaped[np.ndarray, "rows embed"]) -> "Running":
        """The statistics of one block of at least one row."""
        x = x.astype(np.float64)
        mean = x.mean(axis=0)
        squared = np.einsum("re,re->r", x, x)
        norm = np.sqrt(squared)
        x -= mean
        deviation = float(np.einsum("re,re->", x, x))
        return cls(
            len(x),
            mean,
            deviation,
            float(norm.sum()),
            float(squared.sum()),
            float(norm.min()),
            float(norm.max()),
        )

    def merge(self, other: "Running") -> "Running":
        """The statistics of the rows of both."""
        rows = self.rows + other.rows
        shift = other.mean - self.mean
        between = float(shift @ shift) * self.rows * other.rows / rows
        return Running(
            rows,
            self.mean + shift * (other.rows / rows),
            self.squared_deviation + other.squared_deviation + between,
            self.sum_norm + other.sum_norm,
            self.sum_squared_norm + other.sum_squared_norm,
            min(self.min_norm, other.min_norm),
            max(self.max_norm, other.max_norm),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is its exact inverse."""
        return asdict(self) | {"mean": self.mean.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Running":
        """Inverse of `to_dict`."""
        return cls(**values | {"mean": np.array(values["mean"], np.float64)})

    def summary(self) -> Statistics:
        """The statistics in the manifest."""
        return Statistics(
            len(self.mean),
            self.mean,
            self.sum_norm / self.rows,
            float(np.sqrt(self.sum_squared_norm / self.rows)),
            self.min_norm,
            self.max_norm,
            self.squared_deviation / self.rows,
        )
