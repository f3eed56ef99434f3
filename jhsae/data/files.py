"""A store's folder, local or in a bucket, as a key-value store; and checksums of what is in it."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import tensorstore as ts


def is_bucket(path: str | Path) -> bool:
    """True for ``gs://``, ``s3://`` and other URLs that tensorstore opens."""
    return "://" in str(path)


def kvstore(path: str | Path) -> ts.KvStore:
    """The key-value view of a store's folder, local or in a bucket."""
    if is_bucket(path):
        return ts.KvStore.open(str(path).rstrip("/") + "/").result()
    return ts.KvStore.open({"driver": "file", "path": os.path.abspath(path) + "/"}).result()


def names(root: ts.KvStore) -> list[str]:
    """Every file below `root`, by its path relative to it."""
    return sorted(key.decode() for key in root.list().result())


def checksums(root: ts.KvStore, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of the files `keys` below `root`."""
    keys = sorted(keys)

    def one(key: str) -> dict[str, Any]:
        value = root.read(key).result().value
        return {"bytes": len(value), "sha256": sha256(value).hexdigest()}

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(keys, pool.map(one, keys), strict=True))
