"""Forward passes of a language model for the buffers of one or several layers.

One pass gives the residual streams at all layers that are wanted, and each has the very bits that a pass for it alone
gives. A compiler may round a block differently in a program with other outputs (XLA turns a loop of one block into
straight code, so that layer 1 may differ), so the two are compared on the first sequences, for every number of them;
a layer that differs gets a pass of its own.
"""

import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Shaped, UInt32

from jhsae import lm
from jhsae.activations.streams import Streams
from jhsae.data.stream import Stream

logger = logging.getLogger(__name__)
Layers = tuple[int, ...]


class Passes:
    """The passes of one model over sequences; `layers` are those that some source reads."""

    def __init__(self, model: lm.AbstractLM, mesh: Mesh, sequences: int, dtype: str):
        """Arguments as of `Streams`, whose layers come with `join`."""
        self._arguments = model, mesh, sequences, dtype
        self._made: dict[Layers, Streams] = {}
        self._programs: dict[tuple[Layers, int], list[Streams]] = {}  # layers and sequences
        self._samples: dict[int, Shaped[np.ndarray, "rows embed"] | None] = {}  # None: given away
        self.layers: Layers = ()

    def join(self, layer: int) -> Streams:
        """Adds a layer; returns its streams alone."""
        self.layers = tuple(sorted({*self.layers, layer}))
        return self._streams((layer,))

    def __call__(
        self, tokens: UInt32[np.ndarray, "local_batch context"], layers: Layers
    ) -> dict[int, tuple[Shaped[Array, "taps batch context embed"], int]]:
        """The residual streams of the global batch at `layers`, which are in order.

        Args:
            tokens: This process's sequences.
            layers: Layers to read.

        Returns:
            Of each layer an array with the residual streams of several, and its place in it.
        """
        found: dict[int, tuple[Array, int]] = {}
        for streams in self._program(tokens, layers):
            residuals = streams(tokens)
            found |= {layer: (residuals, tap) for tap, layer in enumerate(streams.layers)}
        return found

    def sample(self, stream: Stream, rows: int, layer: int) -> Shaped[np.ndarray, "rows embed"]:
        """The first `rows` of a stream at `layer`; those of all layers that have joined are read together."""
        found = self._samples.get(layer)
        if found is None:
            wanted = tuple(n for n in self.layers if n == layer or n not in self._samples)
            for streams in self._program(_first(stream, self._streams((layer,)).local_batch), wanted):
                parts = [x for x, _ in streams.rows(stream, 0, rows, streams.passes(stream, 0, rows))]
                self._samples |= zip(streams.layers, np.concatenate(parts, axis=1), strict=True)
            found = self._samples[layer]
        self._samples[layer] = None
        assert found is not None  # read just now, or before and not given away
        return found

    def _program(self, tokens: UInt32[np.ndarray, "local_batch context"], layers: Layers) -> list[Streams]:
        """The programs that give `layers`: one, unless its bits on `tokens` are not those of each layer alone."""
        key = layers, len(tokens)
        if key not in self._programs:
            self._programs[key] = list(self._compared(tokens, layers))
            if len(layers) > 1:
                groups = [_named(streams.layers) for streams in self._programs[key]]
                apart = "" if len(groups) == 1 else ", which one pass would round differently"
                logger.info(f"passes of the language model: {' and '.join(groups)}{apart}")
        return self._programs[key]

    def _compared(self, tokens: UInt32[np.ndarray, "local_batch context"], layers: Layers) -> Iterator[Streams]:
        while len(layers) > 1:
            together = self._streams(layers)
            residuals = together(tokens)
            same = {n: _equal(residuals[tap], self._streams((n,))(tokens)[0]) for tap, n in enumerate(layers)}
            if all(same.values()):
                yield together
                return
            yield from (self._streams((n,)) for n in layers if not same[n])
            layers = tuple(n for n in layers if same[n])  # compared again: without a tap it is another program
        yield from (self._streams((n,)) for n in layers)

    def _streams(self, layers: Layers) -> Streams:
        if layers not in self._made:
            model, mesh, sequences, dtype = self._arguments
            self._made[layers] = Streams(model, layers, mesh, sequences, dtype)
        return self._made[layers]


def _first(stream: Stream, sequences: int) -> UInt32[np.ndarray, "sequences context"]:
    """The first sequences of a stream; repeated where it has fewer."""
    return stream.tokens[np.resize(stream.order, sequences)]


def _equal(a: Shaped[Array, "*shape"], b: Shaped[Array, "*shape"]) -> bool:
    return bool(jax.device_get(_same_bits(a, b)))


@jax.jit
def _same_bits(a: Shaped[Array, "*shape"], b: Shaped[Array, "*shape"]) -> Bool[Array, ""]:
    whole = jnp.dtype(f"uint{8 * a.dtype.itemsize}")
    return jnp.all(jax.lax.bitcast_convert_type(a, whole) == jax.lax.bitcast_convert_type(b, whole))


def _named(layers: Layers) -> str:
    return f"one for layer {layers[0]}" if len(layers) == 1 else f"one for layers {', '.join(map(str, layers))}"
