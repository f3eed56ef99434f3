"""Tensors of a Hugging Face folder: which file holds which, of what type and shape, and slices of them.

As in transformers, ``model.safetensors`` comes before an index of shards. Headers are read and compared with the size
of the file when the folder is opened; values are read lazily, slice by slice.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jhsae.errors import UserError
from jhsae.files.bounded import inside, read_object, regular_file
from jhsae.files.tensor_files import TensorInfo, tensor_header

Index = tuple[slice, ...]
SINGLE, SHARDS = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
EIGHT_BITS = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2, "I8": np.int8}
SCALES = {"F8_E8M0": jnp.float8_e8m0fnu, "U8": np.uint8}
DTYPES = {name: np.dtype(kind) for name, kind in (FLOATS | EIGHT_BITS | SCALES).items()}


class CheckpointTensors:
    """The safetensors of a folder, one file or shards with an index.

    Raises:
        UserError: no weights there, an index that names a file outside of the folder, a damaged file, a tensor that
            two shards hold; when a tensor is read also a missing shard or tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._headers: dict[str, dict[str, TensorInfo]] = {}
        self._index: dict[str, str] = {}
        if (folder / SINGLE).exists():
            self._open(SINGLE)
        elif (folder / SHARDS).exists():
            self._index = _weight_map(folder)
            for shard in dict.fromkeys(self._index.values()):
                if inside(folder, shard, folder / SHARDS).exists():
                    self._open(shard)
        else:
            raise UserError(f"no {SINGLE} and no {SHARDS} in {folder}; write a folder with weights")

    @property
    def names(self) -> set[str]:
        """Every tensor that a file holds or the index names."""
        return self._index.keys() | {name for header in self._headers.values() for name in header}

    def __contains__(self, name: str) -> bool:
        return name in self._index or self.present(name)

    def present(self, name: str) -> bool:
        """True where the file of a tensor is there."""
        return any(name in header for header in self._headers.values())

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor."""
        return self._found(name)[1]

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """A tensor or a slice of it, in the type of the file."""
        shard, info = self._found(name)
        if info.dtype not in DTYPES:
            raise UserError(f"tensor {name} in {self.folder / shard} is of type {info.dtype}, expected a float type")
        values = self.raw(name).view(DTYPES[info.dtype]).reshape(info.shape)
        return values if index is None else values[index]

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor, mapped and not read."""
        shard, info = self._found(name)
        if info.start == info.stop:
            return np.empty(0, np.uint8)
        path = self.folder / shard
        with path.open("rb") as file:
            first = 8 + int.from_bytes(file.read(8), "little")
        size = info.stop - info.start
        return np.memmap(path, np.uint8, "r", offset=first + info.start, shape=(size,)).view(np.ndarray)

    def _open(self, shard: str) -> None:
        header = tensor_header(self.folder / shard)
        for other, held in self._headers.items():
            if twice := sorted(held.keys() & header.keys()):
                raise UserError(f"{self.folder}: {other} and {shard} both hold {twice[0]}; fetch the checkpoint again")
        self._headers[shard] = header

    def _found(self, name: str) -> tuple[str, TensorInfo]:
        for shard, header in self._headers.items():
            if name in header:
                return shard, header[name]
        if name not in self._index:
            raise UserError(f"no tensor {name} in the weights of {self.folder}; the checkpoint is not complete")
        shard = self._index[name]
        if shard in self._headers:
            raise UserError(f"{self.folder / shard} has no tensor {name}, which {SHARDS} places there; fetch it again")
        raise UserError(f"shard {shard} is missing in {self.folder} (it holds {name}); fetch it again")


def _weight_map(folder: Path) -> dict[str, str]:
    path = regular_file(folder / SHARDS)
    found = read_object(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} has no weight_map from tensors to files; fetch it again")
    for shard in found.values():
        inside(folder, shard, path)
        if not shard.endswith(".safetensors"):
            raise UserError(f"{path} names the file {shard}, expected safetensors files alone; it was not opened")
    return found
