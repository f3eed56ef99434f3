"""The commands that are killed, at sizes of seconds, and what of their output must be equal in the end.

Every command runs in a working directory of its own with relative outputs, so that paths in the files are equal too.
"""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml

STEPS, EVERY = 60, 4
CLOCKED = {"train_seconds", "tokens_per_second"}  # wall-clock measurements within rows of results
# timing.jsonl and the report's page hold wall-clock times; checkpoints are the means, not the result
NOT_COMPARED = ("timing.jsonl", "report.html", "checkpoints")
CREATED = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z")  # of a Neuronpedia bundle


@dataclass(frozen=True)
class Case:
    """One verb with its arguments, relative to a working directory that `prepare` fills."""

    name: str
    words: tuple[str, ...]
    prepare: Callable[[Path], None]
    out: str = "out"


def cases(shared: Path) -> list[Case]:
    """All cases; `shared` holds what `make_inputs` made."""
    found = [
        Case(f"train, {name}", ("train", "train.yaml"), _writes(train_config(shared, name)))
        for name in ("scale", "geometry", "noisy routing", "BatchTopK", "resampling")
    ]

    def run(folder: Path) -> None:
        shutil.copytree(shared / "run" / "out", folder / "run")

    store = f"store={shared / 'heldout'}"
    harvest = ("harvest", "harvest/embedded.yaml", "rows=6000", "shuffle_rows=2048", "out=out")
    return [
        *found,
        Case("harvest", harvest, lambda folder: None),
        Case("harvest, int8", (*harvest, "dtype=int8"), lambda folder: None),
        Case("evaluate", ("evaluate", "run=run", store, "lm=embedded", "sequences=8"), run, "run"),
        Case("export, SAELens", ("export", "run=run", "format=saelens", "out=out", store), run),
        Case("export, Neuronpedia", ("export", "run=run", "format=neuronpedia", "rows=1000", "out=out", store), run),
        Case("quickstart", ("quickstart", "quickstart.yaml"), _quickstart),
    ]


def make_inputs(shared: Path, jhsae: Callable[[Path, tuple[str, ...]], None]) -> None:
    """A synthetic store and teacher for `train`; a held-out store and a trained run for the verbs that read them."""
    from jhsae.data import write_array

    rng = np.random.default_rng(0)
    x = (rng.random((2048, 48)) * (rng.random((2048, 48)) < 0.1)) @ rng.normal(size=(48, 32))
    write_array(shared / "store", x.astype(np.float32), shard_rows=512, chunk_rows=64)
    jhsae(shared, ("harvest", "harvest/embedded_heldout.yaml", "rows=1500", "out=heldout"))
    jhsae(shared, ("teach", "quickstart/teach.yaml", "parents=12", "sub=4", "out=teacher"))
    folder = shared / "run"
    folder.mkdir()
    flat = {"_target_": "jhsae.sae.FlatSAE", "embed": 256, "features": 64, "sparsifier": _part("TopK", k=4)}
    _write(folder / "train.yaml", _train(shared / "heldout", flat, [_stage("a", 20)]))
    jhsae(folder, ("train", "train.yaml"))


