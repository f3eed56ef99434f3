"""An SAE with its input normaliser on rows in the language model's units: the one way in which rows are encoded."""

import equinox as eqx
from jaxtyping import Array, Float

from jhsae.data.normalize import AbstractNormalizer
from jhsae.sae.base import AbstractSAE, Forward
from jhsae.usage import Context


@eqx.filter_jit
def reconstruct(
    sae: AbstractSAE, normalizer: AbstractNormalizer, x: Float[Array, "batch embed"]
) -> tuple[Float[Array, "batch embed"], Forward]:
    """The reconstruction in the units of `x`, and the forward pass in those of the SAE."""
    inside, token = normalizer(x)
    forward = sae.forward(inside, Context())
    return normalizer.undo(forward.x_hat, token), forward
