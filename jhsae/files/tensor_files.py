"""Headers of safetensors files, compared with the size of the file before any tensor is read.

A sparse file, which is cheap to send and expensive to read, is refused.
"""

import math
import os
from typing import Any, NamedTuple

from jhsae.errors import UserError
from jhsae.files.bounded import MIB, File, as_object, parse_json, read_start, regular_file, size_of

HEADER_BYTES = 25 * MIB  # a quarter of a million tensors in one file
RANK = 64  # axes, the maximum of NumPy
WRITTEN = 256 * MIB  # from this size on, half of a file of tensors must have been written


class TensorInfo(NamedTuple):
    """The header entry of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def tensor_header(path: str | File) -> dict[str, TensorInfo]:
    """Type, shape and place of every tensor of a safetensors file; no tensor is read.

    Raises:
        UserError: not a safetensors file, or one whose header does not fit the size of the file; a large one that is
            mostly holes.
    """
    return _header(path)[0]


def tensors_start(path: str | File) -> int:
    """Where the tensors of a safetensors file start, which `TensorInfo.start` counts from."""
    return 8 + int.from_bytes(read_start(path, 8), "little")


def tensor_metadata(path: str | File) -> dict[str, str]:
    """The metadata strings of a safetensors header; {} where it has none."""
    found = _header(path)[1]
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UserError(f"the header of {path} has the metadata {str(found)[:100]}, expected strings by key")
    return found


def _header(path: str | File) -> tuple[dict[str, TensorInfo], Any]:
    """The tensors of a safetensors file, and its metadata as they stand there."""
    path = regular_file(path)
    size = size_of(path)
    start = read_start(path, 8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(HEADER_BYTES, size - 8):
        raise UserError(f"{path} cannot be read as safetensors: its header is cut short; copy or download it again")
    header = as_object(parse_json(read_start(path, 8 + length)[8:], f"the header of {path}"), f"the header of {path}")
    metadata = header.pop("__metadata__", {})
    tensors = {k: _tensor_info(v, k, path, size - 8 - length) for k, v in header.items()}
    stop, before = 0, ""
    for key, info in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if info.start < stop:
            raise UserError(
                f"{path} cannot be read as safetensors: {key!r} has bytes of {before!r} as well; download it again"
            )
        stop, before = max(stop, info.stop), key
    check_written(path)
    return tensors, metadata


def check_written(path: str | File) -> None:
    """Raises `UserError` for a large sparse file, of which less than half is allocated."""
    size = size_of(path)
    if size < WRITTEN or "://" in str(path) or not hasattr(os, "SEEK_DATA"):
        return
    at = data = 0
    with open(path, "rb") as file:
        while at < size and 2 * data < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError:  # a hole from here on
                break
            data += at - start
    if 2 * data < size:
        raise UserError(f"{path} has {size:,} bytes, of which {data:,} were ever written; copy or download it again")


_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def _tensor_info(entry: Any, key: str, path: str | File, data: int) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        item, numbers = _ITEM_BITS[dtype], (*shape, start, stop)
        right = len(shape) <= RANK and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"the header of {path} describes {key!r} as {str(entry)[:100]}, which is no tensor") from error
    if not right or not start <= stop <= data or math.prod(shape) * item != 8 * (stop - start):
        place = f"{str(list(shape))[:100]} {dtype}"
        raise UserError(
            f"{path} cannot be read as safetensors: the bytes of {key!r} {place} do not fit; download it again"
        )
    return TensorInfo(dtype, shape, start, stop)
