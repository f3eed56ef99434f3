"""Small pursuits with random rows: flat, and forests of two and three levels, with empty slots in the last."""

from itertools import combinations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jhsae.constraint import AncestorsOut
from jhsae.sae import AllRows, PursuitSAE, Screened
from jhsae.sparsify import AbstractBudget, ExactL0, Threshold

LEVELS = {"flat": (24,), "two": (8, 3), "three": (8, 3, 2)}
EMPTY = 2  # slots of a forest's last level without a row
BUDGETS: dict[str, AbstractBudget] = {"threshold": Threshold(0.3, 6), "exact": ExactL0(4, 2)}
CANDIDATES = {"all": AllRows(), "screened": Screened(2, 4), "by round": Screened(3, 4, "every round")}


def pursuit(
    levels: tuple[int, ...],
    embed: int,
    budget: AbstractBudget = BUDGETS["exact"],
    candidates: AllRows | Screened = CANDIDATES["all"],
    empty: int = EMPTY,
    **parts: float,
) -> PursuitSAE:
    """Rows orthogonal to their ancestors, a bias, and empty slots at the end where there is more than one level."""
    sae = PursuitSAE(embed, levels, budget, candidates=candidates, key=jax.random.key(0), **parts)
    sae = AncestorsOut().retract(sae)
    sae = eqx.tree_at(lambda s: s.b_dec, sae, 0.1 * jax.random.normal(jax.random.key(1), (embed,)))
    return with_rows(sae, sae.rows.at[len(sae.rows) - empty :].set(0.0)) if len(levels) > 1 else sae


def roots_left(sae: PursuitSAE, cosine: float) -> int:
    """How many roots are left when the two most alike become their mean until none has a larger cosine."""
    rows = [(row / np.linalg.norm(row), 1.0) for row in np.asarray(sae.rows[: sae.forest.roots]) if row.any()]
    while len(rows) > 1:
        i, j = max(combinations(range(len(rows)), 2), key=lambda pair: rows[pair[0]][0] @ rows[pair[1]][0])
        (one, weight), (other, more) = rows[i], rows[j]
        if one @ other <= cosine:
            break
        mean = weight * one + more * other
        rows = [row for k, row in enumerate(rows) if k not in (i, j)] + [(mean / np.linalg.norm(mean), weight + more)]
    return len(rows)


def with_rows(sae: PursuitSAE, rows: Array) -> PursuitSAE:
    """The same SAE with other rows."""
    return eqx.tree_at(lambda s: s.rows, sae, jnp.asarray(rows))
