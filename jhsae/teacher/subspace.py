"""A parent's subspace: orthonormal rows, in the unified space, that span the deltas of its children.

The right singular vectors of the stacked unit deltas up to `variance` of Σσ², at most `sub` of them, then
random directions orthogonal to those and to the parent until there are `sub`.
"""

import numpy as np
from jaxtyping import Float64

from jhsae.errors import UserError


def subspace(
    deltas: Float64[np.ndarray, "children embed"],
    parent: Float64[np.ndarray, "embed"],
    sub: int,
    variance: float,
    rng: np.random.Generator,
) -> Float64[np.ndarray, "sub embed"]:
    """An orthonormal basis of `sub` rows."""
    embed = len(parent)
    if not 1 <= sub < embed:
        raise UserError(f"sub {sub}; a subspace has between 1 and {embed - 1} dimensions in a model of {embed}")
    span = delta_span(deltas, sub, variance)
    filler = rng.normal(size=(sub - len(span), embed))
    fixed = np.concatenate([span, parent[None]])
    orthogonal = np.linalg.qr(np.concatenate([fixed, filler]).T)[0].T
    return np.concatenate([span, orthogonal[len(fixed) :]])


def delta_span(
    deltas: Float64[np.ndarray, "children embed"], sub: int, variance: float
) -> Float64[np.ndarray, "kept embed"]:
    """The leading right singular vectors of the unit deltas that hold `variance` of Σσ², at most `sub`."""
    if not 0 < variance <= 1:
        raise UserError(f"variance {variance}; it is the fraction of the children's variance to keep, above 0 to 1")
    _, sigma, rows = np.linalg.svd(unit(deltas), full_matrices=False)
    if not sigma.any():  # no child, or none that differs from its parent
        return rows[:0]
    energy = np.cumsum(sigma**2) / np.sum(sigma**2)
    # Singular values at rounding level are noise.
    rank = int(np.sum(sigma > 1e-6 * sigma[0]))
    kept = int(np.sum(energy < variance - 1e-9)) + 1
    return rows[: min(sub, rank, kept)]


def unit(vectors: Float64[np.ndarray, "*batch embed"]) -> Float64[np.ndarray, "*batch embed"]:
    """Rows at unit length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
