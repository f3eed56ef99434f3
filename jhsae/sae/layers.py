"""The layers of a transcoder: which features read where, and which part of the output each may write.

What is read and what is written hold one vector per layer, side by side. Features are numbered layer by layer; those of
layer l read layer l and write to layers l, l + 1, ... (the cross-layer transcoder of Ameisen et al. 2025, "Circuit
Tracing"). With one layer there is nothing to divide: a transcoder.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.sparsify import AbstractSparsifier
from jhsae.usage import Context


class Layers(NamedTuple):
    """How many layers there are, and how wide all of them are together.

    Args:
        layers: how many there are.
        embed: what is read.
        output: what is written.
        groups: the features, or the experts, of all layers.
    """

    layers: int
    embed: int
    output: int
    groups: int

    def check(self, names: str) -> None:
        """`UserError` for a size that the layers cannot share; `names` is what the last one is called."""
        for size, name in ((self.embed, "embed"), (self.output, "output"), (self.groups, names)):
            if size % self.layers:
                raise UserError(
                    f"{name} is {size}, which {self.layers} layers cannot share; write the size of all layers "
                    f"together, a multiple of {self.layers}"
                )

    @property
    def width(self) -> int:
        """How wide one layer of the input is."""
        return self.embed // self.layers

    @property
    def written(self) -> int:
        """How wide one layer of the output is."""
        return self.output // self.layers

    @property
    def own(self) -> int:
        """How many features, or experts, one layer has."""
        return self.groups // self.layers

    def split(self, x: Float[Array, "batch embed"]) -> Float[Array, "batch layers width"]:
        """The input by layer."""
        return x.reshape(len(x), self.layers, self.width)

    def of(self, layer: int, array: Float[Array, "groups *inside"]) -> Float[Array, "own *inside"]:
        """The part of a layer in an array with a row per feature, or expert, of all of them."""
        return array if self.layers == 1 else array[layer * self.own : (layer + 1) * self.own]

    def of_any(self, layer: int, array: Float[Array, "groups *inside"] | None) -> Float[Array, "own *inside"] | None:
        """`of`, or None of None."""
        return None if array is None else self.of(layer, array)

    def writes(self) -> Bool[np.ndarray, "groups output"]:
        """Whether each feature, or expert, may write each number of the output."""
        source, target = np.arange(self.groups) // self.own, np.arange(self.output) // self.written
        return source[:, None] <= target[None, :]

    def masked(self, rows: Float[Array, "groups *inside output"]) -> Float[Array, "groups *inside output"]:
        """`rows` with 0 where a feature may not write."""
        if self.layers == 1:
            return rows
        mask = self.writes()
        return jnp.where(mask.reshape(self.groups, *(1,) * (rows.ndim - 2), self.output), rows, 0.0)

    def joined(self, parts: Sequence[Codes]) -> Codes:
        """The codes of all layers, from those of each."""
        if self.layers == 1:
            return parts[0]
        values = jnp.concatenate([part.values for part in parts], axis=1)
        if parts[0].indices is None:
            return Codes(values, None, self.groups)
        indices = [part.slot_indices() + layer * self.own for layer, part in enumerate(parts)]
        return Codes(values, jnp.concatenate(indices, axis=1), self.groups)

    def parted(self, codes: Codes) -> list[Codes]:
        """Inverse of `joined`."""
        if self.layers == 1:
            return [codes]
        slots = codes.values.shape[-1] // self.layers
        spans = [slice(layer * slots, (layer + 1) * slots) for layer in range(self.layers)]
        inside = [None if codes.indices is None else codes.indices[:, s] - i * self.own for i, s in enumerate(spans)]
        return [Codes(codes.values[:, s], at, self.own) for s, at in zip(spans, inside, strict=True)]

    def context(self, layer: int, context: Context) -> Context:
        """That of a layer, whose noise is its own."""
        if context.key is None or layer == 0:
            return context
        key = jax.random.fold_in(context.key, layer + 1)
        return Context(key, context.step, context.usage, context.dead, context.tokens)

    def whole_rule(self, rules: tuple[AbstractSparsifier, ...]) -> AbstractSparsifier:
        """One rule with the thresholds of all layers."""
        if self.layers == 1:
            return rules[0]

        def together(*arrays: Array) -> Array:
            return jnp.concatenate(arrays) if eqx.is_array(arrays[0]) and arrays[0].ndim else arrays[0]

        return jax.tree.map(together, *rules)
