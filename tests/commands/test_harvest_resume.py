"""A harvest that is cut off goes on, and writes what it would have written; several layers in one pass; int8."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_lm import CONTEXT, LAYER, rows_in_order, save_model_and_text

from jhsae import config as cfg
from jhsae.activations.config import Harvest, Source
from jhsae.commands import harvest
from jhsae.commands.harvest import run
from jhsae.data import Store, Writer
from jhsae.data.partial import Partial
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape


class SmallShards(Writer):
    """Shards of 32 rows."""

    def __init__(self, *args, **options):
        super().__init__(*args, shard_rows=32, chunk_rows=8, **options)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """So that a small store has many groups."""
    monkeypatch.setattr(harvest, "Writer", SmallShards)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    return save_model_and_text(folder, 60)


def config(place: Path, out: str, layer=LAYER, **changes) -> Harvest:
    text = {"_target_": "jhsae.data.TextFiles", "paths": str(place / "text.txt")}
    options = {"rows": 300, "context": CONTEXT, "batch": 8, "dtype": "float32", "shuffle_rows": 50} | changes
    return Harvest(str(place / out), Source(str(place / "lm"), layer), text, **options)


@pytest.fixture(scope="module")
def both(place) -> dict[int, Store]:
    """The stores of two layers, from one pass, of one that was not cut off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harvest, "Writer", SmallShards)
        run(config(place, "whole-{layer}", [1, 2]))
    return {layer: Store.open(place / f"whole-{layer}") for layer in (1, 2)}


def cut(monkeypatch, after: int) -> None:
    """Lets a harvest end, as if killed, when it is about to record its `after`-th group."""
    record, count = Partial.record, iter(range(1, 1000))

    def stop(self, *args):
        if next(count) == after:
            raise KeyboardInterrupt
        record(self, *args)

    monkeypatch.setattr(Partial, "record", stop)


def test_layers_of_one_pass_are_the_stores_of_one_pass_each(place, both):
    single = Store.open(run(config(place, "single", 2)))
    assert both[2].manifest.layer == 2 and both[1].manifest.layer == 1
    np.testing.assert_array_equal(single.index(0, 300), both[2].index(0, 300))
    np.testing.assert_allclose(single.read(0, 300), both[2].read(0, 300), rtol=1e-5, atol=1e-5)
    assert not np.allclose(both[1].read(0, 300), both[2].read(0, 300), atol=0.1)
    np.testing.assert_array_equal(both[1].tokens(), both[2].tokens())


def test_rows_are_shuffled_within_groups_and_groups_follow_the_stream(both):
    sequence = both[1].index(0, 300)[:, 0]
    assert np.mean(np.diff(sequence) == 0) < 0.3
    assert not set(sequence[:64].tolist()) & set(sequence[-64:].tolist())


def test_a_harvest_that_was_cut_off_goes_on_to_the_same_bytes(place, both, monkeypatch, caplog):
    out = "cut-{layer}"
    with monkeypatch.context() as patch:
        cut(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            run(config(place, out, [1, 2]))
    assert not (place / "cut-1").exists()
    with caplog.at_level("INFO", "jhsae"):
        run(config(place, out, [1, 2]))
    assert "going on after" in caplog.text
    for layer, whole in both.items():
        store = Store.open(place / f"cut-{layer}")
        assert store.manifest.files == whole.manifest.files
        assert store.manifest.mean.tolist() == whole.manifest.mean.tolist()
        left = {path.name for path in Path(store.path).iterdir()}
        assert (
            left
            == {path.name for path in Path(whole.path).iterdir()}
            == {"activations", "index", "tokens", "manifest.json", "SHA256SUMS"}
        )


def test_a_harvest_cut_off_between_two_seals_finishes_the_other(place, both, monkeypatch, caplog):
    seal, count = Partial.seal, iter(range(1, 10))

    def second(self):
        if next(count) == 2:
            raise KeyboardInterrupt
        seal(self)

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "seal", second)
        with pytest.raises(KeyboardInterrupt):
            run(config(place, "seal-{layer}", [1, 2]))
    assert (place / "seal-1").exists() and not (place / "seal-2").exists()
    run(config(place, "seal-{layer}", [1, 2]))
    assert Store.open(place / "seal-2").manifest.files == both[2].manifest.files
    with caplog.at_level("INFO", "jhsae"):
        run(config(place, "seal-{layer}", [1, 2]))
    assert "seal-1, " in caplog.text and "seal-2: finished; nothing to do" in caplog.text


