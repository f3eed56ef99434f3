"""Run folders in a bucket, as far as that can be tried without one: a file system in memory answers for s3://."""

import json
import os

import jax
import numpy as np
import pytest
import runs
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from jhsae import config
from jhsae.__main__ import main
from jhsae.data import Identity, Store
from jhsae.errors import UserError
from jhsae.files.folders import PARTIAL, append_line, is_bucket, local_copy, open_folder, write_whole
from jhsae.sae import AbstractSAE
from jhsae.training.checkpoint import load_sae, save_sae
from jhsae.training.config import Train
from jhsae.training.logs import RunLog
from jhsae.training.run_folder import check_owner, finished, write_metadata

FLAT = {
    "_target_": "jhsae.sae.FlatSAE",
    "embed": runs.EMBED,
    "features": 24,
    "sparsifier": {"_target_": "jhsae.sparsify.TopK", "k": 3},
}
IDENTITY = {"_target_": "jhsae.data.Identity"}


@pytest.fixture
def bucket(monkeypatch):
    """An empty ``s3://bucket``."""
    files = MemoryFileSystem()
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: files)
    return open_folder("s3://bucket/runs") / "scale"


@pytest.mark.parametrize("path", ["gs://bucket/runs/scale", "s3://bucket/runs/scale"])
def test_the_path_of_a_bucket_stays_as_it_is(path):
    folder = open_folder(path)
    assert is_bucket(folder) and str(folder) == path and folder.name == "scale"
    assert str(folder / "checkpoints" / "7") == f"{path}/checkpoints/7"
    assert str(open_folder(folder)) == path


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/run", "memory://run", "file:///run", "hf://a/b", "://", "x://y"])
def test_another_url_is_no_folder_and_no_store(path):
    with pytest.raises(UserError, match="is no folder that can be opened, expected a path or one of gs://, s3://"):
        load_sae(path)
    if not path.startswith("file"):
        with pytest.raises(UserError, match="is no store that can be opened, expected a folder or one of file://"):
            Store.open(path)


def test_the_url_of_a_store_that_cannot_be_parsed():
    with pytest.raises(UserError, match=r"cannot be opened .*Query string not supported"):
        Store.open("file:///store?x=1")


def test_a_local_path_is_a_path(tmp_path):
    assert open_folder(str(tmp_path)) == tmp_path and not is_bucket(tmp_path)
    with local_copy(tmp_path / "a") as same:
        assert same == tmp_path / "a"


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_link_in_a_folder_of_somebody_else_is_not_written_through(tmp_path, link):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("a line\nand what follows it")
    folder.mkdir()
    getattr(folder / f"run.json{PARTIAL}", link)(outside)
    write_whole(folder / "run.json", "new")
    assert (folder / "run.json").read_text() == "new" and not (folder / "run.json").is_symlink()
    getattr(folder / "results.jsonl", link)(outside)
    if link == "symlink_to":
        with pytest.raises(UserError, match=r"results.jsonl is a link to .*, expected a file of its folder"):
            append_line(folder / "results.jsonl", "{}")
    else:
        append_line(folder / "results.jsonl", "{}")
        assert (folder / "results.jsonl").read_text() == "a line\n{}\n"
    assert outside.read_text() == "a line\nand what follows it"


def test_a_fifo_is_neither_appended_to_nor_waited_for(tmp_path):
    os.mkfifo(tmp_path / f"run.json{PARTIAL}")
    write_whole(tmp_path / "run.json", "new")
    assert (tmp_path / "run.json").read_text() == "new"
    os.mkfifo(tmp_path / "results.jsonl")
    with pytest.raises(UserError, match="is a folder, a FIFO or a device, expected a file"):
        append_line(tmp_path / "results.jsonl", "{}")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_whole(path, "before")
    monkeypatch.setattr("jhsae.files.folders.os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(UserError, match=r"run.json cannot be written \(full\); make room"):
        write_whole(path, "after")
    assert path.read_text() == "before" and {f.name for f in tmp_path.iterdir()} == {"run.json", f"run.json{PARTIAL}"}


def test_a_run_begins_and_is_known_again_in_a_bucket(tmp_path, bucket):
    store = runs.store(tmp_path / "store")
    loaded = config.load(Train, runs.train_config(tmp_path, tmp_path / "store", tmp_path / "run"), [f"out={bucket}"])
    check_owner(bucket, loaded)
    about = write_metadata(bucket, loaded, store)
    assert about["name"] == "scale" and json.loads((bucket / "run.json").read_text()) == about
    check_owner(bucket, loaded)
    with pytest.raises(UserError, match=r"s3://bucket/runs/scale holds a run of another config \(seed is 0 there, 7"):
        check_owner(bucket, config.load(Train, tmp_path / "run.yaml", [f"out={bucket}", "seed=7"]))
    assert not finished(bucket)


def test_rows_reach_a_bucket_with_the_checkpoint_that_covers_them(bucket):
    log = RunLog(bucket)
    for step in (1, 2):
        log.write(step, "a", {"loss": 0.5}, 8)
    assert (bucket / "metrics.jsonl").read_text() == ""
    log.flush()
    assert [json.loads(row)["step"] for row in (bucket / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    again = RunLog(bucket, step=1)
    again.write(2, "a", {"loss": 0.25}, 8)
    again.flush()
    assert [json.loads(row)["loss"] for row in (bucket / "metrics.jsonl").read_text().splitlines()] == [0.5, 0.25]


def test_an_sae_is_written_to_a_bucket_and_read_from_it(bucket):
    sae = config.build(FLAT, AbstractSAE, key=jax.random.key(0))
    (bucket / "sae").mkdir(parents=True)
    (bucket / "sae" / "sae.safetensors").write_bytes(b"cut off")  # sae.json comes last, so this is no SAE yet
    save_sae(bucket / "sae", sae, FLAT, IDENTITY, Identity(), {})
    again, _, about = load_sae(str(bucket))
    np.testing.assert_array_equal(again.W_dec, sae.W_dec)
    assert about["sae"] == FLAT and finished(bucket)
    with pytest.raises(UserError, match="is never overwritten"):
        save_sae(bucket / "sae", sae, FLAT, IDENTITY, Identity(), {})


@pytest.mark.parametrize("verb", ["export", "import", "world", "teach", "quickstart", "browse", "steer"])
def test_what_is_written_on_this_machine_alone_takes_no_url(tmp_path, monkeypatch, capsys, verb):
    """pathlib would make the folder gs:/ of it."""
    monkeypatch.chdir(tmp_path)
    save_sae("run", *small())
    words = {
        "export": ["run=run", "format=folder"],
        "import": ["source=run"],
        "world": ["worlds/tiny.yaml"],
        "teach": ["teacher/embedded.yaml"],
        "quickstart": [],
        "browse": ["run=run", "store=none", "lm=none"],
        "steer": ["run=run", "lm=none", "prompts=[a]"],
    }[verb]
    assert main([verb, *words, "out=gs://bucket/page.html"]) == 2
    assert "out is gs://bucket/page.html, expected a path of this machine" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def small():
    sae = config.build(FLAT, AbstractSAE, key=jax.random.key(0))
    return sae, FLAT, IDENTITY, Identity(), {"name": "a"}


def test_a_tilde_that_the_shell_left_is_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_sae("run", *small())
    assert main(["export", "run=run", "format=folder", "out=~/x"]) == 2
    assert "begins with ~, which stands for no folder here; write the path out: $HOME/..." in capsys.readouterr().err
    assert main(["export", "run=run", "format=folder", "out=/"]) == 2
    assert "/ exists already and is never overwritten" in capsys.readouterr().err
