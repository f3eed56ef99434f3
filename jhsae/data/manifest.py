"""The manifest of an activation store: content, origin, and a checksum of every file.

It is written last: a folder without ``manifest.json`` is an incomplete harvest. ``SHA256SUMS`` beside it covers
the manifest as well; stores of format 2 and older have none.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from jhsae.data.files import hash_of, kvstore
from jhsae.data.layout import METADATA, ArrayLayout, arrays_of
from jhsae.data.manifest_fields import check_fields, check_files
from jhsae.errors import UserError
from jhsae.files import bounded, checksums
from jhsae.files.folders import is_bucket

logger = logging.getLogger(__name__)
NAME = "manifest.json"
FORMAT = 3
WITHOUT_CHECKSUMS = 2  # the last format without SHA256SUMS; its chunks of zeros may be absent
ADDED = {1: {"writers": [1]}}  # values of later fields for stores of an older format
HASH_ON_OPEN_BYTES = 2 * 10**9
ARRAYS = (".npy", ".pt", ".pth", ".safetensors", ".parquet")  # what jhsae store reads
PACKAGES = ("jhsae", "jax", "numpy", "tensorstore", "transformers", "datasets")


@dataclass(frozen=True)
class Origin:
    """Provenance of the rows; its fields are fields of the manifest.

    Args:
        model: The name of the language model, as it was written.
        layer: Number of blocks that have run (0: the scaled embeddings).
        tokenizer: Name and hash of the tokenizer, the special tokens that frame sequences, and the model.
        dataset: The text source's ``describe()``.
        documents: Number of documents that end inside the harvest.
        seed: Determines the order of the documents and of the rows.
        config: The harvest's config as plain data.
        config_hash: Its hash (`jhsae.config.config_hash`); empty for a store that no config made.
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
    """Metadata of a store.

    `model` to `config_hash` are those of `Origin`; `embed`, `mean` to `total_variance` those of `Statistics`.

    Args:
        format: The version of the format of the store.
        dtype: That of the stored activations: float32, bfloat16 or int8.
        rows: Number of activations.
        sequences: Number of packed sequences.
        context: Tokens of a sequence.
        shard_rows: Rows of a file.
        chunk_rows: Rows of a chunk, the unit that is read.
        writers: How many processes wrote it (several entries when it was resumed with another number); the rows and
            their order do not depend on it, their last bits may, because it decides the shapes that a device computes.
        versions: Package -> version, of those that a harvest depends on.
        files: Name -> ``bytes`` and ``sha256``, of every file except the manifest and ``SHA256SUMS``.
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
        return bounded.to_json(asdict(self) | {"mean": self.mean.tolist()}, indent=1)

    @classmethod
    def from_json(cls, text: bytes, where: str) -> "Manifest":
        """Parses a manifest.

        Args:
            text: JSON.
            where: The file, for messages.

        Raises:
            UserError: Another format, or an invalid field.
        """
        raw = bounded.as_object(bounded.parse_json(text, where), where)
        found = raw.get("format")
        raw = ADDED.get(found if isinstance(found, int) else 0, {}) | raw
        if type(found) is not int or not 1 <= found <= FORMAT or set(raw) != {f.name for f in fields(cls)}:
            raise UserError(
                f"{where} is a manifest of format {str(found)[:20]}, this version reads formats up to {FORMAT}; "
                "harvest again into a new folder"
            )
        check_fields(raw, where)
        manifest = cls(**raw | {"mean": np.array(raw["mean"], np.float64)})
        check_files(manifest.files, manifest.arrays(), manifest.zeros, where)
        return manifest

    def arrays(self) -> dict[str, ArrayLayout]:
        """The arrays of the store."""
        tokens = (self.sequences, self.context)
        return arrays_of(self.dtype, self.rows, self.embed, tokens, self.shard_rows, self.chunk_rows)

    @property
    def zeros(self) -> bool:
        """Whether chunks of zeros may be absent from its files."""
        return self.format <= WITHOUT_CHECKSUMS

    def identity_of_files(self) -> str:
        """The identity of a store before format 3: a hash of the checksums of its files."""
        return sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of the store at `path`; UserError where it is missing, incomplete or damaged."""
    return read_identified(path)[0]


