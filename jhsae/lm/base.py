"""Interface of the language models: the residual stream at any layer, and logits from it.

A model is an embedding, L blocks whose weights are stacked along a first axis ``layers``, and a head. "Layer l" is the
residual stream after l blocks; layer 0 is the input of the first block. Blocks run in one `jax.lax.scan`, so that
compiling does not grow with L. Activations are float32 throughout; only the operands of matrix products are
rounded to `matmul_dtype`. Axis names in the annotations determine the sharding (`jhsae.lm.sharding`).

Hooks are places of width ``embed`` inside a block. Block l (from 0) has ``resid``, its input, which is layer l; and
what it passes to its `tap`: ``attn_out``, what attention adds to the residual stream; ``mlp_in``, the input of the
MLP's matrices, after the norm; ``mlp_out``, what the MLP adds to the residual stream, after the norm that Gemma-2 has.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jhsae.errors import UserError

Tap = Callable[[str, Array], Array]  # (name of a hook, its value) -> the value that the block goes on with
RESIDUAL = "resid"


def untapped(name: str, value: Array) -> Array:
    """The tap of a plain forward pass."""
    return value


class AbstractConfig(ABC):
    """Sizes and constants of one model: hashable, static.

    `extras` names the optional weights that the model has.
    """

    model_type: str
    vocab: int
    embed: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    extras: tuple[str, ...]
    positions: int | None  # the maximum sequence length; None where config.json has none

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number of blocks."""

    @abstractmethod
    def first(self, layers: int) -> "AbstractConfig":
        """The config of the first `layers` blocks alone."""

    @abstractmethod
    def to_hugging_face(self) -> dict[str, Any]:
        """The config.json of the same model in transformers, except model_type."""

    def position_settings(self) -> dict[str, int]:
        """The config.json entry of `positions`."""
        return {} if self.positions is None else {"max_position_embeddings": self.positions}

    def pieces(self) -> dict[str, int]:
        """Maximum number of equal shards of each logical axis; heads are not split."""
        heads = {"queries": self.heads, "keys": self.kv_heads, "fused": self.heads}
        whole = {"layers": self.layers, "vocab": self.vocab, "embed": self.embed, "hidden": self.hidden}
        return {**heads, **whole, "head_dim": self.head_dim}

    def sizes(self) -> dict[str, int]:
        """The size of every logical axis; ``fused`` is that of queries, keys and values together."""
        each = {"queries": self.head_dim, "keys": self.head_dim, "fused": 3 * self.head_dim}
        return {axis: count * each.get(axis, 1) for axis, count in self.pieces().items()}


