"""An activation store on disk: a manifest and some arrays, read through tensorstore.

``activations [rows, embed]`` (float32, bfloat16 or int8) in shuffled order; ``index [rows, 3]``: for every row
its sequence, its position in it and the token id there; ``tokens [sequences, context]``; of int8 also ``scales
[rows, 1]`` and ``channels [2, embed]`` (see `storage`). Paths are local folders or URLs that tensorstore opens:
``file://`` is tested, ``gs://`` and ``s3://`` use the same code and are untested.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Float32, Int32, UInt32

from jhsae.data import arrays
from jhsae.data.arrays import Pending
from jhsae.data.files import kvstore
from jhsae.data.manifest import Manifest, read_identified, verify
from jhsae.data.storage import AbstractStorage, storage
from jhsae.errors import UserError


@dataclass(frozen=True, eq=False)
class Store:
    """A complete, verified store; made by `Store.open`, which fills in the private fields.

    Args:
        path: Its folder, local or in a bucket.
        manifest: Its metadata.
    """

    path: str
    manifest: Manifest
    _storage: AbstractStorage = field(repr=False)
    _columns: list[ts.TensorStore] = field(repr=False)
    _index: ts.TensorStore = field(repr=False)
    _tokens: ts.TensorStore = field(repr=False)
    _identity: str = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Opens and verifies a store.

        Args:
            path: Its folder, local or in a bucket.

        Raises:
            UserError: The folder does not exist, the harvest is incomplete, or a file is missing, truncated or altered.
        """
        manifest, identity = read_identified(path)
        verify(path, manifest)
        root, layouts = kvstore(path), manifest.arrays()
        kind = storage(manifest.dtype, lambda: arrays.channels(root, layouts["channels"]))
        opened = {name: arrays.existing(root, a, zeros=manifest.zeros) for name, a in layouts.items()}
        columns = [opened[name] for name in kind.columns(manifest.embed)]
        return cls(str(path), manifest, kind, columns, opened["index"], opened["tokens"], identity)

    @classmethod
    def from_array(cls, x: Any, out: str | Path, **options: Any) -> "Store":
        """Writes your own activations as a store: `jhsae.data.write_array`.

        Args:
            x: [rows, embed] or [docs, positions, embed]: a list, or a NumPy, JAX or torch array, which may be larger
                than memory where it is mapped from a file.
            out: Folder of the store, which must not exist.
            **options: Those of `write_array`: ``tokens``, ``positions`` and ``text`` of each row; ``model`` and
                ``layer`` that it comes from; ``dtype``, ``seed``.

        Raises:
            UserError: As `write_array`.
        """
        from jhsae.data.from_array import write_array  # which makes a `Store`

        return write_array(out, x, **options)

    @property
    def rows(self) -> int:
        """Number of activations."""
        return self.manifest.rows

    @property
    def embed(self) -> int:
        """The width of an activation."""
        return self.manifest.embed

    def identity(self) -> str:
        """A hash of its manifest, which contains the checksums of its files; identifies the store."""
        return self._identity

    def is_known_as(self, identity: Any) -> bool:
        """Whether `identity`, recorded by a run, is that of this store; before format 3 it hashed the files alone."""
        return identity in (self._identity, self.manifest.identity_of_files())

    def request(self, start: int, stop: int) -> Pending:
        """Starts reading activations `start` to `stop`.

        Returns:
            A future whose ``.result()`` is [rows, embed], bfloat16 where that is stored, else float32.
        """
        where = f"{self.path}/activations"
        return Pending(self._columns, *self._range(start, stop), where, self._storage.decode)

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "rows embed"]:
        """Reads activations `start` to `stop` in the order of the store.

        Returns:
            [rows, embed] in float32.
        """
        return self.request(start, stop).result().astype(np.float32)

    def index(self, start: int, stop: int) -> Int32[np.ndarray, "rows 3"]:
        """Origin of the activations `start` to `stop`.

        Returns:
            (sequence, position, token id) per row, int32 [rows, 3].
        """
        return Pending([self._index], *self._range(start, stop), f"{self.path}/index").result()

    def tokens(self) -> UInt32[np.ndarray, "sequences context"]:
        """The packed sequences that the language model read; `index` points into them."""
        return Pending([self._tokens], 0, self.manifest.sequences, f"{self.path}/tokens").result()

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        if not 0 <= start <= stop <= self.rows:
            raise UserError(f"rows {start} to {stop} were asked of {self.path}, which holds rows 0 to {self.rows}")
        return start, stop
