"""A language model with random weights: what is found in it owes nothing to training.

Every array is drawn from a normal distribution with the mean and the standard deviation of the trained one (of a
stacked array, those of all its layers), so shapes and scales stay and everything learned goes. Heap et al.
(arXiv 2501.17727) show that automatic interpretability scores of SAEs are similar on such models, which is why a claim
about a trained model needs this null.
"""

import hashlib
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae.lm.checkpoint import LanguageModel
from jhsae.ranges import Seed, ranged

ANEW = 0x6E756C6C  # the keys of small seeds are those that a model's own start was drawn from: the embedded one's, 0


@ranged
def with_random_weights(loaded: LanguageModel, seed: Seed = 0) -> LanguageModel:
    """The same architecture, tokenizer and scales with weights drawn anew; name and hash say so.

    Args:
        loaded: The trained model.
        seed: Of the weights.
    """
    arrays, static = eqx.partition(loaded.model, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(arrays)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), ANEW), len(leaves))
    drawn = jax.tree.unflatten(tree, [_drawn(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])
    sha256 = None if loaded.sha256 is None else hashlib.sha256(f"{loaded.sha256} random {seed}".encode()).hexdigest()
    model = eqx.combine(drawn, static)
    return replace(loaded, model=model, name=f"{loaded.name} (random weights {seed})", sha256=sha256)


def _drawn(leaf: Float[Array, "..."], key: Key[Array, ""]) -> Float[Array, "..."]:
    trained = leaf.astype(jnp.float32)
    return (jnp.mean(trained) + jnp.std(trained) * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
