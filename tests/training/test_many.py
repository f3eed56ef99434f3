"""Several runs in one process: each folder is byte for byte that of a run by itself, but for the times."""

import json
import logging
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import runs
from own_process import in_own_process
from small_lm import EMBED, save_model_and_text

from jhsae import config as cfg
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


def at_row(monkeypatch, step, act):
    """Does something when a row of metrics of `step` is written for the first time."""
    write, done = logs.JsonLines.write, []

    def and_act(lines, row):
        write(lines, row)
        if row["step"] == step and "loss" in row and not done:
            done.append(act())

    monkeypatch.setattr(logs.JsonLines, "write", and_act)


def of_stores(place: Path, out: str) -> list[Train]:
    """One store: the smallest complete config, another architecture, another order, another batch."""
    sae = {"_target_": "jhsae.sae.FlatSAE", "embed": runs.EMBED, "features": 24, "sparsifier": RELU}
    objective = {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}}
    stages = [{"name": "all", "steps": 11, "learning_rate": 1e-2}]
    flat = {"sae": sae, "objective": objective, "weights": {}, "init": [], "stages": stages}
    return [
        load(place, f"{out}/tree", "stages.0.steps=3", "stages.1.steps=8"),
        load(place, f"{out}/flat", "seed=1", **flat),
        load(place, f"{out}/order", "data.seed=5", **flat),
        load(place, f"{out}/batch", "data.batch=128", "data.streams=2", "stages.0.steps=15", **flat),
    ]


MAKE = {"live": three, "store": of_stores}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run but times and checkpoints, without the name of the folder above it."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and "checkpoints" not in file.parts]
    above = re.escape(str(folder.parents[1]).encode()) + rb"/[\w-]+/"
    return {
        str(file.relative_to(folder)): re.sub(above, b"", file.read_bytes())
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


def unfinished(config: Train) -> None:
    """What a run that was killed after its last checkpoint but one leaves behind, with rows of later steps."""
    folder = Path(config.out)
    shutil.rmtree(folder / "sae")
    shutil.rmtree(max((folder / "checkpoints").iterdir(), key=lambda file: int(file.name)))


def test_killed_at_different_points_each_goes_on_as_by_itself(place, kind):
    """From its own newest checkpoint: some are ahead of others, one has not begun; those in between are finished."""
    shutil.copytree(place / f"alone-{kind}", place / f"killed-{kind}")
    configs = MAKE[kind](place, f"killed-{kind}")
    unfinished(configs[0])
    unfinished(configs[1])
    shutil.rmtree(configs[-1].out)
    train_many(configs)
    same_as_alone(place, kind, f"killed-{kind}")


def test_a_signal_saves_all_and_the_same_command_goes_on(place, kind, monkeypatch, caplog):
    configs = MAKE[kind](place, f"stopped-{kind}")
    with monkeypatch.context() as patch:
        at_row(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as ended, caplog.at_level("INFO", "jhsae"):
            train_many(configs)
    assert ended.value.code == 143
    for config in configs:
        saved = max(int(file.name) for file in Path(config.out, "checkpoints").iterdir())
        assert 3 <= saved <= 7 and f"{config.out}: stopped by SIGTERM after step {saved}, which is saved" in caplog.text
    train_many(configs)
    same_as_alone(place, kind, f"stopped-{kind}")


def test_a_run_that_diverges_ends_alone(place, kind, caplog):
    out = f"diverged-{kind}"
    configs = MAKE[kind](place, out)
    bad = cfg.load(Train, Path(f"{configs[1].out}.yaml"), [f"out={place}/{out}/bad", "stages.0.learning_rate=1e30"])
    says = r"1 of \d runs failed, the others are finished: .*/bad: the loss is not finite at step"
    with pytest.raises(FailedRunsError, match=says) as ended:
        train_many([configs[0], bad, *configs[1:]])
    assert ended.value.exit_code == 3 and list(ended.value.errors) == [bad.out]
    assert f"{bad.out} has ended, the other runs go on: the loss is not finite at step" in caplog.text
    same_as_alone(place, kind, out)
    with pytest.raises(FailedRunsError, match="1 of 1 runs failed"):
        train_many([*configs, bad])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["out=OUT/a/"], r"two runs have one folder, .*refused/a/?; write another out=... for each"),
        (
            ["mesh.expert=2"],
            r"has the mesh data=None expert=1, .*/b data=None expert=2; runs that are trained together",
        ),
        (["sae.embed=8"], r"refused/b: sae.embed is 8, but the store .* holds vectors of \d+"),
        (["data.live.layer=7"], r"data.live: layers=7 of the 2"),
        (["profile_steps=[2,3]"], r"profile_steps is in 2 runs .*keep one"),
    ],
)
def test_what_does_not_go_together_is_a_sentence_and_writes_nothing(place, words, sentence):
    a, b = three(place, "refused")[:2]
    words = [word.replace("OUT", f"{place}/refused") for word in words]
    a = cfg.load(Train, Path(f"{a.out}.yaml"), [word for word in words if "profile" in word])
    with pytest.raises(UserError, match=sentence):
        train_many([a, cfg.load(Train, Path(f"{b.out}.yaml"), words)])
    assert not Path(a.out).exists() and not Path(b.out).exists()


def test_no_run_is_a_sentence():
    with pytest.raises(UserError, match="there is no run to train"):
        train_many([])


def holds(folder: str) -> None:
    """Trains into a folder that the process above owns."""
    with pytest.raises(UserError, match="is being written by process"):
        train_many(three(Path(folder).parents[1], "owned"))


def test_a_folder_that_another_process_writes_is_refused(place):
    b = three(place, "owned")[1]
    with owned(b.out, "train"):
        in_own_process(holds, b.out)
    assert not Path(b.out).exists()
