"""An incomplete store: its arrays, its complete groups of rows, and the manifest that completes it.

A local store is built as ``<out>.partial`` and renamed when complete; in a bucket the manifest, written last, completes
it. ``plan.json`` describes the store; ``progress-<group>.json`` is written atomically when the shards of a group are
complete, and contains their statistics and checksums. An interrupted harvest with the same plan resumes with the
missing groups; any number of processes may write.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Int32, UInt32

from jhsae.data import arrays
from jhsae.data.files import checksums, kvstore, names, writing_store
from jhsae.data.layout import ArrayLayout, arrays_of
from jhsae.data.manifest import FORMAT, NAME, Manifest, Origin, read_manifest, versions
from jhsae.data.shuffle import Group, groups
from jhsae.data.statistics import Running
from jhsae.data.storage import AbstractStorage, Channels, storage
from jhsae.errors import UserError
from jhsae.files.bounded import as_object, parse_json, to_json
from jhsae.files.checksums import NAME as SUMS
from jhsae.files.checksums import to_text
from jhsae.files.folders import PARTIAL, is_bucket, rename_synced

PLAN, PROGRESS = "plan.json", "progress-"
_PROGRESSES = ts.KvStore.KeyRange(PROGRESS, PROGRESS + "~")


@dataclass(frozen=True, eq=False)
class StorePlan:
    """Everything that determines a store, except the activations."""

    origin: Origin
    tokens: UInt32[np.ndarray, "sequences context"]
    rows: int
    embed: int
    dtype: str
    shuffle_rows: int
    shard_rows: int
    chunk_rows: int

    def record(self) -> dict[str, Any]:
        """The content of ``plan.json``."""
        sizes = {k: getattr(self, k) for k in ("rows", "embed", "dtype", "shuffle_rows", "shard_rows", "chunk_rows")}
        tokens = sha256(self.tokens.tobytes()).hexdigest()
        about = {"layer": self.origin.layer, "config_hash": self.origin.config_hash, "seed": self.origin.seed}
        return {"format": FORMAT, **about, "tokens": tokens, **sizes}

    def arrays(self) -> dict[str, ArrayLayout]:
        """The arrays of the store."""
        tokens = (self.tokens.shape[0], self.tokens.shape[1])
        return arrays_of(self.dtype, self.rows, self.embed, tokens, self.shard_rows, self.chunk_rows)

    def groups(self) -> list[Group]:
        """Every group of rows."""
        return groups(self.rows, self.shuffle_rows, self.shard_rows)


def folder_of(out: str) -> str:
    """Where the store is built."""
    return out if is_bucket(out) else out + PARTIAL


def create_or_resume(out: str, plan: StorePlan, channels: Channels | None, resume: bool) -> None:
    """Makes the folder and the arrays, or opens those of the same plan. Called by one process, before others.

    `UserError`: what is there is an unfinished store of another plan, and `resume` was asked for; without it, it is
    removed.
    """
    folder = folder_of(out)
    with writing_store(out):
        _create_or_resume(out, folder, plan, channels, resume)


def _create_or_resume(out: str, folder: str, plan: StorePlan, channels: Channels | None, resume: bool) -> None:
    root = kvstore(folder)
    before = root.read(PLAN).result()
    if before.state == "value" and resume:
        there = as_object(parse_json(before.value, f"{folder}/{PLAN}"), f"{folder}/{PLAN}")
        _same_plan(folder, there, plan.record())
        return
    if not is_bucket(out):
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir(parents=True)
    root.delete_range(_PROGRESSES).result()
    made = {name: arrays.create(root, layout) for name, layout in plan.arrays().items()}
    if plan.dtype == "int8":
        if channels is None:
            raise UserError("an int8 store needs the statistics of its channels: write channels=Channels.of(rows)")
        made["channels"].write(np.stack([channels.mean, channels.std])).result()
    made["tokens"].write(plan.tokens).result()
    root.write(PLAN, to_json(plan.record()).encode()).result()


def discard(out: str) -> None:
    """Removes the unfinished store at `out`."""
    if is_bucket(out):
        root = kvstore(out)
        for name in names(root):
            root.write(name, None).result()
    else:
        shutil.rmtree(folder_of(out), ignore_errors=True)


def storage_of(root: ts.KvStore, plan: StorePlan) -> AbstractStorage:
    """The storage of the rows; that of an int8 store has the channels that were written at its start."""
    return storage(plan.dtype, lambda: arrays.channels(root, plan.arrays()["channels"]))


class Partial:
    """The unfinished store at `out`, which `create_or_resume` has made."""

    def __init__(self, out: str, plan: StorePlan):
        self._out, self._plan = out, plan
        self._root = kvstore(folder_of(out))
        if self._root.read(PLAN).result().state != "value":
            raise UserError(
                f"this process does not see {folder_of(out)}, which another one has begun; write an out= on a file "
                "system that all of them share, or in a bucket"
            )
        self.storage = storage_of(self._root, plan)
        layouts = plan.arrays()
        self._columns = [arrays.existing(self._root, layouts[name], write=True) for name in (*self._names(), "index")]

    def missing(self) -> list[Group]:
        """Groups whose shards are incomplete, or whose progress file is damaged."""
        done = {name for name in names(self._root) if name.startswith(PROGRESS)}
        return [g for g in self._plan.groups() if _progress(g) not in done or self._recorded(g) is None]

    def start(self, first: int, values: Iterable[np.ndarray], index: Int32[np.ndarray, "rows 3"]) -> list[Any]:
        """Starts writing one shard from row `first` on; returns futures."""
        rows = slice(first, first + len(index))
        return [a[rows].write(v) for a, v in zip(self._columns, (*values, index), strict=True)]

    def record(self, group: Group, statistics: Running, writers: int) -> None:
        """Records that the shards of `group` are complete."""
        size = self._plan.shard_rows
        shards = range(group.start // size, -(-group.stop // size))
        layouts = self._plan.arrays()
        with writing_store(self._out):
            files = checksums(self._root, [layouts[name].file(i) for name in (*self._names(), "index") for i in shards])
            content = to_json({"statistics": statistics.to_dict(), "writers": writers, "files": files}).encode()
            record = sha256(content).hexdigest().encode() + b"\n" + content
            self._root.write(_progress(group), record).result()

    def _recorded(self, group: Group) -> dict[str, Any] | None:
        """The content written by `record`; None where it is missing or damaged."""
        digest, _, content = self._root.read(_progress(group)).result().value.partition(b"\n")
        return json.loads(content) if sha256(content).hexdigest().encode() == digest else None

    def seal(self) -> None:
        """Writes the manifest, which completes the store. ValueError when a group is missing."""
        if missing := self.missing():
            raise ValueError(f"groups {[group.number for group in missing]} of {self._out} are not written yet")
        done = [found for group in self._plan.groups() if (found := self._recorded(group)) is not None]
        with writing_store(self._out):
            manifest = self._manifest(done)
            text = manifest.to_json().encode()
            sums = {name: known["sha256"] for name, known in manifest.files.items()}
            sums[NAME] = sha256(text).hexdigest()
            self._root.write(SUMS, to_text(sums).encode()).result()
            self._root.write(NAME, text).result()
            if not is_bucket(self._out):
                rename_synced(Path(folder_of(self._out)), Path(self._out))
            root = kvstore(self._out)
            root.delete_range(_PROGRESSES).result()
            root.write(PLAN, None).result()

    def _names(self) -> tuple[str, ...]:
        return tuple(self.storage.columns(self._plan.embed))

    def _manifest(self, done: list[dict[str, Any]]) -> Manifest:
        statistics = Running.empty(self._plan.embed)
        files: dict[str, dict[str, Any]] = {}
        for group in done:
            statistics = statistics.merge(Running.from_dict(group["statistics"]))
            files |= group["files"]
        rest = {name for name in names(self._root) if not name.startswith(PROGRESS)} - files.keys() - {PLAN, NAME, SUMS}
        files |= checksums(self._root, rest)
        plan = self._plan
        return Manifest(
            format=FORMAT,
            **asdict(plan.origin),
            dtype=plan.dtype,
            rows=plan.rows,
            sequences=plan.tokens.shape[0],
            context=plan.tokens.shape[1],
            shard_rows=plan.shard_rows,
            chunk_rows=plan.chunk_rows,
            writers=sorted({group["writers"] for group in done}),
            **asdict(statistics.summary()),
            versions=versions(),
            files=dict(sorted(files.items())),
        )


def _progress(group: Group) -> str:
    return f"{PROGRESS}{group.number:06}.json"


def _same_plan(folder: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    if there != here:
        differ = [key for key in here if there.get(key) != here[key]]
        what = "another text" if differ == ["tokens"] else f"another configuration ({', '.join(differ)} differ)"
        raise UserError(
            f"{folder} holds a harvest of {what} that was cut off; run that one again, remove the folder, or write "
            "another out=..."
        )


def is_complete(out: str, config_hash: str) -> bool:
    """True when `out` is a complete store of this configuration."""
    if kvstore(out).read(NAME).result().state != "value":
        return False
    return read_manifest(out).config_hash == config_hash
