"""What a step knows besides parameters and data: running usage statistics, the key, the step number."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jhsae.codes import Codes, TreeCodes


class FeatureStats(eqx.Module):
    """Running statistics of every feature of ``codes.flat()``; not parameters, never differentiated.

    `since_fired` counts steps; `thresholds` has one running threshold for every sparsifier of the SAE. The sampling
    window is `steps` old, `fires` counts the tokens that activated each feature in it; `frequency` is their fraction
    in the last complete window, NaN before there is one.
    """

    since_fired: Int[Array, "features"]
    thresholds: tuple[Float[Array, ""], ...]
    steps: Int[Array, ""]
    fires: Float[Array, "features"]
    frequency: Float[Array, "features"]

    @classmethod
    def init(cls, features: int, sparsifiers: int = 1) -> "FeatureStats":
        """Nothing has fired yet; every counter and threshold starts at 0."""
        thresholds = tuple(jnp.zeros(()) for _ in range(sparsifiers))
        none = jnp.zeros(features)
        return cls(
            jnp.zeros(features, jnp.int32), thresholds, jnp.zeros((), jnp.int32), none, jnp.full_like(none, jnp.nan)
        )

    def update(
        self,
        codes: Codes | TreeCodes,
        thresholds: tuple[Float[Array, ""], ...] = (),
        window: int = 2000,
    ) -> "FeatureStats":
        """One more step: a feature that did not fire has waited one step longer; `window` steps make a frequency."""
        fired = codes.fired()
        fires = self.fires + fired
        full = self.steps + 1 >= window
        return FeatureStats(
            jnp.where(fired > 0, 0, self.since_fired + 1),
            thresholds or self.thresholds,
            jnp.where(full, 0, self.steps + 1),
            jnp.where(full, 0.0, fires),
            jnp.where(full, fires / (float(window) * codes.rows()), self.frequency),
        )

    def restarted(self, resampled: Bool[Array, "top"]) -> "FeatureStats":
        """The usage when the first features, where marked, have begun anew: they have not waited yet."""
        top = self.since_fired[: len(resampled)]
        return eqx.tree_at(
            lambda u: u.since_fired, self, self.since_fired.at[: len(resampled)].set(jnp.where(resampled, 0, top))
        )

    def dead(self, window: int) -> Float[Array, "features"]:
        """1.0 for every feature that has not fired in the last `window` steps."""
        return (self.since_fired >= window).astype(jnp.float32)


class Context(eqx.Module):
    """The surroundings of one forward pass. ``key=None`` means evaluation: there is no training flag.

    `dead` marks (1.0) the features of ``codes.flat()`` that count as dead in this step; None in evaluation. `tokens`
    says which of the batch are meant, where it is not all of them in order.
    """

    key: Key[Array, ""] | None = None
    step: Int[Array, ""] | int = 0
    usage: FeatureStats | None = None
    dead: Float[Array, "features"] | None = None
    tokens: Int[Array, "tokens"] | None = None
