"""Non-trainable training state: feature statistics, RNG key, step."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jhsae.codes import Codes, TreeCodes


class FeatureStats(eqx.Module):
    """Running statistics of every feature of ``codes.flat()``; not parameters, never differentiated.

    Args:
        since_fired: how many steps ago each feature last fired, [features].
        thresholds: one running threshold for each sparsifier of the SAE.
        steps: how many steps the current sampling window has.
        fires: how many tokens of that window activated each feature, [features].
        frequency: the fraction of tokens in the last complete window that did; NaN before there is one.
    """

    since_fired: Int[Array, "features"]
    thresholds: tuple[Float[Array, ""], ...]
    steps: Int[Array, ""]
    fires: Float[Array, "features"]
    frequency: Float[Array, "features"]

    @classmethod
    def init(cls, features: int, sparsifiers: int = 1) -> "FeatureStats":
        """The statistics before the first step: every counter and threshold is 0."""
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
        """Updates the statistics with one batch.

        Args:
            codes: the codes of the batch.
            thresholds: the running thresholds after it, one per sparsifier; () keeps those that there are.
            window: every how many steps `frequency` is refreshed.

        Returns:
            The statistics after the batch.
        """
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

    def restarted(self, resampled: Bool[Array, "top_level"]) -> "FeatureStats":
        """Resets `since_fired` for resampled features, which are among the first: those of the top level."""
        waited = self.since_fired[: len(resampled)]
        return eqx.tree_at(
            lambda u: u.since_fired, self, self.since_fired.at[: len(resampled)].set(jnp.where(resampled, 0, waited))
        )

    def dead(self, window: int) -> Float[Array, "features"]:
        """1.0 for every feature that has not fired in the last `window` steps."""
        return (self.since_fired >= window).astype(jnp.float32)


class Context(eqx.Module):
    """What one forward pass reads besides its input.

    Args:
        key: the RNG key of a training step; None means evaluation: there is no training flag.
        step: the number of the step, for schedules.
        usage: the feature statistics.
        dead: 1.0 for each feature of ``codes.flat()`` that is dead in this step; None in evaluation.
        tokens: the numbers of the tokens within the batch, where the rows are not all of them in order.
    """

    key: Key[Array, ""] | None = None
    step: Int[Array, ""] | int = 0
    usage: FeatureStats | None = None
    dead: Float[Array, "features"] | None = None
    tokens: Int[Array, "tokens"] | None = None
