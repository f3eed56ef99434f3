"""A family in one file: every block adds W_out tanh(W_in m), m the mean of the residual stream so far."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.lm import AbstractConfig, AbstractLM, Family
from jhsae.lm.base import Tap, untapped
from jhsae.lm.parts import linear, rms_norm
from jhsae.lm.product import product
from jhsae.lm.settings import check_present, layer_count, whole


@dataclass(frozen=True)
class ToyConfig(AbstractConfig):
    """Sizes; heads are those of no attention."""

    vocab: int
    embed: int
    hidden: int
    depth: int
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 1
    extras: tuple[str, ...] = ()
    model_type: str = "toy"
    positions: int | None = None

    @property
    def layers(self) -> int:
        return self.depth

    def first(self, layers: int) -> "ToyConfig":
        return replace(self, depth=layers)

    def to_hugging_face(self) -> dict[str, Any]:
        sizes = {"vocab_size": self.vocab, "hidden_size": self.embed, "intermediate_size": self.hidden}
        return sizes | {"num_hidden_layers": self.depth}


def toy_config(settings: dict[str, Any], source: str) -> ToyConfig:
    names = ("vocab_size", "hidden_size", "intermediate_size")
    check_present(settings, names, source)
    vocab, embed, hidden = (whole(settings, name, source) for name in names)
    return ToyConfig(vocab, embed, hidden, layer_count(settings, source))


class ToyBlocks(eqx.Module):
    """Matrices are [outputs, inputs]."""

    up: Float[Array, "layers hidden embed"]
    down: Float[Array, "layers embed hidden"]


class Toy(AbstractLM):
    """The model."""

    tensors: ClassVar[dict[str, str]] = {
        "embedding": "embed.weight",
        "final_norm": "norm.weight",
        "head": "lm_head.weight",
        "blocks.up": "block.{}.up.weight",
        "blocks.down": "block.{}.down.weight",
    }
    embedding: Float[Array, "vocab embed"]
    blocks: ToyBlocks
    final_norm: Float[Array, " embed"]
    config: ToyConfig = eqx.field(static=True)
    matmul_dtype: str = eqx.field(static=True, default="float32")
    unroll: bool = eqx.field(static=True, default=False)
    head: Float[Array, "vocab embed"] | None = None

    def unembedding(self) -> Float[Array, "vocab embed"]:
        return self.embedding.astype(jnp.float32) * self.final_norm.astype(jnp.float32)

    def _start(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time embed"]:
        return self.embedding[ids].astype(jnp.float32)

    def _stacked(self) -> Any:
        return self.blocks

    def _block(
        self, x: Float[Array, "batch time embed"], layer: Any, tap: Tap = untapped
    ) -> Float[Array, "batch time embed"]:
        mean = jnp.cumsum(x, axis=1) / jnp.arange(1, x.shape[1] + 1)[:, None]
        h = jnp.tanh(linear(tap("mlp_in", mean), layer.up, None, self.matmul_dtype))
        return x + tap("mlp_out", linear(h, layer.down, None, self.matmul_dtype))

    def _head(self, x: Float[Array, "batch time embed"]) -> Float[Array, "batch time vocab"]:
        head = self.embedding if self.head is None else self.head
        return product("btd,vd->btv", self.matmul_dtype, rms_norm(x, self.final_norm, 1e-6), head)


FAMILY = Family(("toy",), toy_config, Toy)
