"""Bounded reading of files that other people made: JSON, YAML, safetensors headers, npz and zip archives.

Every reader first looks at what kind of file it is and how large it says it is, and only then reads. Sizes come from
headers and are compared with a limit, or with what is wanted, before any data is read. Nothing here runs code that a
file names. Whatever is wrong is a `UserError` that names the file, what was got and what to do.
"""

import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import yaml
from etils import epath

from jhsae.errors import UserError

MIB = 2**20
JSON_BYTES = 64 * MIB
YAML_BYTES = MIB
YAML_NODES = 200_000  # nodes after aliases are expanded
DEPTH = 64  # nested lists and mappings
HEADER_BYTES = 100 * MIB  # the bound of the safetensors format
NPZ_BYTES = 2**30  # all arrays of an archive together, expanded

File: TypeAlias = Path | epath.Path


def regular_file(path: str | File) -> File:
    """`path` as it is, if it is a regular file (or an object in a bucket).

    Raises:
        UserError: nothing is there, or a folder, a FIFO, a device or a socket is, from which reading may never end.
    """
    path = path if isinstance(path, Path | epath.Path) else Path(path)
    if "://" in str(path):
        if not path.exists():
            raise UserError(f"there is no file {path}; write the path of a file that exists")
        return path
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no file {path}; write the path of a file that exists") from error
    except (OSError, ValueError) as error:  # no permission, a loop of links, a NUL in the name
        raise UserError(f"{str(path)!r} cannot be opened ({_reason(error)})") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO, a device or a socket"
        raise UserError(f"{path} is {kind}, expected a regular file")
    return path


def size_of(path: str | File) -> int:
    """Bytes of a regular file."""
    path = regular_file(path)
    return path.stat().length if "://" in str(path) else os.stat(path).st_size  # type: ignore[union-attr]


def read_bytes(path: str | File, limit: int) -> bytes:
    """The whole of a regular file of at most `limit` bytes.

    Raises:
        UserError: no regular file, one that is larger, or one that cannot be read.
    """
    path = regular_file(path)
    if (size := size_of(path)) > limit:
        raise UserError(f"{path} has {size:,} bytes, expected at most {limit:,}; it is not what its name says")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_reason(error)})") from error
    if len(data) > limit:  # it grew, or does not tell its size, as in /proc
        raise UserError(f"{path} has more than {limit:,} bytes; it is not what its name says")
    return data


def parse_json(text: str | bytes, where: str | File, *, nan: bool = False) -> Any:
    """The value of a JSON text. Repeated keys and nesting deeper than `DEPTH` are refused.

    NaN and infinity are refused too, or become None where `nan` allows them, for logs of older versions.

    Raises:
        UserError: naming `where`.
    """
    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode("utf-8"),
            parse_constant=(lambda _: None) if nan else _refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read as JSON ({_reason(error)}); copy or make it again") from error
    _check_depth(value, where)
    return value


def read_json(path: str | File, limit: int = JSON_BYTES) -> Any:
    """The value in a JSON file, read as `parse_json` does."""
    return parse_json(read_bytes(path, limit), path)