def test_what_was_cut_off_is_not_continued_as_something_else(place, monkeypatch):
    with monkeypatch.context() as patch:
        cut(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(config(place, "other"))
    with pytest.raises(
        UserError, match=r"other\.partial holds a harvest of another configuration \(config_hash, .*rows"
    ):
        run(config(place, "other", rows=200))
    text = place / "text.txt"
    before = text.read_text()
    text.write_text("w4 w5 w6\n\n" + before)
    try:
        with pytest.raises(UserError, match="holds a harvest of another text that was cut off"):
            run(config(place, "other"))
    finally:
        text.write_text(before)
    assert Store.open(run(config(place, "other"))).rows == 300


def test_int8_is_near_and_goes_on_with_the_channels_that_it_began_with(place, both, monkeypatch):
    whole = Store.open(run(config(place, "int8", dtype="int8")))
    x, exact = whole.read(0, 300), both[1].read(0, 300)
    np.testing.assert_array_equal(whole.index(0, 300), both[1].index(0, 300))
    assert 0 < np.sqrt(np.mean((x - exact) ** 2) / np.mean(exact**2)) < 0.01
    np.testing.assert_allclose(whole.manifest.mean, x.mean(axis=0), atol=1e-5)
    with monkeypatch.context() as patch:
        cut(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(config(place, "int8-cut", dtype="int8"))
        patch.undo()
        patch.setattr(harvest, "Writer", SmallShards)
        patch.setattr(harvest, "CHANNEL_ROWS", 10)
        run(config(place, "int8-cut", dtype="int8"))
    assert Store.open(place / "int8-cut").manifest.files == whole.manifest.files


def test_the_mesh_decides_no_row(place, both):
    store = Store.open(run(config(place, "mesh", mesh=MeshShape(expert=2))))
    assert store.manifest.config_hash == cfg.config_hash(config(place, "mesh"))
    np.testing.assert_array_equal(rows_in_order(store)[1], rows_in_order(both[1])[1])
    np.testing.assert_allclose(store.read(0, 300), both[1].read(0, 300), rtol=1e-5, atol=1e-5)


def test_several_layers_need_several_names(place):
    with pytest.raises(UserError, match=r"lm.layer names 2 layers, but out=.*/x one store; write \{layer\}"):
        config(place, "x", [1, 2])
    for layer, sentence in (
        ([], "layer is .., expected at least one entry"),
        ([1, 1], "layer is .1, 1., expected one layer or a list of different ones"),
    ):
        with pytest.raises(UserError, match=sentence):
            config(place, "x-{layer}", layer)
    with pytest.raises(UserError, match="mesh: data 3 x expert 1 is 3 devices, but there are 8"):
        run(replace(config(place, "x"), mesh=MeshShape(3)))


def test_a_record_of_finished_rows_that_is_damaged_counts_for_nothing(place, both, monkeypatch):
    out = str(place / "damaged-{layer}")
    with monkeypatch.context() as patch:
        cut(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            run(config(place, out, [1, 2]))
    records = sorted((place / "damaged-2.partial").glob("progress-*"))
    assert records
    whole = records[0].read_bytes()
    records[0].write_bytes(whole.replace(b'"rows": ', b'"rows": 1', 1))
    run(config(place, out, [1, 2]))
    for layer, other in both.items():
        assert Store.open(place / f"damaged-{layer}").manifest.files == other.manifest.files
        assert Store.open(place / f"damaged-{layer}").manifest.rms_norm == other.manifest.rms_norm
