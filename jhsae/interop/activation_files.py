"""Activations in files of others, read block by block: .npy, .pt, .safetensors, .parquet, or a folder of such shards.

Headers are read first; numbers of .npy, .safetensors and .pt are mapped and those of .parquet decoded by row group, so
that a file may be larger than memory. A .pt is read with torch's ``weights_only=True``, and only on request
(`jhsae.interop.unpickle`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jhsae.data.from_array import Block, blocks_of
from jhsae.errors import UserError, nearest
from jhsae.files import archives, tensor_files
from jhsae.files.bounded import MIB, read_bytes, read_json, regular_file, size_of
from jhsae.files.folders import is_bucket
from jhsae.interop.parquet_columns import ParquetColumn, columns_of
from jhsae.interop.unpickle import mapped_tensors

DTYPES: dict[str, Any] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
TEXT_BYTES = 256 * MIB
Arrays = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Shard:
    """One file: its arrays by name, of a file of one array under ""."""

    path: Path
    arrays: Arrays

    def array(self, key: str) -> Any:
        """The array of a name. `UserError`: there is none."""
        if key not in self.arrays:
            raise UserError(f"{self.path} has no '{key}'{nearest(key, [name for name in self.arrays if name])}")
        return self.arrays[key]

    def activations(self, key: str | None, labels: Sequence[str]) -> Any:
        """The array called `key`, or the only one of floats that is none of the `labels`."""
        if key is not None:
            return self.array(key)
        names = [name for name in self.arrays if name not in labels]
        wide = [name for name in names if _is_float(self.arrays[name]) and len(self.arrays[name].shape) > 1]
        if len(found := wide if len(wide) == 1 else names) != 1:
            listed = ", ".join((wide or names)[:8]) or "nothing"
            raise UserError(f"{self.path} holds {listed}, expected one array of activations; write key=NAME")
        return self.arrays[found[0]]


@dataclass(frozen=True, eq=False)
class Source:
    """Rows of activations in files.

    Args:
        axes: Of all of them, before the last; (rows,) where shards have documents of different lengths.
        embed: The width.
        blocks: Of all rows, in the order of the files.
        positions: Position of each row in its document, where the axes do not tell.
        shards: The files.
    """

    axes: tuple[int, ...]
    embed: int
    blocks: list[Block]
    positions: np.ndarray | None
    shards: list[Shard]

    def labels(self, name: str, word: str, unpickle: bool = False) -> np.ndarray:
        """The values of a file, or those called `name` in every shard, flat.

        Args:
            name: A file (.npy, .pt, .safetensors, .parquet, a folder of such, or text as lines of .txt or a list of
                .json), or a tensor or column of the source.
            word: The key, for messages.
            unpickle: As in `open_source`.

        Raises:
            UserError: Neither a file nor a name in the source, or a file that cannot be read.
        """
        if all(name in shard.arrays for shard in self.shards):
            return np.concatenate([_whole(shard.array(name)) for shard in self.shards])
        path = Path(name)
        if not path.exists():
            known = [key for key in self.shards[0].arrays if key]
            raise UserError(
                f"{word} is {name}, which is neither a file nor in {self.shards[0].path}{nearest(name, known)}"
            )
        if path.suffix in (".txt", ".json"):
            return np.asarray(_lines(path), object)
        shards = open_shards(path, unpickle)
        return np.concatenate([_whole(_only(shard, word)) for shard in shards])

    def fingerprint(self) -> list[dict[str, Any]]:
        """Name and bytes of every file, and the sha256 of its first and last MiB."""
        return [fingerprint(shard.path) for shard in self.shards]


def fingerprint(path: Path) -> dict[str, Any]:
    """Name and bytes of a file, and the sha256 of its first and last MiB, which tells most changes at little cost."""
    size = size_of(path)
    with path.open("rb") as file:
        data = file.read(MIB)
        file.seek(max(0, size - MIB))
        data += file.read(MIB)
    return {"name": path.name, "bytes": size, "sha256_of_ends": sha256(data).hexdigest()}


def open_source(path: str | Path, key: str | None = None, labels: Sequence[str] = (), unpickle: bool = False) -> Source:
    """The activations in a file or a folder of shards, of which nothing but headers is read.

    Args:
        path: .npy, .pt, .safetensors or .parquet, or a folder of one of them.
        key: Tensor or column of the activations; None for the only one that can be.
        labels: Names that are not activations.
        unpickle: Allow ``torch.load(weights_only=True)`` for .pt files.

    Raises:
        UserError: No such file, another kind, no floats, an empty array, or shards that do not fit each other.
    """
    shards = open_shards(path, unpickle)
    parts: list[tuple[tuple[int, ...], int, list[Block]]] = []
    start = 0
    for shard in shards:
        array = shard.activations(key, labels)
        one = array.blocks(start) if isinstance(array, ParquetColumn) else blocks_of(array, str(shard.path), start)
        if parts and one[1] != parts[0][1]:
            raise UserError(
                f"{shard.path} holds rows of {one[1]} numbers and {shards[0].path} of {parts[0][1]}, expected one "
                "width; write the shards of one layer"
            )
        if parts and len(one[0]) != len(parts[0][0]):
            raise UserError(
                f"{shard.path} has {len(one[0]) + 1} axes and {shards[0].path} {len(parts[0][0]) + 1}, expected "
                "[rows, embed] in every shard, or [docs, positions, embed]"
            )
        parts.append(one)
        start = one[2][-1].stop
    axes, positions = _joined([axes for axes, _, _ in parts])
    return Source(axes, parts[0][1], [block for _, _, found in parts for block in found], positions, shards)


def _joined(axes: list[tuple[int, ...]]) -> tuple[tuple[int, ...], np.ndarray | None]:
    """The axes of all shards together, and positions where their documents differ in length."""
    if len({one[1:] for one in axes}) == 1:
        return (sum(one[0] for one in axes), *axes[0][1:]), None
    positions = np.concatenate([np.tile(np.arange(length), docs) for docs, length in axes])
    return (len(positions),), positions


def open_shards(path: str | Path, unpickle: bool = False) -> list[Shard]:
    """The file, or the files of a folder in the order of the numbers in their names."""
    if is_bucket(path):
        raise UserError(f"{path} is in a bucket, expected files of this machine; copy them first")
    path = Path(path)
    if not path.is_dir():
        return [_opened(path, unpickle)]
    files = sorted(
        (file for file in path.iterdir() if file.suffix in READERS and not file.name.startswith(".")), key=_natural
    )
    if (path / "manifest.json").exists():
        raise UserError(f"{path} holds a manifest.json, as a store does, expected files of activations; train on it")
    if not files:
        raise UserError(f"{path} holds no {KINDS} file; write a file of activations, or a folder of such")
    if len(kinds := {file.suffix for file in files}) > 1:
        raise UserError(
            f"{path} holds files of several kinds ({', '.join(sorted(kinds))}), expected shards of one kind"
        )
    return [_opened(file, unpickle) for file in files]


def _natural(path: Path) -> list[Any]:
    """Sorts shard_10 after shard_9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]


