"""The flat SAE: ``codes = sparsifier(W_enc (x - b_dec) + b_enc)``, ``x_hat = codes W_dec + b_dec``.

With a `TopK` sparsifier it is the TopK SAE of Gao et al. (arXiv 2406.04093). Rows belong to features in both
matrices, so that a token gathers rows.
"""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.leaf import Unit
from jhsae.sae.base import AbstractSAE, Forward, check_selects, check_sizes
from jhsae.sparsify import AbstractSparsifier
from jhsae.usage import Context


class FlatSAE(AbstractSAE):
    """A flat SAE of `features` features. Starts with unit decoder rows, ``W_enc = W_dec``, biases 0."""

    W_enc: Float[Array, "features embed"]
    W_dec: Annotated[Float[Array, "features embed"], Unit("embed")]
    b_enc: Float[Array, "features"]
    b_dec: Float[Array, "embed"]
    sparsifier: AbstractSparsifier
    kernel: ops.Kernel = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(
        self,
        embed: int,
        features: int,
        sparsifier: AbstractSparsifier,
        *,
        kernel: ops.Kernel = "gather",
        chunk: int | None = None,
        key: Key[Array, ""],
    ):
        check_sizes(embed=embed, features=features)
        check_selects("sparsifier", sparsifier, features, "features")
        rows = jax.random.normal(key, (features, embed))
        self.W_dec = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
        self.W_enc = self.W_dec
        self.b_enc = jnp.zeros(features)
        self.b_dec = jnp.zeros(embed)
        self.sparsifier = sparsifier
        self.kernel, self.chunk = kernel, chunk

    @property
    def features(self) -> int:
        return self.W_dec.shape[0]

    @property
    def embed(self) -> int:
        return self.W_dec.shape[1]

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        pre = (x - self.b_dec) @ self.W_enc.T + self.b_enc
        codes = self.sparsifier(pre, context)
        return Forward(x=x, x_hat=self.decode(codes), codes=codes, pre=pre)

    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        flat = codes.flat()
        if flat.indices is None:
            return flat.values @ self.W_dec + self.b_dec
        return ops.decode_rows(flat.values, flat.indices, self.W_dec, self.kernel, self.chunk) + self.b_dec

    def dictionary(self) -> Float[Array, "features embed"]:
        return self.W_dec
