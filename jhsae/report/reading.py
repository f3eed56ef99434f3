"""What a report is made from: the files of the run folders, of their stores and of the teacher.

Nothing is computed here, and no array is read. A file that training or evaluation always writes is an error where it
is missing; a store that has moved away, or a number that an older version did not record, is shown as missing.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from jhsae.errors import UserError

Json = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """An activation store as its manifest describes it; `manifest` is empty where there is none at `path`."""

    path: str
    manifest: Json

    @property
    def tokens(self) -> int | None:
        """Tokens of text behind the rows, special ones included."""
        return self.manifest["sequences"] * self.manifest["context"] if self.manifest else None

    @property
    def sha256(self) -> str | None:
        """Of the manifest, as training writes it into run.json."""
        file = Path(self.path) / "manifest.json"
        return hashlib.sha256(file.read_bytes()).hexdigest() if self.manifest else None

    def is_known_as(self, identity: str) -> bool:
        """Whether a run that wrote down `identity` read this store; older versions hashed the list of its files."""
        files = json.dumps(self.manifest["files"], sort_keys=True) if self.manifest else ""
        return identity in (self.sha256, hashlib.sha256(files.encode()).hexdigest())


@dataclass(frozen=True)
class Run:
    """One evaluated run folder. `line` is the newest row of results.jsonl as it stands in the file."""

    folder: str
    name: str
    about: Json
    config: Json
    steps: list[Json]
    timing: list[Json]
    line: str
    contexts: list[Json] | None
    trained_on: Source
    evaluated_on: Source

    @cached_property
    def result(self) -> Json:
        """The newest row of results.jsonl."""
        return json.loads(self.line)

    @property
    def metrics(self) -> Json:
        """The numbers of that row."""
        return self.result["metrics"]

    @property
    def hierarchical(self) -> bool:
        """Whether parents and atoms were counted apart."""
        return "l0_parents" in self.metrics


def read_runs(folders: list[str]) -> list[Run]:
    """The runs in the order given. Runs of one name are told apart by their folders."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else _renamed(run) for run in runs]


def read_run(folder: str) -> Run:
    """Raises `UserError` for a folder that is no run, was not evaluated, or was trained again since."""
    path = Path(folder)
    for name in ("run.json", "config.yaml", "metrics.jsonl"):
        if not (path / name).is_file():
            raise UserError(f"{folder} is not a run folder (no {name} in it); write one that jhsae train has made")
    results = path / "results.jsonl"
    rows = _lines(results) if results.is_file() else []
    if not rows:
        raise UserError(f"{folder} has not been evaluated; run jhsae evaluate with run={folder} first")
    about, newest = _json(path / "run.json"), json.loads(rows[-1])
    if newest["config_hash"] != about["config_hash"]:
        raise UserError(
            f"{folder} was evaluated as config {newest['config_hash']}, but its run.json says "
            f"{about['config_hash']}: it was trained again since; run jhsae evaluate with run={folder}"
        )
    contexts, timing = path / "contexts.json", path / "timing.jsonl"
    return Run(
        folder=folder,
        name=about["name"],
        about=about,
        config=yaml.safe_load((path / "config.yaml").read_text()),
        steps=[json.loads(line) for line in _lines(path / "metrics.jsonl")],
        timing=[json.loads(line) for line in _lines(timing)] if timing.is_file() else [],
        line=rows[-1],
        contexts=_json(contexts) if contexts.is_file() else None,
        trained_on=read_source(about["store"]["path"]),
        evaluated_on=read_source(at(newest, "evaluation.store") or ""),
    )


def read_source(path: str) -> Source:
    """The manifest of a store in a local folder."""
    file = Path(path) / "manifest.json"
    return Source(path, _json(file) if path and file.is_file() else {})


def read_teacher(folder: str) -> Json:
    """Concepts, provenance and validation of a teacher."""
    file = Path(folder) / "teacher.json"
    if not file.is_file():
        raise UserError(f"there is no teacher in {folder} (no teacher.json in it); write teacher=null, or its folder")
    return _json(file)


def at(tree: Any, path: str) -> Any:
    """The value at ``a.b.c`` in nested mappings, or None where there is none."""
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _renamed(run: Run) -> Run:
    return Run(**{**{name: getattr(run, name) for name in Run.__dataclass_fields__}, "name": run.folder})


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); make it again") from error


def _lines(path: Path) -> list[str]:
    """The rows of a JSON-lines file, each of them checked."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}, is not JSON ({error}); remove the line, or make it again"
            ) from error
    return lines