def read_identified(path: str | Path) -> tuple[Manifest, str]:
    """The manifest, and the sha256 of its text, which identifies the store."""
    if not is_bucket(path) and (example := _array_in(Path(path))):
        raise UserError(
            f"{path} is no activation store but {example}; write jhsae store {path} out=FOLDER, and name that folder"
        )
    if not is_bucket(path) and not Path(path).is_dir():
        cut = ": a harvest of it was cut off; run the harvest again" if Path(f"{path}.partial").exists() else ""
        raise UserError(f"the activation store {path} does not exist{cut or '; run jhsae harvest first'}")
    text, sums = (_text(path, name) for name in (NAME, checksums.NAME))
    if text is None:
        raise UserError(f"{path} has no {NAME}: an incomplete harvest, or not a store; harvest into a new folder")
    found = sha256(text).hexdigest()
    known = None if sums is None else checksums.parse(sums, f"{path}/{checksums.NAME}")
    if known is not None and known.pop(NAME, None) != found:
        raise UserError(f"the store {path} is damaged: the checksum of {NAME} differs; harvest it again")
    manifest = Manifest.from_json(text, f"{path}/{NAME}")
    if known is None and not manifest.zeros:
        raise UserError(f"the store {path} has no {checksums.NAME}, which belongs to it; copy or harvest it again")
    if known is None:
        logger.warning(f"{path}: an older version wrote this store, whose manifest carries no checksum")
    elif known != {name: file["sha256"] for name, file in manifest.files.items()}:
        raise UserError(f"the store {path} is damaged: {checksums.NAME} and {NAME} differ; harvest it again")
    return manifest, found


def _array_in(path: Path) -> str:
    """What `path` is, where it is an array or a folder of such and no store; "" otherwise."""
    if path.is_file() and path.suffix in ARRAYS:
        return f"a {path.suffix} file"
    if not path.is_dir() or (path / NAME).exists():
        return ""
    found = sorted(file.name for file in path.iterdir() if file.suffix in ARRAYS)
    return f"a folder of arrays ({found[0]})" if found else ""


def _text(path: str | Path, name: str) -> bytes | None:
    if is_bucket(path):
        found = kvstore(path).read(name).result()
        return found.value if found.state == "value" else None
    file = Path(path) / name
    return bounded.read_bytes(file, bounded.JSON_BYTES) if file.exists() or file.is_symlink() else None


def verify(path: str | Path, manifest: Manifest) -> None:
    """Compares every file with the manifest: its size, and its sha256 while all together are below 2 GB.

    Of larger stores, and of those in buckets, it is the descriptions of the arrays alone that are compared; the rest
    relies on the crc32c of every chunk, checked as it is read.
    """
    small = sum(known["bytes"] for known in manifest.files.values()) < HASH_ON_OPEN_BYTES
    for name, known in [] if is_bucket(path) else manifest.files.items():
        file = Path(path) / name
        if not file.is_file():
            if manifest.zeros and known["bytes"] == 0 and not file.exists():
                continue  # a shard of zeros, which versions before format 3 did not write
            raise UserError(f"the store {path} is damaged: {name} is missing; harvest it again")
        if (size := file.stat().st_size) != known["bytes"]:
            raise UserError(
                f"the store {path} is damaged: {name} has {size} bytes, not {known['bytes']}; harvest again"
            )
    few = [name for name in manifest.files if name.endswith(METADATA)]
    root = kvstore(path)
    for name in few if is_bucket(path) or not small else manifest.files:
        known = manifest.files[name]
        if known["bytes"] and known["sha256"] != hash_of(path, root, name):
            raise UserError(f"the store {path} is damaged: the checksum of {name} differs; harvest it again")


def refuse_existing(out: str | Path, config_hash: str) -> None:
    """Raises UserError when `out` holds anything: a store is never overwritten."""
    if is_bucket(out):
        taken = kvstore(out).read(NAME).result().state == "value"
        finished = taken
    else:
        folder = Path(out)
        taken = (folder.is_dir() and any(folder.iterdir())) or (os.path.lexists(folder) and not folder.is_dir())
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
