"""Two real processes of four devices compute what one does; one dies, the run goes on elsewhere and comes back.

One story, told once by a fixture, because every process takes seconds to start.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import quick_compile
import runs

import jhsae
from jhsae import config
from jhsae.parallel.mesh import make_mesh
from jhsae.training import logs, run
from jhsae.training.config import Train
from jhsae.training.run import train

STEPS, PATIENCE = 50, 10
START = "import sys, jhsae.__main__ as m; sys.exit(max(m.main(['train', path]) for path in sys.argv[1:]))"
FLAT = {"_target_": "jhsae.sae.FlatSAE", "embed": runs.EMBED, "features": 24}
TREE = {
    "_target_": "jhsae.sae.HierarchicalSAE",
    "embed": runs.EMBED,
    "experts": 12,
    "sub": 2,
    "atoms": 3,
    "route": {
        "_target_": "jhsae.sparsify.GumbelTopK",
        "k": 2,
        "temperature": {"_target_": "jhsae.schedule.Linear", "start": 1.5, "end": 0.5, "steps": STEPS},
    },
    "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1},
}
SAES = {
    "batchtopk": FLAT | {"sparsifier": {"_target_": "jhsae.sparsify.BatchTopK", "k": 3.0}},
    "tree": TREE,
}


def written(place: Path, name: str, out: str) -> Path:
    """The config of a run of the SAE `name` into the folder `out`."""
    return runs.train_config(
        place,
        place / "store",
        place / out,
        sae=SAES[name],
        objective={"reconstruction": {"_target_": "jhsae.losses.SquaredError"}},
        weights={},
        init=[],
        stages=[{"name": "a", "steps": STEPS, "learning_rate": 1e-2}],
        checkpoint_every=10,
    )


def pair(paths: list[Path], log: Path) -> list[subprocess.Popen]:
    """Two processes that train these configs one after the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": quick_compile.FLAGS, "JAX_NUM_CPU_DEVICES": "4"}
    environment |= {"PYTHONPATH": str(Path(jhsae.__file__).parents[1])}
    environment |= {"JHSAE_COORDINATOR": address, "JHSAE_PROCESSES": "2", "JHSAE_TIMEOUT": str(PATIENCE)}
    started = []
    for number in range(2):
        with log.with_suffix(f".{number}").open("w") as file:
            words = [sys.executable, "-c", START, *map(str, paths)]
            mine = environment | {"JHSAE_PROCESS": str(number)}
            started.append(subprocess.Popen(words, env=mine, stdout=file, stderr=subprocess.STDOUT))
    return started


def rows(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def complete(run: Path) -> list[int]:
    return sorted(int(f.name) for f in (run / "checkpoints").iterdir() if f.name.isdecimal())


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """What happened: see the tests."""
    place = tmp_path_factory.mktemp("two")
    runs.store(place / "store")
    two = {name: written(place, name, f"{name}-two") for name in SAES}
    tree, log = place / "tree-two", place / "first"
    processes = pair(list(two.values()), log)
    try:
        deadline = time.monotonic() + 400
        while not (tree / "metrics.jsonl").exists() or len(rows(tree)) < 15:
            said = "".join(log.with_suffix(f".{i}").read_text() for i in range(2))
            assert all(p.poll() is None for p in processes) and time.monotonic() < deadline, said
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        code = processes[0].wait(timeout=200)
        waited = time.monotonic() - killed
    finally:
        for process in processes:
            process.kill()
            process.wait()
    after_death = complete(tree)

    with pytest.MonkeyPatch.context() as patch:  # goes on in this process, on four devices
        patch.setattr(run, "make_mesh", lambda shape: make_mesh(shape, devices=4))
        write = logs.JsonLines.write

        def and_stop(lines, row):
            write(lines, row)
            if row["step"] == 35 and "loss" in row:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(logs.JsonLines, "write", and_stop)
        with pytest.raises(SystemExit):
            train(config.load(Train, two["tree"]))
    after_stop = complete(tree)

    processes = pair([two["tree"]], place / "second")
    codes = [process.wait(timeout=300) for process in processes]
    said = [(place / "first").with_suffix(f".{i}").read_text() for i in range(2)]
    again = [(place / "second").with_suffix(f".{i}").read_text() for i in range(2)]
    return SimpleNamespace(
        place=place,
        code=code,
        waited=waited,
        after_death=after_death,
        after_stop=after_stop,
        codes=codes,
        said=said,
        again=again,
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("name", list(SAES))
def test_two_processes_compute_what_one_does(story, name):
    """The tree was begun in two processes, went on in one on four devices, and ended in two."""
    whole = train(config.load(Train, written(story.place, name, f"{name}-one")))
    one, two = rows(whole), rows(story.place / f"{name}-two")
    assert [row["step"] for row in two] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], rtol=1e-5, atol=1e-5)
    assert (story.place / f"{name}-two" / "sae" / "sae.json").exists()


def test_when_one_dies_the_other_ends_in_time_with_a_sentence_and_keeps_the_checkpoints(story):
    assert story.code in (75, 1, -signal.SIGABRT), story.said[0]
    assert story.waited < 10 * PATIENCE
    assert "process 1 has given no sign of life" in story.said[0] or "if another process has ended" in story.said[0]
    assert "every finished checkpoint is intact; start all processes again" in story.said[0]
    assert story.after_death and story.after_death[-1] >= 10


def test_saved_by_two_it_goes_on_in_one_and_comes_back(story):
    assert story.after_stop[-1] == 36
    assert story.codes == [0, 0], story.again
    assert complete(story.place / "tree-two") == [40, 50]


def test_only_process_0_prints_messages(story):
    assert "data.streams is 1 for 2 processes" in story.again[0]
    assert "data.streams" not in story.again[1] and "step/s" not in story.again[1]
