"""Gemma-2 in Equinox: the language model whose residual stream is harvested and spliced.

Block:  x += norm(attention(norm(x)));  x += norm(W_down (gelu(W_gate h) * W_up h)), h = norm(x),
with norm(x) = x / rms(x) * (1 + w). Attention has grouped queries, rotary positions, soft-capped scores and, on
some layers, a sliding window. Logits are soft-capped products with the embedding. "Layer L" is the residual stream
after L blocks; layer 0 is the scaled embedding. Source: Gemma Team 2024, arXiv 2408.00118.

Activations are float32 throughout; only the operands of matrix products are rounded to `matmul_dtype`.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jhsae.errors import UserError
from jhsae.lm.config import Gemma2Config
from jhsae.lm.product import product


class Blocks(eqx.Module):
    """The weights of all blocks, stacked; matrices are [outputs, inputs] as in Hugging Face files."""

    q: Float[Array, "layers queries embed"]
    k: Float[Array, "layers keys embed"]
    v: Float[Array, "layers keys embed"]
    o: Float[Array, "layers embed queries"]
    gate: Float[Array, "layers hidden embed"]
    up: Float[Array, "layers hidden embed"]
    down: Float[Array, "layers embed hidden"]
    attention_in: Float[Array, "layers embed"]
    attention_out: Float[Array, "layers embed"]
    mlp_in: Float[Array, "layers embed"]
    mlp_out: Float[Array, "layers embed"]


class Gemma2(eqx.Module):
    """A Gemma-2 decoder; see the module's docstring for the meaning of "layer".

    `matmul_dtype` rounds the operands of matrix products; `unroll` compiles the blocks one by one instead of as a
    loop (the same numbers; slower to compile, faster to differentiate on a CPU).
    """

    embedding: Float[Array, "vocab embed"]
    blocks: Blocks
    final_norm: Float[Array, " embed"]
    config: Gemma2Config = eqx.field(static=True)
    matmul_dtype: str = eqx.field(static=True, default="float32")
    unroll: bool = eqx.field(static=True, default=False)

    @property
    def embed(self) -> int:
        return self.config.embed

    @property
    def layers(self) -> int:
        return len(self.config.sliding)

    @property
    def vocab(self) -> int:
        return self.config.vocab

    def residual(self, ids: Int[Array, "batch time"], layer: int) -> Float[Array, "batch time embed"]:
        """The residual stream after the first `layer` blocks; later blocks do not run."""
        self._check(layer)
        x = self.embedding[ids].astype(jnp.float32) * self.embed**0.5
        return self._run(x, 0, layer)

    def logits_from(self, x: Float[Array, "batch time embed"], layer: int) -> Float[Array, "batch time vocab"]:
        """Next-token logits from a residual stream that stands at `layer`."""
        self._check(layer)
        x = self._run(x.astype(jnp.float32), layer, self.layers)
        x = rms_norm(x, self.final_norm, self.config.norm_eps)
        return softcap(product("btd,vd->btv", self.matmul_dtype, x, self.embedding), self.config.final_cap)

    def __call__(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time vocab"]:
        return self.logits_from(self.residual(ids, 0), 0)

    def unembedding(self) -> Float[Array, "vocab embed"]:
        """Rows gamma with logit = softcap(gamma . x / rms(x)): the embedding times (1 + final norm weight)."""
        return self.embedding.astype(jnp.float32) * (1 + self.final_norm.astype(jnp.float32))

    def _check(self, layer: int) -> None:
        if not 0 <= layer <= self.layers:
            raise UserError(
                f"layer {layer} of a model with {self.layers} blocks; write 0 (the embedding) to {self.layers}"
            )

    def _run(self, x, start: int, stop: int):
        blocks = jax.tree.map(lambda leaf: leaf[start:stop], self.blocks)
        sliding = jnp.asarray(self.config.sliding[start:stop], bool)
        step = partial(_block, config=self.config, dtype=self.matmul_dtype)
        return jax.lax.scan(step, x, (blocks, sliding), unroll=self.unroll)[0]


def rms_norm(x: Float[Array, "*axes embed"], weight: Float[Array, " embed"], eps: float) -> Float[Array, "*axes embed"]:
    """x / sqrt(mean(x^2) + eps) * (1 + weight)."""
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return x * scale * (1 + weight.astype(jnp.float32))


def softcap(x: Float[Array, "*axes"], cap: float | None) -> Float[Array, "*axes"]:
    """cap * tanh(x / cap): bounded by the cap, identity near 0."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rotate(x: Float[Array, "batch time heads head_dim"], theta: float) -> Float[Array, "batch time heads head_dim"]:
    """Rotary positions: the pair (i, i + head_dim / 2) turns by position * theta^(-2 i / head_dim)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None, None] * theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def visible(time: int, window: int, sliding: Bool[Array, ""]) -> Bool[Array, "time time"]:
    """Which key (column) a query (row) may read: none later, and on a sliding layer the last `window` alone."""
    distance = jnp.arange(time)[:, None] - jnp.arange(time)[None, :]
    return (distance >= 0) & (~sliding | (distance < window))


def _attention(h, block: Blocks, sliding, config: Gemma2Config, dtype: str):
    batch, time, _ = h.shape
    kv, groups = config.kv_heads, config.heads // config.kv_heads
    q = product("btd,od->bto", dtype, h, block.q).reshape(batch, time, -1, config.head_dim)
    k = product("btd,od->bto", dtype, h, block.k).reshape(batch, time, kv, config.head_dim)
    v = product("btd,od->bto", dtype, h, block.v).reshape(batch, time, kv, config.head_dim)
    q = rotate(q * config.query_pre_attn_scalar**-0.5, config.rope_theta).reshape(batch, time, kv, groups, -1)
    scores = product("btkgh,bskh->bkgts", dtype, q, rotate(k, config.rope_theta))
    scores = softcap(scores, config.attention_cap)
    weights = jax.nn.softmax(jnp.where(visible(time, config.window, sliding), scores, -jnp.inf), axis=-1)
    mixed = product("bkgts,bskh->btkgh", dtype, weights, v).reshape(batch, time, -1)
    return product("bto,do->btd", dtype, mixed, block.o)


def _block(x, layer, *, config: Gemma2Config, dtype: str):
    block, sliding = layer
    eps = config.norm_eps
    h = rms_norm(x, block.attention_in, eps)
    x = x + rms_norm(_attention(h, block, sliding, config, dtype), block.attention_out, eps)
    h = rms_norm(x, block.mlp_in, eps)
    gate = jax.nn.gelu(product("btd,hd->bth", dtype, h, block.gate), approximate=True)
    h = product("bth,dh->btd", dtype, gate * product("btd,hd->bth", dtype, h, block.up), block.down)
    return x + rms_norm(h, block.mlp_out, eps), None
