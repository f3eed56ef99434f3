"""``jhsae train``: exact resume after SIGKILL, runs that are never overwritten, bad input refused before compute."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

import jhsae
from jhsae import config
from jhsae.errors import UserError
from jhsae.parallel.mesh import make_mesh
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import Train
from jhsae.training.recipe import build_sae
from jhsae.training.run import train
from jhsae.training.sharding import init_sharded
from jhsae.usage import Context

FLAT = "sae={_target_: jhsae.sae.FlatSAE, embed: 16, features: 24, sparsifier: {_target_: jhsae.sparsify.TopK, k: 3}}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a store."""
    folder = tmp_path_factory.mktemp("train")
    runs.store(folder / "store")
    return folder


@pytest.fixture(scope="module")
def finished(place):
    """An uninterrupted run."""
    path = runs.train_config(place, place / "store", place / "whole")
    train(config.load(Train, path))
    return place / "whole"


def load(place: Path, out: str, *overrides: str) -> Train:
    return config.load(Train, runs.train_config(place, place / "store", place / out), overrides)


def test_a_run_writes_what_it_promises(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [row["stage"] for row in rows] == ["freeze"] * 15 + ["adapt"] * 25
    assert {"loss", "reconstruction", "parents_only", "l0", "dead", "explained_variance"} <= rows[0].keys()
    assert rows[-1]["explained_variance"] > rows[0]["explained_variance"] + 0.2
    about = json.loads((finished / "run.json").read_text())
    assert about["config_hash"] == config.config_hash(config.load(Train, finished / "config.yaml"))
    assert about["versions"]["jax"] == jax.__version__ and "commit" in about


def test_the_saved_sae_is_the_trained_one(finished):
    sae, normalizer, about = load_sae(finished)
    x, _ = normalizer(jnp.asarray(runs.activations(256)))
    forward = sae.forward(x, Context())
    assert np.allclose(np.linalg.norm(sae.router_dec, axis=-1), 1, atol=1e-5)
    error = np.sum((x - forward.x_hat) ** 2) / np.sum((x - x.mean(0)) ** 2)
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert 1 - error == pytest.approx(last["explained_variance"], abs=0.15)  # another batch, without routing noise
    assert about["reads"] == {"model": "array", "layer": 0}


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed_it_gives_the_same_metrics_bit_for_bit(place, finished):
    """Two kills, the second of the resumed run; each at a step drawn at random, by the operating system's signal."""
    out, killed_at = place / "killed", []
    path = runs.train_config(place, place / "store", out)
    for low, high in ((8, 18), (22, 36)):
        target = int(np.random.default_rng().integers(low, high))
        process = _start(path)
        _wait_for_rows(out / "metrics.jsonl", target, process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed_at.append(len((out / "metrics.jsonl").read_text().splitlines()))
        assert not (out / "sae").exists()
    done = _start(path)
    assert done.wait() == 0, path.with_suffix(".log").read_text()
    assert (out / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes(), killed_at
    same = [(f / "sae" / "sae.safetensors").read_bytes() for f in (out, finished)]
    assert same[0] == same[1]


def _start(path: Path) -> subprocess.Popen:
    slow = "import time, jhsae.training.logs as l, jhsae.__main__ as m; w = l.JsonLines.write\n"
    slow += "l.JsonLines.write = lambda s, r: (time.sleep(0.05), w(s, r))[1]\n"  # so that there is time to kill it
    slow += f"raise SystemExit(m.main(['train', {str(path)!r}]))"
    environment = os.environ | {"PYTHONPATH": str(Path(jhsae.__file__).parents[1])}
    with path.with_suffix(".log").open("a") as log:
        return subprocess.Popen([sys.executable, "-c", slow], env=environment, stdout=log, stderr=log)


def _wait_for_rows(path: Path, rows: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_text().count("\n") < rows:
        assert process.poll() is None, path.parent.with_suffix(".log").read_text()
        assert time.monotonic() < deadline, f"{path} did not reach {rows} rows"
        time.sleep(0.01)


def test_frozen_leaves_stay_bit_identical(place):
    stages = [{"name": "freeze", "steps": 5, "learning_rate": 1e-2, "freeze": ["router_dec", "atom_*"]}]
    path = runs.train_config(place, place / "store", place / "frozen", stages=stages)
    loaded = config.load(Train, path)
    mesh = make_mesh(loaded.mesh)
    before = init_sharded(lambda: build_sae(loaded, jax.random.split(jax.random.key(0))[0]), mesh)
    train(loaded)
    after, _, _ = load_sae(place / "frozen")
    assert np.array_equal(before.router_dec, after.router_dec) and np.array_equal(before.atom_dec, after.atom_dec)
    assert np.array_equal(before.atom_enc, after.atom_enc) and not np.array_equal(before.up, after.up)


def test_a_finished_run_is_left_alone(finished, place, caplog):
    before = {f: f.stat().st_mtime_ns for f in finished.rglob("*") if f.is_file()}
    with caplog.at_level("INFO", "jhsae"):
        train(load(place, "whole"))
    assert "nothing to do" in caplog.text
    assert before == {f: f.stat().st_mtime_ns for f in finished.rglob("*") if f.is_file()}


def test_another_config_in_the_same_folder_is_refused(finished, place):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"another config.*seed is 0 there, 7 here.*out="):
        train(load(place, "whole", "seed=7"))
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_no_run_is_refused(place):
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="not a run folder"):
        train(load(place, "mine"))
    assert (place / "mine" / "notes.txt").read_text() == "keep"


def test_another_store_under_the_same_name_is_refused(place):
    other = place / "moved"
    runs.store(other)
    path = runs.train_config(place, other, place / "moving", stages=[{"name": "a", "steps": 8, "learning_rate": 0.0}])
    loaded = config.load(Train, path)
    train(loaded)
    shutil.rmtree(place / "moving" / "sae")  # the run is not finished
    other.rename(place / "moved.old")
    runs.store(other, rows=480)
    with pytest.raises(UserError, match=r"store.*changed"):
        train(loaded)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["sae.embed=8"], r"sae.embed is 8, but the store .* holds vectors of 16.*write sae.embed=16"),
        (["data.batch=1024"], r"data.batch is 1024, but the store .* has 512 rows"),
        (["data.batch=63"], r"data.batch is 63, which 8 devices cannot share"),
        (["sae.route.k=13"], r"k is 13 but there are 12 experts"),
        (["data.store=nowhere"], r"nowhere"),
        (["stages.0.freeze=[decoder]"], r"pattern 'decoder' matches no parameter.*router_dec"),
        (["weights={parents: 0.1}"], r"weight 'parents' belongs to no term.*parents_only"),
        (["mesh.expert=3"], r"mesh: .*8"),
        (["dead_window=0"], r"dead_window is 0, expected at least 1"),
        (["feature_sampling_window=0"], r"feature_sampling_window is 0, expected at least 1"),
        (["dead_tokens=-5"], r"dead_tokens is -5, expected at least 1"),
        (["sae.route={_target_: jhsae.sparsify.BatchTopK, k: 13}"], r"k is 13 but there are 12 experts"),
        (["sae.rout.k=3"], r"rout.*did you mean 'route'"),
        (["stages.0.steps=many"], r"stages.0.steps.*many"),
        (["teacher=nowhere"], r"no teacher in nowhere"),
        (
            [FLAT, "init=[]", "stages.0.freeze=[]"],
            r"the term 'parents_only', ParentsOnly, needs a HierarchicalSAE, got a FlatSAE; drop the term",
        ),
    ],
)
def test_bad_input_is_a_sentence_and_writes_nothing(place, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        train(load(place, "bad", *overrides))
    assert not (place / "bad").exists()
