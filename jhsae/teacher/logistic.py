"""Logistic regression with an L2 penalty: an estimator of concepts, and the probe of `jhsae.evals.probing`.

``sum_i w_i log(1 + exp(-y_i (x_i . weights + bias))) + |weights|^2 / (2 C)``, y in {-1, 1}; the bias is not penalised.
That is the objective of scikit-learn's LogisticRegression, solved by Newton's method in float64 from 0.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit

from jhsae.errors import UserError
from jhsae.ranges import Positive, ranged

STEPS = 100
PRECISION = 1e-9
RIDGE = 1e-12  # the bias has no penalty, and no curvature where every row is certain


class Probe(NamedTuple):
    """A linear classifier: positive where ``x @ weights + bias`` is."""

    weights: Float[np.ndarray, " width"]
    bias: float

    def __call__(self, x: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, " rows"]:
        """The logit of every row."""
        return x @ self.weights + self.bias


class Scores(NamedTuple):
    """Of a prediction: the share that is right, and F1 of the positives."""

    accuracy: float
    f1: float


@ranged
def logistic(
    x: Float[np.ndarray, "rows width"], positive: Bool[np.ndarray, " rows"], C: Positive = 1.0, balanced: bool = False
) -> Probe:
    """Fits a probe.

    Args:
        x: rows of numbers; they are not standardised.
        positive: the class of every row.
        C: the inverse strength of the penalty.
        balanced: whether both classes weigh alike, however many rows they have.

    Raises:
        UserError: rows of one class alone.
    """
    counts = np.bincount(positive, minlength=2)
    if not counts.all():
        raise UserError(f"{len(x)} rows of one class cannot be told apart; write rows of both classes")
    x, basis = x.astype(np.float64), None
    if x.shape[1] > len(x):  # the weights lie in the span of the rows, because of the penalty
        basis = np.linalg.qr(x.T)[0]
        x = x @ basis
    design, y = np.append(x, np.ones((len(x), 1)), axis=1), positive.astype(np.float64)
    weight = len(x) / (2 * counts[positive.astype(int)]) if balanced else np.ones(len(x))
    found = _newton(design, y, weight, np.append(np.full(x.shape[1], 1 / C), 0.0))
    return Probe(found[:-1] if basis is None else basis @ found[:-1], float(found[-1]))


def _newton(design: np.ndarray, y: np.ndarray, weight: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """The minimum of a convex function, by Newton steps that are halved while they do not descend."""

    def objective(at: np.ndarray) -> float:
        logits = design @ at
        return float(weight @ (np.logaddexp(0, logits) - y * logits) + penalty @ at**2 / 2)

    at = np.zeros(design.shape[1])
    value = objective(at)
    for _ in range(STEPS):
        chance = expit(design @ at)
        gradient = design.T @ (weight * (chance - y)) + penalty * at
        if np.abs(gradient).max() <= PRECISION * len(design):
            break
        curvature = (design.T * (weight * chance * (1 - chance))) @ design + np.diag(penalty + RIDGE)
        step = np.linalg.solve(curvature, gradient)
        while (lower := objective(at - step)) > value and np.abs(step).max() > PRECISION:
            step /= 2
        if lower > value:
            break
        at, value = at - step, lower
    return at


def scores(predicted: Bool[np.ndarray, " rows"], positive: Bool[np.ndarray, " rows"]) -> Scores:
    """Accuracy and F1; 0 for the F1 of neither predictions nor positives, NaN of no rows."""
    if not len(positive):
        return Scores(float("nan"), float("nan"))
    total = int(predicted.sum() + positive.sum())
    return Scores(
        float(np.mean(predicted == positive)), 2 * float(np.sum(predicted & positive)) / total if total else 0.0
    )
