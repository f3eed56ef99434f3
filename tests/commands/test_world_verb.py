"""``jhsae world``: made once, left alone the second time, never overwritten; the printed command trains on it."""

import re
import shlex

import pytest

from jhsae import config as cfg
from jhsae.__main__ import main
from jhsae.commands import world
from jhsae.training.config import Train
from jhsae.training.run import prepare
from jhsae.worlds import load_world, read_world

TINY = ["world", "worlds/tiny.yaml"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


def test_the_last_line_says_what_was_made_and_its_command_trains(place, capsys, monkeypatch):
    out = place / "tiny"
    assert main([*TINY, f"out={out}"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    pattern = (
        r"(.*): 20 features, 4 roots, depth 1, mean L0 (\d\.\d), mean largest cosine 0\.\d\d; next: jhsae train (.*)"
    )
    made, l0, following = re.fullmatch(pattern, line).groups()
    assert made == str(out) and 0.5 < float(l0) < 8
    file, *overrides = shlex.split(following)
    prepared = prepare(cfg.load(Train, cfg.find(file), overrides))
    assert prepared.store.manifest.embed == 16 and prepared.store.path == str(out)


def test_the_second_time_there_is_nothing_to_do_and_another_config_is_refused(place, capsys):
    out = place / "tiny"
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main([*TINY, f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "is finished; nothing to do" in printed and "20 features" in printed
    assert main([*TINY, f"out={out}", "seed=1"]) == 2
    assert re.search(r"holds a world of another config \(\w{12} there, \w{12} here\)", capsys.readouterr().err)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    origin = read_world(out).origin
    assert origin["config"]["seed"] == 0 and origin["summary"]["roots"] == 4 and origin["versions"]["jax"]


def test_another_folder_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert main([*TINY, f"out={tmp_path / 'mine'}"]) == 2
    assert "never overwritten" in capsys.readouterr().err and (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_world_without_trees_is_trained_on_with_a_flat_sae(tmp_path, capsys):
    out = tmp_path / "flat"
    assert main(["world", "worlds/tiny.yaml", f"out={out}", "trees=null", "features=12", "child_cosine=null"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert "12 features, 0 roots, depth 0, 12 features in no tree" in line
    file, *overrides = shlex.split(line.split("; next: jhsae train ")[1])
    assert file == "quickstart/topk.yaml"
    prepare(cfg.load(Train, cfg.find(file), overrides))
    assert not load_world(out).hierarchy.edges


def test_one_feature_has_no_cosine():
    numbers = world.Summary(1, 0, 1, 0, 0.5, 0.0, None)
    assert world.about(numbers) == ["1 features", "0 roots", "depth 0", "1 features in no tree", "mean L0 0.5"]
