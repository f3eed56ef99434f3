"""Reads the files that a report is made from: run folders, manifests of stores, a teacher.

Nothing is computed here, and no array is read. A file that training or evaluation always writes is an error where it
is missing; a store that has moved away, or a number that an older version did not record, is shown as missing.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jhsae.errors import UserError
from jhsae.files import bounded
from jhsae.files.forms import COUNT, NUMBER, OBJECT, PLAIN, TEXT, Each, Kind, check

Json = dict[str, Any]
METRIC = Kind(
    "a number, null or a histogram", lambda value: value is None or isinstance(value, dict) or NUMBER.test(value)
)
DENSITY = {"density?": {"log10_edges": [NUMBER], "counts": [COUNT]}}
ROOTS = {"roots": COUNT, "found": NUMBER, "best_f1": NUMBER}
SHARE = {"share": NUMBER, "features": COUNT, "chance": NUMBER, "chance_p95": NUMBER, "p": NUMBER, "sentence?": TEXT}
SCORES = ("mcc", "f1", "matched_f1", "any_mcc", "any_f1", "feature_f1")
TRUTH = {
    "levels?": [{"level": COUNT, "features": COUNT, "latents": COUNT, **{f"{name}?": NUMBER for name in SCORES}}],
    "roots?": {"any?": ROOTS, "parents?": ROOTS, "prefix?": ROOTS},
    "tree?": SHARE | {"by_level?": Each(SHARE)},
    "edges?": SHARE | {"by_level?": Each(SHARE)},
    "absorption?": {"hard?": NUMBER, "hard_excess?": NUMBER, "soft?": NUMBER},
    "hedging?": {"hedging?": NUMBER, "chance?": NUMBER},
    "violations?": NUMBER,
    "siblings?": {"largest?": NUMBER, "mean?": NUMBER},
}
LABELS = {"sentences?": [TEXT]}
RESULT = {
    "config_hash": TEXT,
    "commit?": TEXT,
    "evaluation": {"store?": TEXT, "lm?": TEXT, "truth?": TEXT, "sequences?": COUNT},
    "metrics": Each(METRIC),
    "truth?": TRUTH,
    "labels?": LABELS,
    "steering?": LABELS,
}
ABOUT = {
    "name": TEXT,
    "config_hash": TEXT,
    "commit?": TEXT,
    "store": {"path": TEXT, "sha256": TEXT},
    "versions?": OBJECT,
    "platform?": TEXT,
    "device_kind?": TEXT,
    "device_count?": COUNT,
}
SLOT = {"_target_": TEXT}
CONFIG = {
    "data?": {"batch?": COUNT, "normalize?": SLOT},
    "objective?": Each(SLOT),
    "init?": [SLOT],
    "constraint?": SLOT,
    "weights?": OBJECT,
    "stages?": [{"name": TEXT, "steps": COUNT, "weights?": OBJECT}],
    "seed?": PLAIN,
}
LOGGED = Kind("a number, a string or null", lambda value: value is None or PLAIN.test(value))
LATENT = {
    "feature": COUNT,
    "frequency": NUMBER,
    "name?": TEXT,
    "contexts": [{"value": NUMBER, "tokens": [TEXT], "at": COUNT}],
}
CHOSEN = {"chosen?": TEXT, "coherence?": NUMBER, "tokens?": [TEXT]}
CONTEXTS = [LATENT | CHOSEN | {"atoms?": [LATENT | {"atom?": COUNT}]}]
MANIFEST = {
    "model": PLAIN,
    "layer": COUNT,
    "dataset": OBJECT,
    "rows": COUNT,
    "embed": COUNT,
    "dtype": TEXT,
    "sequences": COUNT,
    "context": COUNT,
    "files": Each({"bytes": COUNT, "sha256": TEXT}),
    "config?": OBJECT,
    "config_hash?": TEXT,
}
CONCEPT = {"name": TEXT, "tokens": [COUNT]}
TEACHER = {
    "concepts": [CONCEPT | {"children": [CONCEPT]}],
    "provenance?": OBJECT,
    "validation?": Each(
        Kind("a section of numbers", lambda value: value is None or isinstance(value, dict | int | float))
    ),
}


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
        return bounded.parse_json(self.line, self.folder, nan=True)

    @cached_property
    def metrics(self) -> Json:
        """The metrics of that row, without those that are null."""
        return {key: value for key, value in self.result["metrics"].items() if value is not None}

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
    lines = _lines(results) if os.path.lexists(results) else []
    if not lines:
        raise UserError(f"{folder} has not been evaluated; run jhsae evaluate with run={folder} first")
    about = bounded.read_object(path / "run.json")
    check(about, ABOUT, path / "run.json")
    newest = bounded.as_object(bounded.parse_json(lines[-1], results, nan=True), results)
    check(newest, {"config_hash": TEXT}, results)
    if newest["config_hash"] != about["config_hash"]:
        raise UserError(
            f"{folder} was evaluated as config {newest['config_hash']}, but its run.json says "
            f"{about['config_hash']}: it was trained again since; run jhsae evaluate with run={folder}"
        )
    check(newest, RESULT, results)
    check(newest["metrics"], DENSITY, results)
    density = newest["metrics"].get("density") or {"log10_edges": [0.0], "counts": []}
    if len(density["log10_edges"]) != len(density["counts"]) + 1:
        raise UserError(f"{results}: 'density' has no edge before and after every count; run jhsae evaluate again")
    return Run(
        folder=folder,
        name=about["name"],
        about=about,
        config=_config(path / "config.yaml"),
        steps=_rows(path / "metrics.jsonl", {"step": COUNT}),
        timing=_rows(path / "timing.jsonl", {"seconds": NUMBER}),
        line=lines[-1],
        contexts=_contexts(path / "contexts.json"),
        trained_on=read_source(about["store"]["path"]),
        evaluated_on=read_source(at(newest, "evaluation.store") or ""),
    )


def read_source(path: str) -> Source:
    """The manifest of a store in a local folder."""
    file = Path(path) / "manifest.json"
    if not path or not os.path.isfile(file):
        return Source(path, {})
    manifest = bounded.read_object(file)
    check(manifest, MANIFEST, file)
    return Source(path, manifest)


def read_teacher(folder: str) -> Json:
    """Concepts, provenance and validation of a teacher."""
    file = Path(folder) / "teacher.json"
    if not os.path.isfile(file):
        raise UserError(f"there is no teacher in {folder} (no teacher.json in it); write teacher=null, or its folder")
    found = bounded.read_object(file)
    check(found, TEACHER, file)
    return found


def at(tree: Any, path: str) -> Any:
    """The value at ``a.b.c`` in nested mappings, or None where there is none."""
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _renamed(run: Run) -> Run:
    return Run(**{**{name: getattr(run, name) for name in Run.__dataclass_fields__}, "name": run.folder})


def _config(path: Path) -> Json:
    config = bounded.load_yaml(path)
    check(config, CONFIG, path)
    return config


def _contexts(path: Path) -> list[Json] | None:
    if not os.path.lexists(path):
        return None
    found = bounded.read_json(path)
    check(found, CONTEXTS, path)
    latents = [latent for one in found for latent in (one, *(one.get("atoms") or []))]
    for context in (context for latent in latents for context in latent["contexts"]):
        if context["at"] >= len(context["tokens"]):
            raise UserError(f"{path}: a context has {len(context['tokens'])} tokens, but fires at {context['at']}")
    return found


def _rows(path: Path, form: Json) -> list[Json]:
    """The rows of a log, without null values; empty where there is no such file."""
    rows = bounded.read_lines(path) if os.path.lexists(path) else []
    for number, row in enumerate(rows, start=1):
        check(row, form, f"{path}, row {number}")
        check(row, Each(LOGGED), f"{path}, row {number}")
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _lines(path: Path) -> list[str]:
    """The rows of a JSON-lines file, each of them checked; a last one that a kill cut short is left out."""
    text = bounded.read_bytes(path, bounded.LINES_BYTES // 4)
    whole = text if text.endswith(b"}") else text[: text.rfind(b"\n") + 1]
    lines = [line for line in whole.split(b"\n") if line.strip()]
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number},"
        bounded.as_object(bounded.parse_json(line, place, nan=True), place)
    return [line.decode("utf-8") for line in lines]
