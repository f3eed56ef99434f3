"""Firing probabilities and magnitudes of the features of a world, as functions of their number and a seed.

Each is one of SAELens's generators (SynthSAEBench, arXiv 2602.14687) with the same values, those drawn at random
included (`jhsae.worlds.torch_random`): SAELens stores the generator of the magnitudes and not the numbers.
"""

from abc import ABC, abstractmethod
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float32

from jhsae.errors import UserError
from jhsae.ranges import NonNegative, Positive, PositiveFraction, Ranged
from jhsae.worlds import torch_random

Values = Float32[np.ndarray, "features"]


class AbstractGenerator(Ranged, eqx.Module):
    """One number per feature."""

    @abstractmethod
    def values(self, features: int, seed: int) -> Values:
        """The numbers of features 0 to `features` - 1; only what is drawn at random depends on `seed`."""


class AbstractProbabilities(AbstractGenerator, ABC):
    """The probabilities with which features fire, by feature number."""


class AbstractMagnitudes(AbstractGenerator, ABC):
    """Means or standard deviations of the values of features, by feature number."""


def zipf(count: int, exponent: float, highest: float, lowest: float) -> Float32[np.ndarray, "count"]:
    """Firing rates from `highest` down to `lowest`, falling as rank^-exponent in between."""
    rank = np.arange(1, count + 1, dtype=np.float32) ** np.float32(-exponent)
    span = max(float(rank[0] - rank[-1]), float(np.finfo(np.float32).tiny)) if count else 1.0
    share = (rank - rank[-1:]) / np.float32(span) if count > 1 else np.ones(count, np.float32)
    return (lowest + (highest - lowest) * share).astype(np.float32)


class Zipf(AbstractProbabilities):
    """From `highest` down to `lowest`, falling as rank^-exponent in between (SAELens: zipfian).

    Args:
        exponent: above 0; larger falls faster.
        highest: of the first feature.
        lowest: of the last feature.
    """

    exponent: Positive = eqx.field(static=True, default=1.0)
    highest: PositiveFraction = eqx.field(static=True, default=0.3)
    lowest: PositiveFraction = eqx.field(static=True, default=0.01)

    def __check_init__(self) -> None:
        _ordered(self.lowest, self.highest)

    def values(self, features: int, seed: int) -> Values:
        return zipf(features, self.exponent, self.highest, self.lowest)


class LinearProbabilities(AbstractProbabilities):
    """From `highest` down to `lowest` in equal steps.

    Args:
        highest: of the first feature.
        lowest: of the last feature.
    """

    highest: PositiveFraction = eqx.field(static=True, default=0.3)
    lowest: PositiveFraction = eqx.field(static=True, default=0.01)

    def __check_init__(self) -> None:
        _ordered(self.lowest, self.highest)

    def values(self, features: int, seed: int) -> Values:
        return np.linspace(self.highest, self.lowest, features, dtype=np.float32)


class RandomProbabilities(AbstractProbabilities):
    """Uniform between `lowest` and `highest`.

    Args:
        highest: the upper end of the interval.
        lowest: its lower end.
    """

    highest: PositiveFraction = eqx.field(static=True, default=0.5)
    lowest: PositiveFraction = eqx.field(static=True, default=0.01)

    def __check_init__(self) -> None:
        _ordered(self.lowest, self.highest)

    def values(self, features: int, seed: int) -> Values:
        drawn = torch_random.uniform(seed, features)
        return (self.lowest + (self.highest - self.lowest) * drawn).astype(np.float32)


class ConstantProbability(AbstractProbabilities):
    """The same for all features.

    Args:
        probability: of every feature, 0 to 1.
    """

    probability: PositiveFraction = eqx.field(static=True, default=0.1)

    def values(self, features: int, seed: int) -> Values:
        return np.full(features, self.probability, np.float32)


class ConstantMagnitude(AbstractMagnitudes):
    """The same for all features; in a config the number alone.

    Args:
        value: of every feature.
    """

    value: float = eqx.field(static=True, default=1.0)

    def values(self, features: int, seed: int) -> Values:
        return np.full(features, self.value, np.float32)


class AbstractRamp(AbstractMagnitudes):
    """From one value at feature 0 to another at the last.

    Args:
        start: of the first feature, above 0.
        end: of the last feature, above 0.
    """

    start: Positive = eqx.field(static=True)
    end: Positive = eqx.field(static=True)


class LinearMagnitudes(AbstractRamp):
    """From `start` at feature 0 to `end` at the last, in equal steps."""

    def values(self, features: int, seed: int) -> Values:
        return np.linspace(self.start, self.end, features, dtype=np.float32)


class ExponentialMagnitudes(AbstractRamp):
    """From `start` at feature 0 to `end` at the last, in equal ratios."""

    def values(self, features: int, seed: int) -> Values:
        return (self.start * (self.end / self.start) ** np.linspace(0, 1, features)).astype(np.float32)


class FoldedNormal(AbstractMagnitudes):
    """|normal(mean, std)|, at least `min_value` and at most `max_value` where they are given.

    Args:
        mean: of the normal variable whose absolute value is taken.
        std: its standard deviation, above 0.
        min_value: smaller values are set to it; None for no bound.
        max_value: larger values are set to it; None for no bound.
    """

    mean: float = eqx.field(static=True, default=0.0)
    std: Positive = eqx.field(static=True, default=0.1)
    min_value: NonNegative | None = eqx.field(static=True, default=None)
    max_value: Positive | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.min_value is not None and self.max_value is not None and self.min_value > self.max_value:
            raise UserError(f"min_value is {self.min_value:g}, expected at most max_value, {self.max_value:g}")

    def values(self, features: int, seed: int) -> Values:
        drawn = np.abs(np.float32(self.mean) + np.float32(self.std) * torch_random.normal(seed, features))
        return drawn if self.min_value is self.max_value is None else np.clip(drawn, self.min_value, self.max_value)


def magnitudes(value: Any) -> AbstractMagnitudes:
    """The generator that a number stands for, or the generator itself."""
    return value if isinstance(value, AbstractMagnitudes) else ConstantMagnitude(float(value))


def _ordered(lowest: float, highest: float) -> None:
    if lowest > highest:
        raise UserError(f"lowest is {lowest:g}, expected at most highest, {highest:g}")