def train_config(shared: Path, name: str) -> dict[str, Any]:
    """The config of one kind of training run."""
    noisy = _part("GumbelTopK", k=4, temperature={"_target_": "jhsae.schedule.Linear", "start": 1.5, "end": 0.5,
                                                  "steps": STEPS})  # fmt: skip
    tree = {"_target_": "jhsae.sae.HierarchicalSAE", "embed": 32, "experts": 64, "sub": 2, "atoms": 4}
    tree |= {"pick": _part("TopK", k=1)}
    flat = {"_target_": "jhsae.sae.FlatSAE", "embed": 32, "features": 128}
    if name == "scale":
        sae = tree | {"route": _part("OffsetTopK", k=4, offset=0.1)}
        more = {"objective": _terms("SquaredError", "ParentsOnly", "L1Active", "CrossOrthogonality")}
        return _train(shared / "store", sae, [_stage("a", STEPS)]) | more
    if name == "geometry":
        changes: dict[str, Any] = {"base": "quickstart/geometry.yaml", "out": "out", "teacher": str(shared / "teacher")}
        changes |= {"data": {"store": str(shared / "heldout"), "batch": 128}, "sae": {"experts": 12, "sub": 4}}
        stages = [_stage("freeze", STEPS // 2) | {"freeze": ["router_dec", "up", "atom_dec"]}, _stage("adapt", STEPS)]
        return changes | {"stages": stages, "log_every": 1, "checkpoint_every": EVERY}
    if name == "noisy routing":
        return _train(shared / "store", tree | {"route": noisy, "biases": ["encoder", "decoder"]}, [_stage("a", STEPS)])
    if name == "BatchTopK":
        sae = flat | {"sparsifier": _part("BatchTopK", k=4)}
        return _train(shared / "store", sae, [_stage("a", STEPS)]) | {"objective": _terms("SquaredError", "AuxK")}
    sae = flat | {"sparsifier": _part("TopK", k=2)}
    resample = {"_target_": "jhsae.resampling.Resample", "every": 10, "until": STEPS - 10}
    return _train(shared / "store", sae, [_stage("a", STEPS)]) | {"resampling": resample, "dead_window": 5}


def result(folder: Path) -> dict[str, str]:
    """File -> sha256 of its content, without wall-clock times; of the report's page, that it is there."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or any(word in NOT_COMPARED for word in name.split("/")[:-1]):
            continue
        if file.name in NOT_COMPARED:
            found[name] = "there"
            continue
        content = file.read_bytes()
        if file.name == "results.jsonl":
            rows = [json.loads(line) for line in content.splitlines()]
            content = json.dumps([_unclocked(row) for row in rows]).encode()
        if file.name == "SHA256SUMS":  # the files themselves are compared
            content = b"\n".join(line[64:] for line in content.splitlines())
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        found[name] = sha256(CREATED.sub(b"", content)).hexdigest()
    return found


def _unclocked(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"metrics": {k: v for k, v in row["metrics"].items() if k not in CLOCKED}}


def _part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"jhsae.sparsify.{name}", **arguments}


def _terms(*names: str) -> dict[str, Any]:
    return {name.lower(): {"_target_": f"jhsae.losses.{name}"} for name in names}


def _stage(name: str, steps: int) -> dict[str, Any]:
    return {"name": name, "steps": steps, "learning_rate": 1e-2}


def _train(store: Path, sae: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    data = {"store": str(store), "batch": 128, "normalize": {"_target_": "jhsae.data.CenterScale"}}
    top = {"out": "out", "data": data, "sae": sae, "objective": _terms("SquaredError"), "stages": stages}
    return top | {"log_every": 1, "checkpoint_every": EVERY}


def _writes(config: dict[str, Any]) -> Callable[[Path], None]:
    return lambda folder: _write(folder / "train.yaml", config)


def _write(path: Path, config: dict[str, Any]) -> None:
    from jhsae.config import find

    based = {"base": str(find(config["base"]).resolve())} if "base" in config else {}
    path.write_text(yaml.safe_dump(config | based))


def _quickstart(folder: Path) -> None:
    """The quickstart's own configs, cut down."""
    runs = {"data": {"batch": 128}, "checkpoint_every": EVERY}
    small: dict[str, dict[str, Any]] = {
        "harvest/embedded": {"rows": 4000},
        "harvest/embedded_heldout": {"rows": 1500},
        "quickstart/teach": {"parents": 12, "sub": 4},
        "quickstart/scale": runs | {"stages": [_stage("a", 12)], "sae": {"experts": 24}},
        "quickstart/geometry": runs | {"stages": [_stage("a", 6), _stage("b", 6)], "sae": {"experts": 12, "sub": 4}},
        "quickstart/topk": runs | {"stages": [_stage("a", 12)]},
    }
    for name, changes in small.items():
        _write(folder / f"{Path(name).name}.yaml", {"base": f"{name}.yaml"} | changes)
    top = {"out": "out", "harvest": "embedded.yaml", "heldout": "embedded_heldout.yaml", "teach": "teach.yaml"}
    top |= {"train": ["scale.yaml", "geometry.yaml", "topk.yaml"], "sequences": 8}
    _write(folder / "quickstart.yaml", {"base": "quickstart.yaml"} | top)
