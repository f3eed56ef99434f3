"""Matching pursuit, as SAELens 6.54 trains it (`MatchingPursuitTrainingSAE`): a tied SAE without a learned encoder.

``r = x - b_dec``; at every iteration the row with the largest ``r . W_dec_i`` is chosen, ``value = ReLU(r . W_dec_i)``
is added to its code, and ``value W_dec_i`` is subtracted from r. A token is done when |r| falls below
`residual_threshold`, or when an iteration adds no new feature. Values are differentiated through every iteration; which
row is chosen is not. Values are not refitted; `PursuitSAE` does that, has a budget in features per token, and a forest.
"""

from typing import Annotated

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.leaf import Unit
from jhsae.ops.inputs import check_rows
from jhsae.ranges import Count, NonNegative
from jhsae.sae.base import AbstractSAE, Forward, TopLevel, decodes_any_shape
from jhsae.sae.flat import random_unit_rows
from jhsae.sae.macs import EncoderMacs, Number
from jhsae.usage import Context


class MatchingPursuitSAE(AbstractSAE):
    """The matching-pursuit SAE of SAELens. Starts with unit rows.

    Args:
        embed: the size of the vectors.
        features: the number of features.
        residual_threshold: the norm of the residual below which a token is done, in units of the input; 0 for none.
        max_iterations: an upper bound; None for `embed`.
        stop_on_duplicate_support: whether a token is done when an iteration adds no new feature.
        apply_b_dec_to_input: whether the decoder bias is subtracted before encoding, and then added in decoding.
        key: for the starting values.
    """

    W_dec: Annotated[Float[Array, "features embed"], Unit("embed")]
    b_dec: Float[Array, "embed"]
    residual_threshold: float = eqx.field(static=True)
    max_iterations: int = eqx.field(static=True)
    stop_on_duplicate_support: bool = eqx.field(static=True)
    apply_b_dec_to_input: bool = eqx.field(static=True)

    def __init__(
        self,
        embed: Count,
        features: Count,
        *,
        residual_threshold: NonNegative = 1e-2,
        max_iterations: Count | None = None,
        stop_on_duplicate_support: bool = True,
        apply_b_dec_to_input: bool = True,
        key: Key[Array, ""],
    ):
        self.W_dec = random_unit_rows(key, (features, embed))
        self.b_dec = jnp.zeros(embed)
        self.residual_threshold = residual_threshold
        self.max_iterations = embed if max_iterations is None else max_iterations
        self.stop_on_duplicate_support = stop_on_duplicate_support
        self.apply_b_dec_to_input = apply_b_dec_to_input

    @property
    def top_level(self) -> TopLevel:
        return TopLevel(None, self.W_dec, ())

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        check_rows(x, self.embed)
        centre = self.b_dec if self.apply_b_dec_to_input else None
        codes = self._pursue(x if centre is None else x - centre)
        return Forward(x, self.decode(codes), codes, ops.Encoder(x, self.W_dec, None, centre), context)

    @decodes_any_shape
    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        x_hat = codes.flat().dense() @ self.W_dec
        return x_hat + self.b_dec if self.apply_b_dec_to_input else x_hat

    def encoder_macs(self, active: tuple[Number, ...] | None = None) -> EncoderMacs:
        """For every iteration all scores, the value of the chosen row, and the residual without it."""
        iterations = self.max_iterations if active is None else active[0]
        own = iterations * self.embed * (self.features + 2)
        return EncoderMacs(own, own)

    def with_threshold(self, residual_threshold: float) -> "MatchingPursuitSAE":
        """The same SAE with another `residual_threshold`."""
        new = MatchingPursuitSAE(
            self.embed,
            self.features,
            residual_threshold=residual_threshold,
            max_iterations=self.max_iterations,
            stop_on_duplicate_support=self.stop_on_duplicate_support,
            apply_b_dec_to_input=self.apply_b_dec_to_input,
            key=jax.random.key(0),  # of rows that are replaced
        )
        return eqx.tree_at(lambda s: (s.W_dec, s.b_dec), new, (self.W_dec, self.b_dec))

    def _pursue(self, x: Float[Array, "batch embed"]) -> Codes:
        """The codes of inputs from which the bias has been subtracted."""
        tokens = jnp.arange(len(x))
        State = tuple[Float[Array, "batch embed"], Float[Array, "batch features"], Bool[Array, "batch"]]

        def going(state: State) -> Bool[Array, ""]:
            return ~jnp.all(state[2])

        def iteration(state: State) -> State:
            residual, acts, done = state
            rows, index = self._best(residual)
            value = jnp.where(done, 0.0, jax.nn.relu(jnp.sum(residual * rows, axis=1)))
            new = (acts[tokens, index] == 0) & (value != 0)
            acts, residual = acts.at[tokens, index].add(value), residual - value[:, None] * rows
            if self.stop_on_duplicate_support:
                done |= ~new
            if self.residual_threshold > 0:
                done |= jnp.linalg.norm(residual, axis=1) < self.residual_threshold
            return residual, acts, done

        start = (x, jnp.zeros((len(x), self.features)), jnp.zeros(len(x), bool))
        found = eqxi.while_loop(going, iteration, start, max_steps=self.max_iterations, kind="checkpointed")
        return Codes(found[1], None, self.features)

    def _best(self, residual: Float[Array, "batch embed"]) -> tuple[Float[Array, "batch embed"], Int[Array, "batch"]]:
        """The row that is chosen for each token, and its index; no index has a gradient."""
        scores = jax.lax.stop_gradient(residual) @ jax.lax.stop_gradient(self.W_dec).T
        index = jnp.argmax(jax.nn.relu(scores), axis=1)
        return self.W_dec[index], index
