"""Estimators: from samples of a concept's tokens to its direction in the unified space.

Park et al. (arXiv 2406.01506, section 5): with μ the mean and C the Ledoit-Wolf covariance of the concept's
samples, u = C⁺ μ / ||C⁺ μ|| and the concept is (uᵀ μ) u, so that its tokens project to about its squared
norm. A child's delta is its vector minus its parent's. LDA contrasts: a parent with the other parents, a
child with its siblings.
"""

from abc import abstractmethod
from dataclasses import dataclass

import equinox as eqx
import numpy as np
from jaxtyping import Float64

from jhsae.errors import UserError
from jhsae.metric import ledoit_wolf_weight
from jhsae.ranges import Positive, PositiveFraction, Ranged
from jhsae.teacher.logistic import logistic
from jhsae.teacher.samples import Samples
from jhsae.teacher.select import Concept

MOST_NEGATIVES = 2048

Members = Float64[np.ndarray, "positive embed"]
Negative = Float64[np.ndarray, "negative embed"]
Vector = Float64[np.ndarray, "embed"]


class AbstractEstimator(Ranged, eqx.Module):
    """A rule for the direction of a parent and for the delta of a child."""

    @abstractmethod
    def direction(self, positive: Members, negative: Negative) -> Vector:
        """The direction of a parent; its length is the mean projection of its samples.

        Args:
            positive: Its samples, [n, embed].
            negative: Samples of the other parents.
        """

    @abstractmethod
    def delta(self, parent: Vector, positive: Members, siblings: Negative) -> Vector:
        """The difference of a child to its parent.

        Args:
            parent: The parent's direction, [embed].
            positive: The child's samples, [n, embed].
            siblings: The parent's other samples.
        """


class ParkEstimator(AbstractEstimator):
    """Park et al.'s estimator: the concept's own samples alone."""

    def direction(self, positive: Members, negative: Negative) -> Vector:
        mean = positive.mean(0)
        centred = positive - mean
        return _scaled(shrunk_solve(centred, ledoit_wolf_shrinkage(centred), len(centred), mean), mean)

    def delta(self, parent: Vector, positive: Members, siblings: Negative) -> Vector:
        return self.direction(positive, siblings) - parent


class MeanEstimator(AbstractEstimator):
    """The mean of the concept's samples, Park et al.'s baseline."""

    def direction(self, positive: Members, negative: Negative) -> Vector:
        return positive.mean(0)

    def delta(self, parent: Vector, positive: Members, siblings: Negative) -> Vector:
        return positive.mean(0) - parent


class LDAEstimator(AbstractEstimator):
    """Linear discriminant S⁻¹(μ₊ - μ₋), S the pooled within-class covariance with a relative ridge.

    Args:
        shrinkage: Weight of the ridge (`jhsae.metric.relative_ridge`).
    """

    shrinkage: PositiveFraction = eqx.field(static=True, default=0.1)

    def direction(self, positive: Members, negative: Negative) -> Vector:
        if not len(negative):
            raise UserError("LDA contrasts a concept with others and was given none; name a second concept")
        gap = positive.mean(0) - negative.mean(0)
        within = np.concatenate([positive - positive.mean(0), negative - negative.mean(0)])
        return _scaled(shrunk_solve(within, self.shrinkage, len(within) - 1, gap), gap)

    def delta(self, parent: Vector, positive: Members, siblings: Negative) -> Vector:
        return self.direction(positive, siblings)


class LogisticEstimator(AbstractEstimator):
    """Normal of a logistic regression of the concept's samples against the others, with an L2 penalty.

    It minimises Σ log(1 + exp(-y (w·g + b))) + penalty / 2 ||w||², by Newton's method; scikit-learn's C is 1 / penalty.
    """

    penalty: Positive = eqx.field(static=True, default=1.0)

    def direction(self, positive: Members, negative: Negative) -> Vector:
        if not len(negative):
            raise UserError("logistic regression contrasts a concept with others and was given none; name a second one")
        gap = positive.mean(0) - negative.mean(0)
        labels = np.arange(len(positive) + len(negative)) < len(positive)
        return _scaled(logistic(np.concatenate([positive, negative]), labels, C=1 / self.penalty).weights, gap)

    def delta(self, parent: Vector, positive: Members, siblings: Negative) -> Vector:
        return self.direction(positive, siblings)


