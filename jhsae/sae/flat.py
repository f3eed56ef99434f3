"""The flat SAE: ``codes = sparsifier(W_enc (x - b_dec) + b_enc)``, ``x_hat = codes W_dec + b_dec``.

The sparsifier makes the architecture: `ReLU` the standard SAE, `TopK` that of Gao et al. (arXiv 2406.04093),
`BatchTopK`, `JumpReLU`, ... Rows belong to features in both matrices, so that a token gathers rows.
"""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.leaf import Unit
from jhsae.ops.inputs import check_rows
from jhsae.ranges import Count
from jhsae.sae.base import AbstractSAE, Forward, TopLevel, check_selects, decodes_any_shape
from jhsae.sae.encode import route_and_encode
from jhsae.sae.units import AbstractCodeUnit, PlainUnit
from jhsae.sparsify import AbstractSparsifier
from jhsae.usage import Context


class FlatSAE(AbstractSAE):
    """A flat SAE. Starts with unit decoder rows, ``W_enc = W_dec``, biases 0.

    Args:
        embed: the size of the vectors.
        features: the number of features.
        sparsifier: the rule that makes codes of pre-activations.
        code_unit: what a code of 1 adds: the decoder row as it stands, or its direction.
        apply_b_dec_to_input: whether the decoder bias is subtracted before encoding.
        kernel: how sparse codes are decoded (`ops`).
        chunk: how many tokens are encoded, and by the kernel "gather" decoded, at once; None for a size that suits the
            machine.
        key: for the starting values.

    Raises:
        UserError: a sparsifier that selects more than `features`.
    """

    W_enc: Float[Array, "features embed"]
    W_dec: Annotated[Float[Array, "features embed"], Unit("embed")]
    b_enc: Float[Array, "features"]
    b_dec: Float[Array, "embed"]
    sparsifier: AbstractSparsifier
    code_unit: AbstractCodeUnit
    apply_b_dec_to_input: bool = eqx.field(static=True)
    kernel: ops.Kernel = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(
        self,
        embed: Count,
        features: Count,
        sparsifier: AbstractSparsifier,
        *,
        code_unit: AbstractCodeUnit = PlainUnit(),  # noqa: B008  (an immutable module)
        apply_b_dec_to_input: bool = True,
        kernel: ops.Kernel = "auto",
        chunk: Count | None = None,
        key: Key[Array, ""],
    ):
        check_selects("sparsifier", sparsifier, features, "features")
        self.W_dec = random_unit_rows(key, (features, embed))
        self.W_enc = self.W_dec
        self.b_enc = jnp.zeros(features)
        self.b_dec = jnp.zeros(embed)
        self.sparsifier = sparsifier.sized(features)
        self.code_unit = code_unit
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.kernel, self.chunk = kernel, chunk

    @property
    def features(self) -> int:
        return self.W_dec.shape[0]

    @property
    def embed(self) -> int:
        return self.W_dec.shape[1]

    @property
    def top_level(self) -> TopLevel:
        return TopLevel(self.W_enc, self.W_dec, (self.b_enc, *self.sparsifier.thresholds))

    @property
    def sparsifiers(self) -> tuple[AbstractSparsifier, ...]:
        return (self.sparsifier,)

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        check_rows(x, self.embed)
        centre = self.b_dec if self.apply_b_dec_to_input else None
        encoder = ops.Encoder(x, self.W_enc, self.b_enc, centre, self.code_unit.norms(self.W_dec))
        encoded = route_and_encode(self.sparsifier, encoder, context, chunk=self.chunk)
        return Forward(x, self.decode(encoded.codes), encoded.codes, encoded.encoder, context)

    @decodes_any_shape
    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        flat = codes.flat()
        if flat.indices is None:
            return flat.values @ self.dictionary() + self.b_dec
        if (norms := self.code_unit.norms(self.W_dec)) is not None:
            flat = Codes(flat.values / norms[flat.indices], flat.indices, flat.size)
        return ops.decode_rows(flat, self.W_dec, self.kernel, self.chunk) + self.b_dec

    def dictionary(self) -> Float[Array, "features embed"]:
        norms = self.code_unit.norms(self.W_dec)
        return self.W_dec if norms is None else self.W_dec / norms[:, None]


def random_unit_rows(key: Key[Array, ""], shape: tuple[int, int]) -> Float[Array, "features embed"]:
    """Directions drawn evenly from the sphere.

    Args:
        key: draws the rows.
        shape: of the array; its last axis is a row.
    """
    rows = jax.random.normal(key, shape)
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