def _opened(path: Path, unpickle: bool) -> Shard:
    regular_file(path)
    if path.suffix not in READERS:
        raise UserError(f"{path} is of an unknown kind, expected {KINDS}, or a folder of such files")
    return Shard(path, READERS[path.suffix](path, unpickle))


def _npy(path: Path, unpickle: bool) -> Arrays:
    info = archives.npy_header(path)
    return {"": _mapped(path, info.dtype, info.shape, info.start, "F" if info.fortran else "C")}


def _safetensors(path: Path, unpickle: bool) -> Arrays:
    header, start = tensor_files.tensor_header(path), tensor_files.tensors_start(path)
    known = {key: info for key, info in header.items() if info.dtype in DTYPES}
    return {
        key: _mapped(path, np.dtype(DTYPES[info.dtype]), info.shape, start + info.start) for key, info in known.items()
    }


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...], start: int, order: Any = "C") -> np.ndarray:
    if 0 in shape or not shape:  # of which NumPy makes no map
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, order)


def _only(shard: Shard, word: str) -> Any:
    if len(shard.arrays) == 1:
        return next(iter(shard.arrays.values()))
    if word in shard.arrays:
        return shard.array(word)
    raise UserError(f"{shard.path} holds {', '.join(list(shard.arrays)[:8])}, expected one array, or one named {word}")


def _whole(array: Any) -> np.ndarray:
    """All values, flat."""
    if isinstance(array, ParquetColumn):
        return array.values()
    return (array.numpy() if hasattr(array, "detach") else np.asarray(array)).reshape(-1)


def _is_float(array: Any) -> bool:
    return str(array.dtype).removeprefix("torch.").startswith(("float", "bfloat"))


def _lines(path: Path) -> list[Any]:
    """The strings of a JSON list, or the lines of a text."""
    if path.suffix == ".json":
        found = read_json(path)
        if not isinstance(found, list):
            raise UserError(f"{path} holds a {type(found).__name__}, expected a list of strings, one for each row")
        return found
    try:
        lines = read_bytes(path, TEXT_BYTES).decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; save it as such") from error
    return [line.removesuffix("\r") for line in lines]


READERS: dict[str, Callable[[Path, bool], Arrays]] = {
    ".npy": _npy,
    ".pt": mapped_tensors,
    ".pth": mapped_tensors,
    ".safetensors": _safetensors,
    ".parquet": lambda path, unpickle: columns_of(path),
}
KINDS = ", ".join(READERS)
