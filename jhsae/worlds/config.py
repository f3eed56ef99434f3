"""The config of one world: frozen dataclasses that mirror the YAML of ``jhsae world``."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le, Lt, MaxLen, MinLen

from jhsae.config import Slot, Supplied
from jhsae.errors import UserError
from jhsae.ranges import Count, Fraction, Natural, NonNegative, Positive, Seed, Words, ranged
from jhsae.worlds.generators import AbstractMagnitudes, AbstractProbabilities

Branching = Annotated[int, Ge(1), Le(2**16)]
Magnitudes = Annotated[Slot | NonNegative, Supplied(kind=AbstractMagnitudes)]


@ranged
@dataclass(frozen=True)
class TreeConfig:
    """The trees, made level by level until they are complete or there are no features left."""

    roots: Annotated[Count, "number of trees"]
    branching: Annotated[
        Branching | Annotated[list[Branching], MinLen(2), MaxLen(2)],
        "children of every feature above the last level; [least, most] to draw their number",
    ]
    depth: Annotated[Natural, "levels below the roots"] = 2
    exclusive: Annotated[Fraction, "share of the parents of two or more of whose children at most one fires"] = 1.0
    scale_children: Annotated[bool, "multiply a child's value by value / mean of its parent"] = False
    second_parents: Annotated[Fraction, "share of the features below the roots with another parent one level up"] = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.branching, list) and self.branching[0] > self.branching[1]:
            raise UserError(f"branching is {self.branching}, expected [least, most]; write {self.branching[::-1]}")

    @property
    def children(self) -> tuple[int, int]:
        """The least and the greatest number of children of a parent."""
        least, most = self.branching if isinstance(self.branching, list) else (self.branching, self.branching)
        return least, most


@ranged
@dataclass(frozen=True)
class CorrelationConfig:
    """Correlated firing: a Gaussian copula whose covariance is F Fᵀ + a diagonal."""

    rank: Annotated[Count, "columns of F"]
    scale: Annotated[NonNegative, "standard deviation of the entries of F"] = 0.1


@ranged
@dataclass(frozen=True)
class OrthogonalizationConfig:
    """Adam on the squared cosines between feature vectors, which start as random directions."""

    steps: Annotated[Natural, "steps; 0 leaves the directions random"] = 200
    learning_rate: Annotated[Positive, "of Adam"] = 0.01


@ranged
@dataclass(frozen=True)
class WorldConfig:
    """The config of one world."""

    out: Annotated[Words, "the world's folder; must not hold anything else"]
    embed: Annotated[Count, "width of an activation"]
    features: Annotated[
        Count | None, "number of features: trees are cut off there, those left over are in no tree; null: of the trees"
    ] = None
    trees: Annotated[TreeConfig | None, "the hierarchy; null: every feature is on its own"] = None
    probabilities: Annotated[Slot, "how often features fire", Supplied(kind=AbstractProbabilities)] = field(
        default_factory=lambda: {"_target_": "jhsae.worlds.Zipf"}
    )
    compensate: Annotated[bool, "raise the probabilities, so that in spite of the hierarchy features fire as often"] = (
        True
    )
    means: Annotated[Magnitudes, "of the values of features that fire: a number or a generator"] = 1.0
    stds: Annotated[Magnitudes, "standard deviations of the values of features that fire"] = 0.0
    correlation: Annotated[CorrelationConfig | None, "null: features fire independently, but for the hierarchy"] = None
    orthogonalization: Annotated[OrthogonalizationConfig | None, "null: random directions"] = None
    child_cosine: Annotated[
        Annotated[float, Ge(0), Lt(1)] | None,
        "cosine of a child's vector with its parent's (the sum of several); its rest is orthogonal to all ancestors; "
        "null: as it comes",
    ] = None
    bias: Annotated[NonNegative, "norm of the bias"] = 0.0
    noise: Annotated[NonNegative, "standard deviation of noise per coordinate"] = 0.0
    seed: Annotated[Seed, "of the trees, vectors and generators"] = 0

    def __post_init__(self) -> None:
        if self.features is None and self.trees is None:
            raise UserError("names neither features nor trees; write features=336, or trees.roots and trees.branching")
