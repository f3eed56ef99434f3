"""Untrusted zip and npz archives: members, sizes and types are checked before anything is decompressed."""

import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from jhsae.errors import UserError
from jhsae.files.bounded import MIB, File, reason, regular_file, size_of
from jhsae.files.tensor_files import RANK, check_written

ZIP_BYTES = 256 * MIB  # of a small archive, expanded; a larger one may expand to
ZIP_RATIO = 4  # times its own size: weights hardly compress
ZIP_LIST_BYTES = 4 * MIB  # the list of members: some 40,000
NPY_HEADER = 16_384
ZIP_ERRORS = (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error)


class ArrayInfo(NamedTuple):
    """The npy header of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int


def npz_header(path: str | File, limit: int | None = None) -> dict[str, ArrayInfo]:
    """Shape and type of every array of an npz archive; no array is read.

    Raises:
        UserError: no such archive, a member that is not a numeric or text array, or whose header does not match its
        size.
    """
    return _npz(path, limit, ())[0]


def load_npz(path: str | File, limit: int | None = None, keys: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz archive (or those called `keys`), which may expand to `limit` bytes (`check_zip`).

    Raises:
        UserError: as `npz_header`, and a damaged member.
    """
    return _npz(path, limit, keys)[1]


def _npz(
    path: str | File, limit: int | None, keys: Collection[str] | None
) -> tuple[dict[str, ArrayInfo], dict[str, np.ndarray]]:
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            check_zip_list(file, path)
            with zipfile.ZipFile(file) as archive:
                check_zip(archive, path, limit)
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                found = {name: _npy_header(archive, info, path) for name, info in members.items()}
                wanted = found if keys is None else keys
                return found, {name: _read_npy(archive, members[name], found[name]) for name in wanted}
    except UserError:
        raise
    except (*ZIP_ERRORS, MemoryError) as error:
        raise UserError(f"{path} is not an npz file of plain arrays ({reason(error)}); download it again") from error


def check_zip_list(file: Any, path: str | File) -> None:
    """Raises `UserError` for a zip archive whose list of members is larger than `ZIP_LIST_BYTES`.

    `zipfile` creates an object for every entry on opening. `zipfile.BadZipFile`: no list.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2**16 - 100))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("it does not end as a zip archive")
    lengths = [struct.unpack_from("<L", tail, end + 12)[0]]
    if end >= 20 and tail.startswith(b"PK\6\7", end - 20):  # zip64: the record before it, or at its offset
        file.seek(min(struct.unpack_from("<Q", tail, end - 12)[0], size))
        for record in (tail[max(0, end - 76) : end - 20], file.read(56)):
            if record.startswith(b"PK\6\6") and len(record) == 56:
                lengths.append(struct.unpack_from("<Q", record, 40)[0])
    file.seek(0)
    if max(lengths) > ZIP_LIST_BYTES:
        raise UserError(f"{path} lists its members in {max(lengths):,} bytes, expected at most {ZIP_LIST_BYTES:,}")


def check_zip(archive: zipfile.ZipFile, path: str | File, limit: int | None = None) -> None:
    """Raises `UserError` for an archive that is not made of plain, separate members of bounded size.

    Together they may expand to `limit` bytes; None is `ZIP_BYTES`, or `ZIP_RATIO` times the archive's size.
    """
    total, names = 0, set[str]()
    for info in archive.infolist():
        total += info.file_size
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise UserError(f"{path}: {info.filename[:100]!r} is encrypted or packed in an unusual way; save it again")
        if info.filename in names:
            raise UserError(f"{path} has two members {info.filename[:100]!r}; save it again")
        names.add(info.filename)
    limit = max(ZIP_BYTES, ZIP_RATIO * size_of(path)) if limit is None else limit
    if total > limit:
        raise UserError(f"{path} expands to {total:,} bytes, expected at most {limit:,}; it was not read")
    check_written(path)


def npy_header(path: str | File) -> ArrayInfo:
    """Shape and type of an npy file, and where its numbers start; none is read.

    Raises:
        UserError: No npy file of plain numbers, one whose header does not match its size, or one that is mostly holes.
    """
    path = regular_file(path)
    with path.open("rb") as file:
        info = _parsed(
            file.read(NPY_HEADER), size_of(path), f"{path} is not an npy file of numbers: its array", "numpy.save"
        )
    check_written(path)
    return info


def _npy_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str | File) -> ArrayInfo:
    """The header of one member, whose size must match the archive's entry."""
    where = f"{path} is not an npz file of plain arrays: {info.filename[:100]!r}"
    if not info.filename.endswith(".npy"):
        raise UserError(f"{where} is none; save the arrays again with numpy.savez")
    with archive.open(info) as member:
        return _parsed(member.read(NPY_HEADER), info.file_size, where, "numpy.savez")


def _parsed(start: bytes, size: int, where: str, save: str) -> ArrayInfo:
    """The header at the start of `size` bytes."""
    head = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(head)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        with warnings.catch_warnings():  # of headers as Python 2 wrote them, and of odd literals in hostile ones
            warnings.simplefilter("ignore")
            shape, fortran, dtype = read(head)
    except Exception as error:  # NumPy parses the header as a Python literal, which may raise any exception
        raise UserError(f"{where} is none ({reason(error)}); save the arrays again with {save}") from error
    if dtype.hasobject:
        raise UserError(f"{where} holds Python objects (a pickle); save numbers")
    if dtype.kind not in "?bifucSU" or not dtype.itemsize:
        hint = "; bfloat16 has no name there, so save it as float32" if dtype == np.dtype("V2") else "; save numbers"
        raise UserError(f"{where} has the type {dtype.str}{hint}")
    held = size - head.tell()
    if len(shape) > RANK or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise UserError(f"{where} of shape {str(list(shape))[:100]} does not fit its {size:,} bytes")
    return ArrayInfo(shape, dtype, fortran, head.tell())


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, info: ArrayInfo) -> np.ndarray:
    """The array of one member, read in pieces into a preallocated array."""
    array = np.empty(info.shape[::-1] if info.fortran else info.shape, info.dtype)
    place, at = array.reshape(-1).view(np.uint8), 0
    with archive.open(member) as file:
        file.read(info.start)
        while piece := file.read(MIB):
            place[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
    if at != place.size:
        raise ValueError(f"{member.filename} ends after {at:,} of {place.size:,} bytes")
    return array.T if info.fortran else array
