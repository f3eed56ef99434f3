"""The PyTorch original's estimators (PolytopeSAE), for parity and for comparison.

They differ from `estimate.py` and `subspace.py` in four ways: activations are whitened on the unembedding
side (Σ^(-1/2)), the ridge is absolute, a child is contrasted with negated prompts and not with its
siblings, and the subspace is cut on singular values in model space.
"""

import numpy as np
from jaxtyping import Float, Float64, Shaped

from jhsae.errors import UserError
from jhsae.metric import Whitened


def lda_raw_direction(
    positive: Shaped[np.ndarray, "positive embed"],
    negative: Shaped[np.ndarray, "negative embed"],
    metric: Whitened,
    shrinkage: float = 0.1,
) -> Float64[np.ndarray, "embed"]:
    """W S⁻¹ (μ₊ - μ₋) with W the matrix of `metric`, means of x Wᵀ, S their pooled covariance + shrinkage I.

    The larger class is cut to the size of the smaller, as in the original.
    """
    matrix = np.asarray(metric.matrix, np.float64)
    count = min(len(positive), len(negative))
    up, down = (np.asarray(x[:count], np.float64) @ matrix.T for x in (positive, negative))
    within = np.concatenate([up - up.mean(0), down - down.mean(0)])
    scatter = within.T @ within / (len(within) - 1) + shrinkage * np.eye(len(matrix))
    return np.linalg.solve(scatter, up.mean(0) - down.mean(0)) @ matrix


def normalized(vector: Float[np.ndarray, "*batch embed"], metric: Whitened) -> Float[np.ndarray, "*batch embed"]:
    """`vector` / its norm under `metric`, in float64."""
    whitened = np.asarray(vector, np.float64) @ np.asarray(metric.matrix, np.float64).T
    norm = np.linalg.norm(whitened, axis=-1, keepdims=True)
    if not np.all(norm > 0):
        raise UserError("a concept's direction is 0, so it has no unit vector; leave the concept out")
    return vector / norm


def lda_direction(
    positive: Shaped[np.ndarray, "positive embed"],
    negative: Shaped[np.ndarray, "negative embed"],
    metric: Whitened,
    shrinkage: float = 0.1,
) -> Float64[np.ndarray, "embed"]:
    """`lda_raw_direction` at unit norm: the original's concept vector."""
    return normalized(lda_raw_direction(positive, negative, metric, shrinkage), metric)


def child_deltas(
    children: Float[np.ndarray, "children embed"], parent: Float[np.ndarray, "embed"], metric: Whitened
) -> Float[np.ndarray, "children embed"]:
    """Differences of unit vectors, again at unit norm."""
    return normalized(children - parent, metric)


def subspace_basis(
    deltas: Float[np.ndarray, "children embed"], sub: int, keep: float = 0.85
) -> Float[np.ndarray, "kept embed"]:
    """Right singular vectors of the stacked deltas: as many as needed to pass `keep` of Σσ, at most `sub`."""
    _, sigma, rows = np.linalg.svd(np.asarray(deltas, np.float64), full_matrices=False)
    if not sigma.any():
        return rows[:0]
    kept = min(sub, int(np.sum(np.cumsum(sigma) / np.sum(sigma) <= keep)) + 1)
    return rows[:kept]