@dataclass(frozen=True)
class Directions:
    """Estimated vectors in the unified space.

    Args:
        parents: One per parent, [parents, embed].
        deltas: For each parent those of its children, [children, embed].
    """

    parents: Float64[np.ndarray, "parents embed"]
    deltas: tuple[Float64[np.ndarray, "_ embed"], ...]


def estimate(concepts: tuple[Concept, ...], estimator: AbstractEstimator, samples: Samples) -> Directions:
    """Estimates every parent against the tokens of the other parents, every child against its siblings.

    Args:
        concepts: Parents with their children.
        estimator: The rule.
        samples: Samples of all their tokens, in the unified space.
    """
    parents, deltas = [], []
    for concept in concepts:
        parent = estimator.direction(samples.of(concept.tokens), others(concept, concepts, samples))
        parents.append(parent)
        deltas.append(
            np.stack(
                [
                    estimator.delta(parent, samples.of(child.tokens), samples.of(rest(concept, child)))
                    for child in concept.children
                ]
            )
        )
    return Directions(np.stack(parents), tuple(deltas))


def rest(parent: Concept, child: Concept) -> tuple[int, ...]:
    """The tokens of the parent that are not the child's."""
    return tuple(t for t in parent.tokens if t not in set(child.tokens))


def others(concept: Concept, concepts: tuple[Concept, ...], samples: Samples) -> Float64[np.ndarray, "samples embed"]:
    """Samples of the tokens that only other parents have, evenly thinned to at most `MOST_NEGATIVES`."""
    tokens = sorted({t for other in concepts for t in other.tokens} - set(concept.tokens))
    step = -(-len(tokens) * samples.rows.shape[1] // MOST_NEGATIVES) or 1
    return samples.of(tokens[::step])


def ledoit_wolf_shrinkage(centred: Float64[np.ndarray, "samples embed"]) -> float:
    """The weight of the identity in Ledoit and Wolf's covariance (2004), equal to scikit-learn's.

    Written with the Gram matrix of the samples, because there are far fewer of them than dimensions.
    """
    samples, embed = centred.shape
    gram = centred @ centred.T
    size = float(np.sum(gram**2)) / samples**2
    fourth = float(np.sum(np.diag(gram) ** 2))
    return ledoit_wolf_weight(size, fourth, float(np.trace(gram) / samples), samples, embed)


def shrunk_solve(
    centred: Float64[np.ndarray, "samples embed"],
    shrinkage: float,
    divisor: int,
    right: Float64[np.ndarray, "embed"],
) -> Float64[np.ndarray, "embed"]:
    """C⁺ right, with S = centredᵀ centred / divisor and C = (1 - shrinkage) S + shrinkage (tr S / embed) I.

    With fewer samples than dimensions it solves the small system (Woodbury), so C is never formed.
    """
    samples, embed = centred.shape
    ridge = shrinkage * float(np.sum(centred**2)) / divisor / embed
    scale = (1 - shrinkage) / divisor
    if samples < embed and ridge > 0:
        small = ridge * np.eye(samples) + scale * centred @ centred.T
        return (right - scale * centred.T @ np.linalg.solve(small, centred @ right)) / ridge
    covariance = scale * centred.T @ centred + ridge * np.eye(embed)
    if ridge > 0:
        return np.linalg.solve(covariance, right)
    return np.linalg.pinv(covariance, hermitian=True) @ right


def _scaled(vector: Float64[np.ndarray, "embed"], target: Float64[np.ndarray, "embed"]) -> Float64[np.ndarray, "embed"]:
    """The projection of `target` onto the line of `vector`."""
    length = np.linalg.norm(vector)
    if not (length > 0 and target.any()):
        raise UserError(
            "the samples of a concept have no spread or no mean, so it has no direction; "
            "use another estimator, or leave the concept out"
        )
    unit = vector / length
    return (unit @ target) * unit
