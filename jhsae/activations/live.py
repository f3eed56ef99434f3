"""Training data straight from a language model: no store, for runs whose activations would not fit on a disk.

``data.live`` of a training config names `LiveActivations` where ``data.store`` would name a folder. The same packed
sequences are read as by a harvest, epoch after epoch; their residual streams go into a shuffling buffer on the devices
(`jhsae.activations.buffer`) and from there into training steps, and never through the host.
"""

import hashlib
import json
from copy import copy
from functools import cached_property
from itertools import chain
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float32

from jhsae import lm
from jhsae.activations.buffer import LiveBatches, Plan
from jhsae.activations.passes import Passes
from jhsae.data import ArrayRows, ModelName, pack
from jhsae.data.source import AbstractSource, SourceInfo
from jhsae.data.stream import Stream
from jhsae.data.text import AbstractText
from jhsae.parallel.memory import check_context
from jhsae.ranges import Count, Natural, Seed, Words

SAMPLE_ROWS = 2**16


class LiveActivations(AbstractSource):
    """The residual stream of `path` at `layer` over `text`; the keys are those of a harvest."""

    def __init__(
        self,
        path: Words,
        layer: Natural,
        text: AbstractText,
        rows: Annotated[int, Ge(1)],
        context: Annotated[int, Ge(2), Le(2**24)] = 128,
        sequences: Count = 32,
        buffer_rows: Count = 2**18,
        lm_dtype: Literal["float32", "bfloat16"] = "float32",
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        lanes: Count | None = None,
        seed: Seed = 0,
        *,
        mesh: Mesh,
    ):
        """`rows`: tokens of text to pack at most, all of them read again in every epoch; 4 bytes each of host memory.

        `sequences`: per forward pass over all devices, approximately. `buffer_rows`: rows of the buffer over all
        devices, in `dtype`. `lanes`: independent parts of the buffer and of every batch; by default one for each device
        that shares the batch. A run can be resumed on any number of such devices that divides it.
        """
        documents = text.documents()
        documents = chain([next(documents)], documents)  # an empty source fails here, before the model is loaded
        loaded = lm.load(path, layers=layer, dtype=jnp.dtype(lm_dtype), mesh=mesh)
        check_context(loaded.model.config.heads, context, sequences, mesh)
        loaded.model.check_context(context)
        tokens = pack(documents, loaded.tokenizer, context, seed, rows=rows, vocab=loaded.model.vocab)
        self._stream = Stream.of(tokens, loaded.tokenizer, seed)
        self._passes = Passes(loaded.model, mesh, sequences, dtype)
        self._mesh, self._sequences, self._buffer_rows, self._lanes = mesh, sequences, buffer_rows, lanes
        self._about = {"model": loaded.name, "dtype": [lm_dtype, dtype], "text": text.describe()}
        self._name = loaded.name
        self._tokenizer = {"model": ModelName.of(loaded.name, loaded.sha256).record()}
        self._read_at(layer)

    def _read_at(self, layer: int) -> None:
        self._layer, self.path = layer, f"{self._name}, layer {layer}, live"
        self._streams = self._passes.join(layer)

    def at(self, layer: int) -> "LiveActivations":
        """The same text and model at another layer; both read what one pass of the model gives."""
        other = copy(self)
        for name in ("manifest", "_sample"):  # computed for this layer
            vars(other).pop(name, None)
        other._read_at(layer)
        return other

    @cached_property
    def manifest(self) -> SourceInfo:
        """Model, layer, width and rows of text, and the statistics of the sample."""
        rows = self._stream.rows
        statistics = vars(self._sample.manifest)
        return SourceInfo(**statistics, model=self._name, layer=self._layer, rows=rows, tokenizer=self._tokenizer)

    @property
    def rows(self) -> int:
        """How many rows the sample has: the first 65,536 of the text, or all."""
        return min(SAMPLE_ROWS, self._stream.rows)

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "rows embed"]:
        """Rows `start` to `stop` of the sample."""
        return self._sample.read(start, stop)

    def identity(self) -> str:
        """A hash of the model's name and layer, and of the sequences."""
        about = self._about | {"layer": self._layer}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        digest.update(self._stream.tokens.tobytes())
        return digest.hexdigest()

    def batches(self, batch: int, seed: int) -> LiveBatches:
        """Batches of `batch` rows over all devices. `UserError`: lanes that cannot share it, too little text."""

        def plan(lanes: int) -> Plan:
            return Plan.of(self._stream, batch, lanes, self._sequences, self._buffer_rows, seed)

        return LiveBatches(self._passes, self._layer, self._mesh, plan, self._lanes)

    @cached_property
    def _sample(self) -> ArrayRows:
        """Every process reads the same sequences; process 0's numbers count, so that all fit the same normaliser."""
        x: Any = self._passes.sample(self._stream, self.rows, self._layer)
        return ArrayRows(np.asarray(multihost_utils.broadcast_one_to_all(x)) if jax.process_count() > 1 else x)
