"""An SAE with its input normaliser, applied to rows in the language model's units.

Evaluation, pages and exports encode and reconstruct rows by these two functions alone. Codes are in the SAE's own
units, that is after the normaliser; vectors are in the language model's.
"""

from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float

from jhsae.codes import Codes, TreeCodes
from jhsae.data.normalize import AbstractNormalizer
from jhsae.sae.base import AbstractSAE, Forward
from jhsae.usage import Context


class Reconstruction(NamedTuple):
    """A reconstruction in the language model's units and the forward pass, in the SAE's, that it came from.

    `upper` are the reconstructions from the rows down to each level but the last: of an H-SAE that of its parents, of a
    flat SAE none.
    """

    x_hat: Float[Array, "batch embed"]
    forward: Forward
    upper: tuple[Float[Array, "batch embed"], ...]


@eqx.filter_jit
def reconstruct(sae: AbstractSAE, normalizer: AbstractNormalizer, x: Float[Array, "batch embed"]) -> Reconstruction:
    """Normalises, runs the SAE as in evaluation, and undoes the normalisation.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        x: rows in the language model's units, ``[batch, embed]``.
    """
    inside, token = normalizer(x)
    forward = sae.forward(inside, Context())
    upper = tuple(normalizer.undo(part, token) for part in sae.from_upper_levels(forward))
    return Reconstruction(normalizer.undo(forward.x_hat, token), forward, upper)


@eqx.filter_jit
def encode(sae: AbstractSAE, normalizer: AbstractNormalizer, x: Float[Array, "batch embed"]) -> Codes | TreeCodes:
    """The codes of `reconstruct`, without decoding them."""
    return sae.forward(normalizer(x)[0], Context()).codes
