"""Several runs in one process: each folder is byte for byte that of a run by itself, but for the times."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import runs
from small_lm import EMBED, save_model_and_text

from jhsae import config as cfg
from jhsae.activations.streams import Streams
from jhsae.data import Store
from jhsae.data.loader import Batches
from jhsae.errors import UserError
from jhsae.files.lock import owned
from jhsae.training import logs
from jhsae.training.config import Train
from jhsae.training.many import FailedRunsError, train_many
from jhsae.training.run import train
from jhsae.training.timing import timing

CONTEXT = 10
RELU = {"_target_": "jhsae.sparsify.ReLU"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a language model of three blocks, its text, and a store."""
    folder = tmp_path_factory.mktemp("many")
    runs.store(folder / "store")
    return save_model_and_text(folder, 900, shortest=4)


def live(place: Path, out: str, layer: int, *overrides: str, features: int = 24, steps: int = 20) -> Train:
    slot = {
        "_target_": "jhsae.activations.live.LiveActivations",
        "path": str(place / "lm"),
        "layer": layer,
        "text": {"_target_": "jhsae.data.TextFiles", "paths": str(place / "text.txt")},
        "rows": 8000,
        "context": CONTEXT,
        "sequences": 8,
        "buffer_rows": 512,
    }
    changes = {
        "data": {"live": slot, "batch": 64, "normalize": {"_target_": "jhsae.data.CenterScale"}},
        "sae": {
            "_target_": "jhsae.sae.FlatSAE",
            "embed": EMBED,
            "features": features,
            "sparsifier": {"_target_": "jhsae.sparsify.TopK", "k": 3},
        },
        "objective": {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}},
        "weights": {},
        "init": [],
        "stages": [{"name": "all", "steps": steps, "learning_rate": 1e-2}],
    }
    return load(place, out, *overrides, **changes)


def load(place: Path, out: str, *overrides: str, **changes) -> Train:
    (place / out).parent.mkdir(parents=True, exist_ok=True)
    return cfg.load(Train, runs.train_config((place / out).parent, place / "store", place / out, **changes), overrides)


def three(place: Path, out: str) -> list[Train]:
    """Another layer, width, length, seed and sparsifier each."""
    return [
        live(place, f"{out}/a", 1),
        live(place, f"{out}/b", 2, "seed=3", "sae.sparsifier={_target_: jhsae.sparsify.BatchTopK, k: 3}", steps=33),
        live(place, f"{out}/c", 2, "mesh.data=null", features=40, steps=9),
    ]


def of_stores(place: Path, out: str) -> list[Train]:
    """One store: the smallest complete config, another seed and architecture, another order, another batch."""
    sae = {"_target_": "jhsae.sae.FlatSAE", "embed": runs.EMBED, "features": 24, "sparsifier": RELU}
    objective = {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}}
    stages = [{"name": "all", "steps": 11, "learning_rate": 1e-2}]
    flat = {"sae": sae, "objective": objective, "weights": {}, "init": [], "stages": stages}
    return [
        load(place, f"{out}/tree"),
        load(place, f"{out}/flat", "seed=1", **flat),
        load(place, f"{out}/order", "data.seed=5"),
        load(place, f"{out}/batch", "data.batch=128", "data.streams=2", "stages.1.steps=4"),
    ]


MAKE = {"live": three, "store": of_stores}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run but times and checkpoints, without the name of the folder above it."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and "checkpoints" not in file.parts]
    mine = str(folder.parent).encode()
    return {
        str(file.relative_to(folder)): file.read_bytes().replace(mine, b"")
        for file in files
        if file.name not in {"timing.jsonl", "SHA256SUMS"}
    }


@pytest.fixture(scope="module", params=["live", "store"])
def kind(request, place) -> str:
    """Runs of that kind, each by itself, are in ``alone-KIND``."""
    for config in MAKE[request.param](place, f"alone-{request.param}"):
        train(config)
    return request.param


def same_as_alone(place: Path, kind: str, out: str) -> None:
    for config in MAKE[kind](place, out):
        name = Path(config.out).name
        together, alone = content(place / out / name), content(place / f"alone-{kind}" / name)
        assert together.keys() == alone.keys() and "sae/sae.safetensors" in alone
        for file, data in together.items():
            assert data == alone[file], f"{name}/{file}"


def test_together_they_write_the_bytes_of_each_by_itself(place, kind, caplog):
    caplog.set_level(logging.INFO, "jhsae")
    configs = MAKE[kind](place, f"together-{kind}")
    assert list(map(str, train_many(configs))) == [config.out for config in configs]
    same_as_alone(place, kind, f"together-{kind}")
    for config in configs:
        rows = [json.loads(line) for line in (Path(config.out) / "timing.jsonl").read_text().splitlines()]
        assert {row["beside"] for row in rows} == {len(configs) - 1} and timing(Path(config.out)) == {}
    before = {config.out: os.stat(Path(config.out) / "metrics.jsonl").st_mtime_ns for config in configs}
    caplog.clear()
    train_many(configs)
    assert caplog.text.count("is finished; nothing to do") == len(configs)
    assert before == {out: os.stat(Path(out) / "metrics.jsonl").st_mtime_ns for out in before}
