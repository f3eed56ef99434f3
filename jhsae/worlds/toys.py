"""Toy worlds of a few orthogonal features, in which it is known what an SAE of too few or too many latents learns.

Absorption (Chanin et al., arXiv 2409.14507): the latent of the parent stays off where the child fires, and the latent
of the child takes on the parent's vector. Hedging (Chanin et al., arXiv 2505.11756): one latent for two correlated
features mixes both vectors. Splitting (Bricken et al., 2023): with more latents one feature becomes several, one per
child.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jhsae.errors import UserError
from jhsae.ranges import Count, Fraction, ranged
from jhsae.worlds.directions import random_directions
from jhsae.worlds.hierarchy import Hierarchy
from jhsae.worlds.world import World


@ranged
def absorption(embed: Count = 8, parent: Fraction = 0.4, child: Fraction = 0.5, seed: int = 0) -> World:
    """Two features: 1 fires on the share `child` of the tokens on which 0 does, and nowhere else."""
    return _orthogonal(embed, [parent, child], Hierarchy.of_parents([-1, 0]), seed)


@ranged
def hedging(embed: Count = 50, probability: Fraction = 0.25, correlation: float = 0.5, seed: int = 0) -> World:
    """Two features without a hierarchy; `correlation`, above -1 and below 1, is that of the Gaussian copula.

    Of a single latent the best direction has a positive cosine with both vectors if it is positive.
    """
    if not -1 < correlation < 1:
        raise UserError(f"correlation is {correlation:g}, expected more than -1 and less than 1")
    share = abs(correlation) ** 0.5
    factor = jnp.array([[share], [np.copysign(share, correlation)]], jnp.float32)
    plain = _orthogonal(embed, [probability] * 2, Hierarchy(2), seed)
    return World(
        plain.features,
        plain.bias,
        plain.probabilities,
        plain.means,
        plain.stds,
        plain.hierarchy,
        correlation_factor=factor,
        correlation_diag=jnp.full(2, 1 - abs(correlation), jnp.float32),
    )


@ranged
def splitting(embed: Count = 16, children: Count = 4, root: Fraction = 0.5, seed: int = 0) -> World:
    """Feature 0 with exclusive children 1, 2, ..., of which exactly one fires wherever it does, each as often."""
    hierarchy = Hierarchy.of_parents([-1] + [0] * children, exclusive=frozenset({0}))
    return _orthogonal(embed, [root] + [1.0] * children, hierarchy, seed)


def _orthogonal(embed: int, probabilities: Sequence[float], hierarchy: Hierarchy, seed: int) -> World:
    """Orthogonal features of value 1."""
    count = len(probabilities)
    if count > embed:
        raise UserError(f"embed is {embed}, expected at least {count}, one dimension for each feature")
    basis = np.linalg.qr(random_directions(np.random.default_rng(seed), embed, embed).T)[0].T[:count]
    return World(
        features=jnp.asarray(basis, jnp.float32),
        bias=jnp.zeros(embed),
        probabilities=jnp.array(probabilities, jnp.float32),
        means=jnp.ones(count),
        stds=jnp.zeros(count),
        hierarchy=hierarchy,
    )
