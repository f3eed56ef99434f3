"""A store's folder, local or in a bucket, as a key-value store; and checksums of what is in it."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import tensorstore as ts

from jhsae.errors import UserError
from jhsae.files.checksums import hash_file
from jhsae.files.folders import is_bucket

SCHEMES = ("file://", "gs://", "s3://")


def kvstore(path: str | Path) -> ts.KvStore:
    """The key-value view of a store's folder, local or in a bucket. `UserError`: another URL than `SCHEMES`."""
    if is_bucket(path):
        if not str(path).startswith(SCHEMES):
            raise UserError(f"{path} is no store that can be opened, expected a folder or one of {', '.join(SCHEMES)}")
        try:
            return ts.KvStore.open(str(path).rstrip("/") + "/").result()
        except ValueError as error:
            raise UserError(f"{path} cannot be opened ({short(error)}); write a folder, or the URL of one") from error
    return ts.KvStore.open({"driver": "file", "path": os.path.abspath(path) + "/"}).result()


def names(root: ts.KvStore) -> list[str]:
    """Every file below `root`, by its path relative to it."""
    return sorted(key.decode() for key in root.list().result())


def checksums(root: ts.KvStore, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of the files `keys` below `root`."""
    keys = sorted(keys)

    def one(key: str) -> dict[str, Any]:
        value = _read(root, key)
        return {"bytes": len(value), "sha256": sha256(value).hexdigest()}

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(keys, pool.map(one, keys), strict=True))


@contextmanager
def writing_store(path: str | Path) -> Iterator[None]:
    """Turns write errors of tensorstore or Python (full disk, no permission) into a `UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, UserError) or (isinstance(error, ValueError) and type(error) is not ValueError):
            raise
        raise UserError(
            f"{path} cannot be written ({short(error)}); make room or give the right to write there, or write another "
            "out=..."
        ) from error


def short(error: BaseException) -> str:
    """The end of a tensorstore message, which names the cause, without the spec that it appends."""
    text = " ".join(str(error).split("[tensorstore_spec")[0].split("[os_error_code")[0].split()).rstrip(" [")
    return text if len(text) <= 240 else f"...{text[-240:]}"


def hash_of(path: str | Path, root: ts.KvStore, key: str) -> str:
    """The sha256 of one file of a store; a local one is read in pieces."""
    return sha256(_read(root, key)).hexdigest() if is_bucket(path) else hash_file(Path(path) / key)


def _read(root: ts.KvStore, key: str) -> bytes:
    found = root.read(key).result()
    if found.state != "value":
        raise UserError(f"the store is damaged: {key} is missing; harvest it again")
    return found.value
