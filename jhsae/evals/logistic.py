"""Logistic regression with an L2 penalty: the probe of `jhsae.evals.probing` and `jhsae.evals.absorption`.

``sum_i w_i log(1 + exp(-y_i (x_i . weights + bias))) + |weights|^2 / (2 C)``, y in {-1, 1}; the bias is not penalised.
That is the objective of scikit-learn's LogisticRegression, solved by L-BFGS in float64 from 0.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit

from jhsae.errors import UserError
from jhsae.ranges import Positive, ranged

STEPS = 1000


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
    x = x.astype(np.float64)
    sign = np.where(positive, 1.0, -1.0)
    weight = len(x) / (2 * counts[positive.astype(int)]) if balanced else np.ones(len(x))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:-1], flat[-1]
        margin = sign * (x @ weights + bias)
        slope = -weight * sign * expit(-margin)
        loss = float(weight @ np.logaddexp(0, -margin)) + weights @ weights / (2 * C)
        return loss, np.append(x.T @ slope + weights / C, slope.sum())

    found = minimize(objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    return Probe(found.x[:-1], float(found.x[-1]))


def scores(predicted: Bool[np.ndarray, " rows"], positive: Bool[np.ndarray, " rows"]) -> Scores:
    """Accuracy and F1; 0 for the F1 of neither predictions nor positives, NaN of no rows."""
    if not len(positive):
        return Scores(float("nan"), float("nan"))
    total = int(predicted.sum() + positive.sum())
    return Scores(
        float(np.mean(predicted == positive)), 2 * float(np.sum(predicted & positive)) / total if total else 0.0
    )
