"""Cross-entropy of next-token predictions: -log softmax(logits[t])[ids[t + 1]], in nats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "batch time vocab"], ids: Int[Array, "batch time"]
) -> Float[Array, "batch time-1"]:
    """Cross-entropy of next-token predictions in nats.

    Args:
        logits: [batch, time, vocab].
        ids: Token ids, [batch, time].

    Returns:
        [batch, time - 1]: entry t scores token t + 1. The last position has no target and is dropped.
    """
    targets = jnp.roll(ids, -1, axis=1)
    # A masked sum, not a gather: its gradient is elementwise, where a gather's is a scatter over the vocabulary.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    picked = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    return (jax.nn.logsumexp(logits, axis=-1) - picked)[:, :-1]
