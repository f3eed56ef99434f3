"""What goes wrong during a run is said in a sentence, and no finished checkpoint is lost: the run goes on from it."""

import json
import os
import resource
import signal
import time

import numpy as np
import pytest
import runs
from own_process import in_own_process

from jhsae import config
from jhsae.data import Batches, Store, write_array
from jhsae.data.arrays import Pending
from jhsae.errors import UserError
from jhsae.training import logs
from jhsae.training.config import Train
from jhsae.training.loop import DivergedError
from jhsae.training.run import train

FLAT = {
    "_target_": "jhsae.sae.FlatSAE",
    "embed": runs.EMBED,
    "features": 24,
    "sparsifier": {"_target_": "jhsae.sparsify.BatchTopK", "k": 3.0},
}
STEPS, BATCH = 16, 64


def store(place):
    """Two batches to a window, so that rows are read until the end."""
    write_array(place / "store", runs.activations(STEPS * BATCH), shard_rows=128, chunk_rows=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The metrics of a run in which nothing goes wrong."""
    place = tmp_path_factory.mktemp("whole")
    store(place)
    return (train(load(place)) / "metrics.jsonl").read_bytes()


@pytest.fixture
def place(tmp_path):
    """A folder with the same store."""
    store(tmp_path)
    return tmp_path


def load(place, features=24, normalize="CenterScale", mesh=None):
    stages = [{"name": "a", "steps": STEPS, "learning_rate": 1e-2}]
    path = runs.train_config(
        place,
        place / "store",
        place / "run",
        data={
            "store": str(place / "store"),
            "batch": BATCH,
            "normalize": {"_target_": f"jhsae.data.{normalize}"},
        },
        mesh=mesh or {},
        sae=FLAT | {"features": features},
        objective={"reconstruction": {"_target_": "jhsae.losses.SquaredError"}},
        weights={},
        init=[],
        stages=stages,
        checkpoint_every=4,
    )
    return config.load(Train, path)


def checkpoints(place):
    return sorted(int(f.name) for f in (place / "run" / "checkpoints").iterdir() if f.name.isdecimal())


def at_row(monkeypatch, step, act):
    """Does something when the row of metrics of `step` is written."""
    write = logs.JsonLines.write

    def and_act(lines, row):
        write(lines, row)
        if row["step"] == step and "loss" in row:
            act()

    monkeypatch.setattr(logs.JsonLines, "write", and_act)


def metrics(place):
    return (place / "run" / "metrics.jsonl").read_bytes()


def goes_on(place, whole):
    train(load(place))
    assert metrics(place) == whole


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_machine_that_is_taken_away_saves_first(place, whole, monkeypatch, caplog, kind):
    with monkeypatch.context() as patch:
        at_row(patch, 6, lambda: os.kill(os.getpid(), kind))
        with pytest.raises(SystemExit) as ended, caplog.at_level("INFO", "jhsae"):
            train(load(place))
    assert ended.value.code == 128 + kind
    assert f"stopped by {kind.name} after step 7, which is saved; the same command continues" in caplog.text
    assert checkpoints(place) == [4, 7] and not (place / "run" / "sae").exists()
    goes_on(place, whole)


def fails_on_a_full_disk(place) -> None:
    """No file may grow beyond 64 KiB from the second save on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        while checkpoints(place) != [4]:
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))

    with pytest.MonkeyPatch.context() as patch:
        at_row(patch, 6, fill)
        with pytest.raises(UserError, match=r"cannot be written .*too large.*complete one is that of step 4; make"):
            train(load(place, 4096))


@pytest.mark.slow
def test_a_full_disk_during_a_save(place):
    """Files that may not grow beyond 64 KiB stand for a disk that is full."""
    in_own_process(fails_on_a_full_disk, place)
    assert checkpoints(place) == [4]
    train(load(place, 4096))
    assert checkpoints(place) == [12, 16] and metrics(place).count(b"\n") == STEPS


def test_a_shard_that_disappears_is_named(place, whole, monkeypatch):
    shards = [file for file in (place / "store" / "activations" / "c").rglob("*") if file.is_file()]
    kept = {file: file.read_bytes() for file in shards}

    def lose():
        for file in shards:
            file.unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        at_row(patch, 6, lose)
        with pytest.raises(
            UserError, match=r"rows .* of .*store/activations cannot be read: .*activations/c/\d/0.* is mis"
        ):
            train(load(place))
    assert checkpoints(place), "a checkpoint was lost"
    for file, content in kept.items():
        file.write_bytes(content)
    goes_on(place, whole)


def test_not_a_number_in_the_store_names_the_step_and_the_rows(place, monkeypatch):
    request, bad = Store.request, (5, 700)

    class Spoilt(Pending):
        """Rows as they come from the disk, some of them spoilt."""

        def __init__(self, pending, start, stop):
            self.pending, self.places = pending, [row - start for row in bad if start <= row < stop]

        def result(self):
            rows = self.pending.result().copy()
            rows[self.places] = np.nan
            return rows

    monkeypatch.setattr(Store, "request", lambda store, *ends: Spoilt(request(store, *ends), *ends))
    with pytest.raises(
        DivergedError, match=r"the loss is not finite at step \d+ .*last checkpoint is intact"
    ) as raised:
        train(load(place))
    batches = Batches(Store.open(place / "store"), BATCH, 0)
    first = next(step for step in range(1, STEPS + 1) if set(bad) & set(batches.places(step - 1).tolist()))
    named = ", ".join(str(row) for row in batches.places(first - 1).tolist() if row in bad)
    assert raised.value.step == first
    assert f"; rows {named} of {place}/store, which this step read, are not finite" in str(raised.value)
    assert checkpoints(place) == [step for step in (4, 8, 12, 16) if step < first][-2:]


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh(place, whole, monkeypatch):
    """Begun on 8 devices that share the batch, finished on 2 x 4 that share the experts too."""
    with monkeypatch.context() as patch:
        at_row(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(load(place))
    train(load(place, mesh={"data": 2, "expert": 4}))
    losses = [[json.loads(row)["loss"] for row in text.splitlines()] for text in (whole, metrics(place))]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