def read_object(path: str | File, limit: int = JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file. `UserError` for any other value."""
    return as_object(read_json(path, limit), path)


def as_object(value: Any, where: str | File) -> dict[str, Any]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{where} holds a {type(value).__name__}, expected a JSON object: {{...}}")
    return value


def read_lines(path: str | File, limit: int = 16 * JSON_BYTES) -> list[dict[str, Any]]:
    """The objects of a JSONL file. A last line without its end, which a kill left there, is skipped; NaN is None."""
    text = read_bytes(path, limit)
    whole = text[: text.rfind(b"\n") + 1].splitlines()
    named = [(line, f"{path}, line {number}") for number, line in enumerate(whole, 1)]
    return [as_object(parse_json(line, where, nan=True), where) for line, where in named]


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text. NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def read_yaml(path: str | File) -> str:
    """The text of a YAML file of at most `YAML_BYTES`, whose aliases expand to at most `YAML_NODES` nodes.

    It is not parsed into values here, only into events, so that whichever loader comes next is safe from it.
    """
    data = read_bytes(path, YAML_BYTES)
    try:
        text = data.decode("utf-8")
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader), path)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid YAML: {_reason(error)}") from error
    return text


def load_yaml(path: str | File) -> Any:
    """The value in a YAML file: mappings, lists, strings, numbers, nothing else."""
    text = read_yaml(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(f"{path}: not valid YAML: {_reason(error)}") from error


class TensorInfo(NamedTuple):
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def tensor_header(path: str | File) -> dict[str, TensorInfo]:
    """Type, shape and place of every tensor of a safetensors file; no tensor is read.

    Raises:
        UserError: not a safetensors file, or one whose header does not fit the size of the file.
    """
    path = regular_file(path)
    size = size_of(path)
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(HEADER_BYTES, size - 8):
            raise UserError(f"{path} is not a safetensors file, or was cut short; copy or download it again")
        header = as_object(parse_json(file.read(length), f"the header of {path}"), f"the header of {path}")
    return {k: _tensor_info(v, k, path, size - 8 - length) for k, v in header.items() if k != "__metadata__"}


def load_npz(path: str | File, limit: int = NPZ_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an npz archive, whose headers promise at most `limit` bytes together. No pickles.

    Raises:
        UserError: no such archive, a member that is not an array, a larger one, a damaged one.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            check_zip(archive, path, limit)
            return {_npy_name(i.filename): _read_npy(archive, i, path) for i in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as npz ({_reason(error)}); copy or make it again") from error
    except zipfile.zlib.error as error:  # type: ignore[attr-defined]
        raise UserError(f"{path} cannot be read as npz ({_reason(error)}); copy or make it again") from error


def check_zip(archive: zipfile.ZipFile, path: str | File, limit: int) -> None:
    """Raises `UserError` when the members of an archive say that they expand to more than `limit` bytes together."""
    total = sum(info.file_size for info in archive.infolist())
    if total > limit:
        raise UserError(f"{path} expands to {total:,} bytes, expected at most {limit:,}; it was not read")


def inside(folder: str | Path, name: Any, said_by: str | File) -> Path:
    """``folder/name`` for a name that a file gives: a relative path that does not leave the folder.

    Raises:
        UserError: an absolute path, ``..``, something that is not a path.
    """
    words = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not words or "\0" in name or "\\" in name or ".." in words or PurePosixPath(name).is_absolute():
        raise UserError(f"{said_by} names the file {name!r}, expected a path inside of {folder}; it was not opened")
    return Path(folder, *words)


def _reason(error: BaseException) -> str:
    """An error's text in one line of at most 200 characters."""
    if isinstance(error, RecursionError):
        return f"nested more than {DEPTH} deep"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond the range of a float")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def _check_depth(value: Any, where: str | File) -> None:
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        if (depth := depth + 1) > DEPTH:
            raise UserError(f"{where} is nested more than {DEPTH} deep; it is not what its name says")
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]


def _without_nan(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    return [_without_nan(v) for v in value] if isinstance(value, list | tuple) else value


def _check_events(events: Iterator[Any], where: str | File) -> None:
    """Counts the nodes of a YAML document with every alias expanded, and its depth."""
    total, sizes, open_nodes = 0, dict[str, int](), list[tuple[str | None, int]]()
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            total += sizes.get(event.anchor, YAML_NODES + 1)  # an alias inside of its own node never ends
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, total))
            elif event.anchor:
                sizes[event.anchor] = 1
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before
        if total > YAML_NODES or len(open_nodes) > DEPTH:
            what = f"nested more than {DEPTH} deep" if len(open_nodes) > DEPTH else f"more than {YAML_NODES:,} nodes"
            raise UserError(f"{where} is {what} when its aliases are expanded; it was not read")


_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def _tensor_info(entry: Any, key: str, path: str | File, data: int) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, start, stop)
        bits = math.prod(shape) * _ITEM_BITS[dtype]
        right = all(type(n) is int and n >= 0 for n in numbers) and start <= stop <= data and bits == 8 * (stop - start)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"the header of {path} describes {key!r} as {str(entry)[:100]}, which is no tensor") from error
    if not right:
        raise UserError(f"{path}: the bytes of {key!r} {list(shape)} {dtype} do not fit the file; download it again")
    return TensorInfo(dtype, shape, start, stop)


def _npy_name(name: str) -> str:
    return name.removesuffix(".npy")


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str | File) -> np.ndarray:
    """One member; its header must promise the bytes that the archive says it has."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise UserError(f"{path}: {info.filename} is an array of version {version}, expected 1.0 or 2.0")
        shape, fortran, dtype = read(member)
        if dtype.hasobject:
            raise UserError(f"{path}: {info.filename} holds Python objects (a pickle), expected numbers")
        expected = math.prod(shape) * dtype.itemsize
        if expected != info.file_size - member.tell():
            raise UserError(f"{path}: {info.filename} {list(shape)} does not fit its {info.file_size:,} bytes")
        array = np.frombuffer(io.BytesIO(member.read(expected)).getbuffer(), dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
