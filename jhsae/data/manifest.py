"""The manifest of an activation store: what it holds, where that came from, and a checksum of every file.

It is written last: a folder without ``manifest.json`` is a harvest that did not finish.
"""

import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from jhsae.data.files import checksums, is_bucket, kvstore
from jhsae.errors import UserError

NAME = "manifest.json"
FORMAT = 2
ADDED = {1: {"writers": [1]}}  # what a store of an older format would say of the fields that came later
HASH_ON_OPEN_BYTES = 2 * 10**9
PACKAGES = ("jhsae", "jax", "numpy", "tensorstore", "transformers", "datasets")


@dataclass(frozen=True)
class Origin:
    """Where the rows come from; written into the manifest field by field.

    `layer` counts the blocks that have run (0: the scaled embeddings). `tokenizer` holds name and hash,
    `dataset` the text source's ``describe()``; `documents` counts the documents that end inside the
    harvest.
    """

    model: str
    layer: int
    tokenizer: dict[str, Any]
    dataset: dict[str, Any]
    documents: int
    seed: int
    config: dict[str, Any]
    config_hash: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """Everything known about a store. Norms and `mean` are in the units of the stored activations.

    `writers` lists how many processes wrote it (more than one number when it was resumed with another); the rows and
    their order do not depend on it, their last bits may, because it decides the shapes that a device computes.
    """

    format: int
    model: str
    layer: int
    tokenizer: dict[str, Any]
    dataset: dict[str, Any]
    documents: int
    seed: int
    config: dict[str, Any]
    config_hash: str
    dtype: str
    rows: int
    embed: int
    sequences: int
    context: int
    shard_rows: int
    chunk_rows: int
    writers: list[int]
    mean: Float64[np.ndarray, "embed"]
    mean_norm: float
    rms_norm: float
    min_norm: float
    max_norm: float
    total_variance: float
    versions: dict[str, str]
    files: dict[str, dict[str, Any]]

    def to_json(self) -> str:
        """The text of ``manifest.json``; floats are written so that they read back exactly."""
        return json.dumps(asdict(self) | {"mean": self.mean.tolist()}, indent=1)

    @classmethod
    def from_json(cls, text: bytes, where: str) -> "Manifest":
        """Raises UserError when the text is not a manifest of this format."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise UserError(f"{where} is not readable JSON ({error}); harvest again into a new folder") from error
        raw = ADDED.get(raw.get("format"), {}) | raw
        if raw.get("format") not in (*ADDED, FORMAT) or set(raw) != {f.name for f in fields(cls)}:
            raise UserError(
                f"{where} is a manifest of format {raw.get('format')}, this version reads formats up to {FORMAT}; "
                "harvest again into a new folder"
            )
        return cls(**raw | {"mean": np.array(raw["mean"], np.float64)})


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of the store at `path`; UserError where there is no finished store."""
    if not is_bucket(path) and not Path(path).is_dir():
        cut = ": a harvest of it was cut off; run the harvest again" if Path(f"{path}.partial").exists() else ""
        raise UserError(f"the activation store {path} does not exist{cut or '; run jhsae harvest first'}")
    found = kvstore(path).read(NAME).result()
    if found.state != "value":
        raise UserError(f"{path} has no {NAME}: an incomplete harvest, or not a store; harvest into a new folder")
    return Manifest.from_json(found.value, f"{path}/{NAME}")


def verify(path: str | Path, manifest: Manifest) -> None:
    """Compares every file with the manifest: its size, and its sha256 while all together are below 2 GB.

    Larger stores rely on the crc32c of every chunk, checked as it is read. In a bucket nothing is checked
    here.
    """
    if is_bucket(path):
        return
    for name, known in manifest.files.items():
        file = Path(path) / name
        if not file.is_file():
            raise UserError(f"the store {path} is damaged: {name} is missing; harvest it again")
        if (size := file.stat().st_size) != known["bytes"]:
            raise UserError(
                f"the store {path} is damaged: {name} has {size} bytes, not {known['bytes']}; harvest again"
            )
    if sum(known["bytes"] for known in manifest.files.values()) < HASH_ON_OPEN_BYTES:
        found = checksums(kvstore(path), manifest.files)
        for name, known in manifest.files.items():
            if found[name]["sha256"] != known["sha256"]:
                raise UserError(f"the store {path} is damaged: the checksum of {name} differs; harvest it again")


def refuse_existing(out: str | Path, config_hash: str) -> None:
    """Raises UserError when `out` holds anything: a store is never overwritten."""
    if is_bucket(out):
        taken = kvstore(out).read(NAME).result().state == "value"
        finished = taken
    else:
        folder = Path(out)
        taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
        finished = (folder / NAME).is_file()
    if not taken:
        return
    if finished and config_hash and read_manifest(out).config_hash == config_hash:
        raise UserError(
            f"the store {out} exists already and was made by this very configuration: use it as it is, "
            "or write another out=..."
        )
    raise UserError(f"{out} exists and is never overwritten; write another out=...")


def versions() -> dict[str, str]:
    """The versions of the packages that a harvest depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
