"""An SAE on a known world: reconstruction and recovery on tokens that no training run has drawn."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.evals.fidelity import fidelity
from jhsae.evals.truth import truth
from jhsae.ranges import Count, Seed, ranged
from jhsae.sae import AbstractSAE
from jhsae.worlds import World
from jhsae.worlds.source import HELD_OUT, identity

ROWS = 2**16
CODES = 2**22  # true magnitudes in one batch
NUMBERS = (
    "mcc", "uniqueness", "precision", "recall", "f1", "accuracy", "feature_f1", "true_l0", "dead_latents"
)  # fmt: skip


@ranged
def on_world(
    sae: AbstractSAE, normalizer: AbstractNormalizer, world: World, rows: Count = ROWS, seed: Seed = 0
) -> tuple[dict[str, Any], Float[np.ndarray, "latents"], dict[str, Any]]:
    """Evaluates an SAE on `rows` tokens of a world. The same seed draws the same tokens, for every SAE.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        world: what it was trained on.
        rows: held-out tokens to draw.
        seed: of the draws, which are none of those of `jhsae.worlds.WorldActivations`.

    Returns:
        The metrics of `fidelity` with the single numbers of `truth`, the frequency of every latent, and the other parts
        of `truth`: by level, roots, tree, edges, absorption, hedging, violations, siblings.

    Raises:
        UserError: an SAE of another width.
    """
    if sae.embed != world.embed:
        raise UserError(
            f"the SAE reads vectors of {sae.embed} numbers, but the world draws activations of {world.embed}; write "
            "the world that it was trained on"
        )
    total = sum(np.asarray(x, np.float64).sum(axis=0) for x, _ in draws(world, rows, seed))
    batches = (np.asarray(x) for x, _ in draws(world, rows, seed))
    metrics, frequency = fidelity(sae, normalizer, batches, np.asarray(total / rows))
    found = truth(sae, normalizer, world.features, world.hierarchy, draws(world, rows, seed))
    metrics |= {name: found.pop(name) for name in NUMBERS}
    return metrics, frequency, {name: value for name, value in found.items() if name not in metrics}


def draws(world: World, rows: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Held-out activations and true magnitudes, batch by batch."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), HELD_OUT), 0)
    size = max(1, min(4096, CODES // world.size, rows))
    for i, start in enumerate(range(0, rows, size)):
        x, codes = world.sample(jax.random.fold_in(key, i), size)
        yield x[: rows - start], codes[: rows - start]


def check_world(about: dict[str, Any], world: World, folder: str, name: str) -> None:
    """Raises `UserError` where a run says that it was trained on another world; `about` is that of `load_sae`.

    Args:
        about: of `load_sae`.
        world: that is evaluated on.
        folder: where it lies, for the message.
        name: of the SAE, for the message.
    """
    known = about.get("reads", {}).get("model_sha256")
    if known is not None and known != identity(world):
        raise UserError(
            f"{name} was trained on {about['reads']['model']}, which is not the world in {folder}; write "
            f"truth={about['reads']['model']}, or the folder where it lies now"
        )