class AbstractLM(eqx.Module):
    """A decoder; see the module's docstring for the meaning of "layer".

    `matmul_dtype` rounds the operands of matrix products; `unroll` compiles the blocks one by one instead of as a
    loop (same values; slower to compile, faster to differentiate on a CPU).

    `tensors` maps every leaf to its name in a checkpoint, where {} is the layer. In checkpoints of other versions or
    classes the names may begin with another of `prefixes` than the first, and the head may be one of `other_heads`.
    `unread` are patterns of tensors, without the prefix, that do not affect the logits. `inputs_first` says that
    matrices are [inputs, outputs], as those of transformers' Conv1D.
    """

    tensors: ClassVar[dict[str, str]]
    prefixes: ClassVar[tuple[str, ...]] = ("",)
    other_heads: ClassVar[tuple[str, ...]] = ()
    unread: ClassVar[tuple[str, ...]] = ()
    inputs_first: ClassVar[bool] = False
    embedding: eqx.AbstractVar[Float[Array, "vocab embed"]]
    blocks: eqx.AbstractVar[Any]
    final_norm: eqx.AbstractVar[Float[Array, " embed"]]
    config: eqx.AbstractVar[Any]
    matmul_dtype: eqx.AbstractVar[str]
    unroll: eqx.AbstractVar[bool]

    @abstractmethod
    def unembedding(self) -> Float[Array, "vocab embed"]:
        """Rows whose product with the normalised residual stream gives the logits; see each family."""

    @abstractmethod
    def _start(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time embed"]:
        """The residual stream at layer 0."""

    @abstractmethod
    def _stacked(self) -> Any:
        """The inputs of `_block`, stacked over layers along the first axis of every leaf."""

    @abstractmethod
    def _block(
        self, x: Float[Array, "batch time embed"], layer: Any, tap: Tap = untapped
    ) -> Float[Array, "batch time embed"]:
        """One block; it goes on with what `tap` makes of ``attn_out``, ``mlp_in`` and ``mlp_out``."""

    @abstractmethod
    def _head(self, x: Float[Array, "batch time embed"]) -> Float[Array, "batch time vocab"]:
        """Logits of the last residual stream."""

    @property
    def embed(self) -> int:
        return self.config.embed

    @property
    def layers(self) -> int:
        return self.config.layers

    @property
    def vocab(self) -> int:
        return self.config.vocab

    def residual(self, ids: Int[Array, "batch time"], layer: int) -> Float[Array, "batch time embed"]:
        """The residual stream at one layer; later blocks do not run.

        Args:
            ids: Token ids, [batch, time].
            layer: Number of blocks that run; 0 is the embedding.

        Returns:
            float32 [batch, time, embed].
        """
        self._check(layer)
        return self._run(self._start(ids), 0, layer)

    def residuals(
        self, ids: Int[Array, "batch time"], layers: tuple[int, ...]
    ) -> Float[Array, "taps batch time embed"]:
        """The residual streams at several layers; every block runs once, blocks after the last layer do not run.

        Args:
            ids: Token ids, [batch, time].
            layers: Numbers of blocks.

        Returns:
            float32 [layers, batch, time, embed], in the order of `layers`.
        """
        if not layers:
            raise UserError("residuals of no layers; write at least one, e.g. (0,)")
        for layer in layers:
            self._check(layer)
        taps, place = np.unique(layers, return_inverse=True)
        last = int(taps[-1])
        # Layer l is written where the first tap at or after l belongs, so that the tap itself writes there last.
        slots = jnp.asarray(np.searchsorted(taps, np.arange(1, last + 1)), jnp.int32)
        x = self._start(ids)
        kept = jnp.zeros((len(taps), *x.shape), x.dtype).at[0].set(x)

        def step(carry: tuple[Array, Array], layer: Any) -> tuple[tuple[Array, Array], None]:
            x, kept = carry
            x = self._block(x, layer[0])
            return (x, jax.lax.dynamic_update_index_in_dim(kept, x, layer[1], 0)), None

        (_, kept), _ = jax.lax.scan(step, (x, kept), (self._slice(0, last), slots), unroll=self.unroll)
        return kept if tuple(taps) == tuple(layers) else kept[place]

    def hooked(
        self, ids: Int[Array, "batch time"], hooks: Sequence[tuple[str, int]]
    ) -> Float[Array, "taps batch time embed"]:
        """The activations at several hooks in one pass; blocks after the last one that is needed do not run.

        Args:
            ids: Token ids, [batch, time].
            hooks: (name, block) of each, such as ("mlp_in", 2); ("resid", l) is the residual stream at layer l.

        Returns:
            float32 [hooks, batch, time, embed], in the order of `hooks`.

        Raises:
            UserError: No hooks, or one that the model does not have.
        """
        if not hooks:
            raise UserError("activations at no hooks; write at least one, e.g. mlp_in.0")
        unique = list(dict.fromkeys(hooks))
        names = list(dict.fromkeys(name for name, _ in unique))
        for name, block in unique:
            self._check_hook(name, block)
        last = max(block + (name != RESIDUAL) for name, block in unique)
        slots = np.full((last, len(names)), len(unique), np.int32)  # the last slot takes what was not asked for
        for slot, (name, block) in enumerate(unique):
            if block < last:
                slots[block, names.index(name)] = slot
        x = self._start(ids)

        def step(carry: tuple[Array, Array], layer: Any) -> tuple[tuple[Array, Array], None]:
            x, kept = carry
            found = {RESIDUAL: x}
            after = self._block(x, layer[0], lambda name, value: found.setdefault(name, value))
            for i, name in enumerate(names):
                kept = jax.lax.dynamic_update_index_in_dim(kept, self._found(found, name), layer[1][i], 0)
            return (after, kept), None

        start = x, jnp.zeros((len(unique) + 1, *x.shape), x.dtype)
        (x, kept), _ = jax.lax.scan(step, start, (self._slice(0, last), jnp.asarray(slots)), unroll=self.unroll)
        if (RESIDUAL, last) in unique:
            kept = kept.at[unique.index((RESIDUAL, last))].set(x)
        return kept[np.asarray([unique.index(hook) for hook in hooks])]

    def edited(
        self, ids: Int[Array, "batch time"], taps: Mapping[int, Tap], until: int | None = None
    ) -> Float[Array, "batch time width"]:
        """Next-token logits of a pass in which the hooks of some blocks are edited.

        Args:
            ids: Token ids, [batch, time].
            taps: By block: what it goes on with at each of its hooks, in the order of the pass, ``resid`` first.
            until: Stop after so many blocks and return the residual stream there; None for the logits.

        Raises:
            UserError: A block that the model does not have.
        """
        end = self.layers if until is None else until
        self._check(end)
        for block in taps:
            self._check_hook(RESIDUAL, block, whole=True)
        x, done = self._start(ids), 0
        for block in sorted(block for block in taps if block < end):
            x, tap = self._run(x, done, block), taps[block]
            layer = jax.tree.map(lambda leaf, at=block: leaf[at], self._stacked())
            x, done = self._block(tap(RESIDUAL, x), layer, tap), block + 1
        x = self._run(x, done, end)
        return self._head(x) if until is None else x

    def logits_from(self, x: Float[Array, "batch time embed"], layer: int) -> Float[Array, "batch time vocab"]:
        """Next-token logits from a residual stream.

        Args:
            x: The residual stream at `layer`, [batch, time, embed].
            layer: Number of blocks that have run.

        Returns:
            float32 [batch, time, vocab].
        """
        self._check(layer)
        return self._head(self._run(x.astype(jnp.float32), layer, self.layers))

    def __call__(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time vocab"]:
        """Next-token logits."""
        return self.logits_from(self.residual(ids, 0), 0)

    def check_context(self, context: int) -> None:
        """Raises `UserError` for sequences longer than the maximum of the model."""
        most = self.config.positions
        if most is not None and context > most:
            raise UserError(
                f"context is {context}, but the model was made for at most {most} tokens "
                f"({', '.join(self.config.position_settings())}); "
                f"write a context of at most {most}"
            )

    def _check(self, layer: int) -> None:
        if not 0 <= layer <= self.layers:
            raise UserError(
                f"layer {layer} of a model with {self.layers} blocks; write 0 (the embedding) to {self.layers}"
            )

    def _check_hook(self, name: str, block: int, whole: bool = False) -> None:
        """Raises `UserError` for a block that is not there; the residual stream exists after the last block too."""
        last = self.layers if name == RESIDUAL and not whole else self.layers - 1
        if not 0 <= block <= last:
            raise UserError(
                f"hook {name}.{block} of a model with {self.layers} blocks; write {name}.0 to {name}.{last}"
            )

    def _found(self, found: dict[str, Array], name: str) -> Array:
        if name not in found:
            raise UserError(f"hook '{name}' in a model of type {self.config.model_type}, which has {', '.join(found)}")
        return found[name]

    def _slice(self, start: int, stop: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[start:stop], self._stacked())

    def _run(self, x: Array, start: int, stop: int) -> Array:
        def step(x: Array, layer: Any) -> tuple[Array, None]:
            return self._block(x, layer), None

        return jax.lax.scan(step, x, self._slice(start, stop), unroll=self.unroll)[0]


@dataclass(frozen=True)
class Family:
    """An architecture: what its file in `jhsae.lm.families` defines as FAMILY.

    Args:
        model_types: The model_type of config.json of its checkpoints.
        config: Reads a parsed config.json, whose name it gets for its errors.
        model: Computes.
    """

    model_types: tuple[str, ...]
    config: Callable[[dict[str, Any], str], AbstractConfig]
    model: type[AbstractLM]
