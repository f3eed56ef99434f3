"""An activation store on disk: a manifest and three arrays, read through tensorstore.

``activations [rows, embed]`` (float32 or bfloat16) in shuffled order; ``index [rows, 3]``: for every row
its sequence, its position in it and the token id there; ``tokens [sequences, context]``. Paths are local
folders or URLs that tensorstore opens: ``file://`` is tested, ``gs://`` and ``s3://`` take the same way and were
not tried.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorstore as ts
from jaxtyping import Float32, Int32, UInt32

from jhsae.data import arrays
from jhsae.data.arrays import Pending
from jhsae.data.files import kvstore
from jhsae.data.manifest import Manifest, read_manifest, verify
from jhsae.errors import UserError


@dataclass(frozen=True, eq=False)
class Store:
    """A finished, verified store; make one with `Store.open`."""

    path: str
    manifest: Manifest
    _activations: ts.TensorStore = field(repr=False)
    _index: ts.TensorStore = field(repr=False)
    _tokens: ts.TensorStore = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Opens and verifies.

        Raises:
            UserError: no such folder, an incomplete harvest, a file that is missing, cut short or altered.
        """
        manifest = read_manifest(path)
        verify(path, manifest)
        root = kvstore(path)
        opened = (arrays.existing(root, name) for name in ("activations", "index", "tokens"))
        return cls(str(path), manifest, *opened)

    @property
    def rows(self) -> int:
        """How many activations there are."""
        return self.manifest.rows

    @property
    def embed(self) -> int:
        """The width of an activation."""
        return self.manifest.embed

    def request(self, start: int, stop: int) -> Pending:
        """Starts to read activations `start` to `stop`; ``.result()`` waits and gives the stored dtype."""
        return Pending(self._activations, *self._range(start, stop), f"{self.path}/activations")

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "rows embed"]:
        """The activations `start` to `stop`, in the order of the store."""
        return self.request(start, stop).result().astype(np.float32)

    def index(self, start: int, stop: int) -> Int32[np.ndarray, "rows 3"]:
        """(sequence, position, token id) of the same rows."""
        return Pending(self._index, *self._range(start, stop), f"{self.path}/index").result()

    def tokens(self) -> UInt32[np.ndarray, "sequences context"]:
        """The packed sequences that the language model read; `index` points into them."""
        return Pending(self._tokens, 0, self.manifest.sequences, f"{self.path}/tokens").result()

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        if not 0 <= start <= stop <= self.rows:
            raise UserError(f"rows {start} to {stop} were asked of {self.path}, which holds rows 0 to {self.rows}")
        return start, stop
