"""Building blocks: norms, rotary positions, masked attention with grouped queries, products."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jhsae.lm.product import product


def rescaled(x: Float[Array, "*axes embed"], eps: float) -> Float[Array, "*axes embed"]:
    """x / sqrt(mean(x^2) + eps)."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def rms_norm(x: Float[Array, "*axes embed"], gain: Float[Array, " embed"], eps: float) -> Float[Array, "*axes embed"]:
    """x / sqrt(mean(x^2) + eps) * gain."""
    return rescaled(x, eps) * gain.astype(jnp.float32)


def standardized(x: Float[Array, "*axes embed"], eps: float) -> Float[Array, "*axes embed"]:
    """(x - mean(x)) / sqrt(var(x) + eps)."""
    return rescaled(x - jnp.mean(x, axis=-1, keepdims=True), eps)


def layer_norm(
    x: Float[Array, "*axes embed"], gain: Float[Array, " embed"], bias: Float[Array, " embed"], eps: float
) -> Float[Array, "*axes embed"]:
    """(x - mean(x)) / sqrt(var(x) + eps) * gain + bias."""
    return standardized(x, eps) * gain.astype(jnp.float32) + bias.astype(jnp.float32)


def softcap(x: Float[Array, "*axes"], cap: float | None) -> Float[Array, "*axes"]:
    """cap * tanh(x / cap): bounded by the cap, identity near 0."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def linear(
    x: Float[Array, "batch time inputs"],
    weight: Float[Array, "outputs inputs"],
    bias: Float[Array, " outputs"] | None,
    dtype: str,
) -> Float[Array, "batch time outputs"]:
    """weight x + bias; the operands of the product are rounded to `dtype`."""
    y = product("bti,oi->bto", dtype, x, weight)
    return y if bias is None else y + bias.astype(jnp.float32)


def rotate(
    x: Float[Array, "batch time heads head_dim"], frequencies: Float[Array, " pairs"]
) -> Float[Array, "batch time heads head_dim"]:
    """Rotary positions: the pair (i, i + pairs) is rotated by position * frequencies[i]; the rest is unchanged."""
    pairs = len(frequencies)
    angle = jnp.arange(x.shape[1])[:, None, None] * frequencies
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def visible(time: int, window: int | None, sliding: Bool[Array, ""]) -> Bool[Array, "time time"]:
    """Attention mask: a query (row) attends to earlier keys (columns), on a sliding layer to the last `window`."""
    distance = jnp.arange(time)[:, None] - jnp.arange(time)[None, :]
    return distance >= 0 if window is None else (distance >= 0) & (~sliding | (distance < window))


def attend(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
    mask: Bool[Array, "time time"],
    dtype: str,
    cap: float | None = None,
) -> Float[Array, "batch time queries"]:
    """softmax(q . k) v per head, consecutive queries sharing a key; `q` comes scaled. Scores are soft-capped."""
    batch, time, heads, size = q.shape
    kv = k.shape[2]
    scores = softcap(product("btkgh,bskh->bkgts", dtype, q.reshape(batch, time, kv, heads // kv, size), k), cap)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return product("bkgts,bskh->btkgh", dtype, weights, v).reshape(batch, time, -1)
