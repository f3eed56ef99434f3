"""More steps for a finished run are those of a run that had them from the start, whatever interrupts them."""

import json
from pathlib import Path

import pytest
import runs
import yaml

from jhsae import config as cfg
from jhsae import load_sae
from jhsae.__main__ import main
from jhsae.commands import evaluate
from jhsae.data import Store
from jhsae.errors import UserError
from jhsae.training import loop
from jhsae.training.config import Train
from jhsae.training.more import extended

COSINE = {"_target_": "jhsae.schedule.WarmupCosine", "peak": 0.02, "warmup": 4, "steps": 40}


def stages(*more: dict) -> list[dict]:
    return [
        {"name": "start", "steps": 16, "learning_rate": 1e-2},
        {"name": "end", "steps": 24, "learning_rate": COSINE},
        *more,
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("more")
    runs.store(folder / "store")
    return folder


def config(place: Path, name: str, *more: dict) -> str:
    return str(runs.train_config(place, place / "store", place / name, stages=stages(*more)))


def content(folder: Path) -> dict[str, bytes]:
    files = [folder / "sae" / "sae.safetensors", folder / "sae" / "normalizer.safetensors", folder / "metrics.jsonl"]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def continued(place):
    """A run of 40 steps, continued by 12 and then by 18."""
    file = config(place, "run")
    assert main(["train", file]) == 0
    first = content(place / "run")
    assert main(["train", file, "more=12"]) == 0 and main(["train", file, "more=18"]) == 0
    return place / "run", first


def test_it_is_a_run_that_had_these_steps_from_the_start(place, continued):
    folder, first = continued
    recorded = yaml.safe_load((folder / "config.yaml").read_text())
    rate = recorded["stages"][-1]["learning_rate"]
    assert recorded["more"] == 0 and rate == pytest.approx(0.02 * 0.1, rel=0.02)
    assert recorded["stages"][-1] == {
        "name": "more",
        "steps": 18,
        "learning_rate": rate,
        "freeze": [],
        "weights": {},
        "clip": 1.0,
    }
    again = config(place, "whole", {"name": "more", "steps": 18, "learning_rate": rate})
    assert main(["train", again]) == 0
    assert content(folder) == content(place / "whole") != first
    about, whole = (load_sae(path)[2] for path in (folder, place / "whole"))
    assert about["config_hash"] == whole["config_hash"] == cfg.config_hash(cfg.read(Train, folder / "config.yaml"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 59))
    assert [row["learning_rate"] for row in rows[40:]] == [pytest.approx(rate)] * 18 and rows[-1]["stage"] == "more"
    assert (folder / "sae-40" / "sae.safetensors").read_bytes() == first["sae.safetensors"]
    assert load_sae(folder / "sae-52")[0].embed == runs.EMBED


def test_the_same_command_leaves_it_alone_and_another_refuses(place, continued, capsys):
    folder, _ = continued
    before = content(folder)
    assert main(["train", config(place, "run"), "more=18"]) == 0 and content(folder) == before
    for words, sentence in (
        (["more=12"], "holds a run of another config"),
        (["more=30", "more_rate=0.5"], "holds a run of another config"),
        (["more=30", "data.seed=3"], "data.seed is 0 there, 3 here"),
        (["more=30", f"out={place / 'none'}"], "holds none; write the config of a finished run, or leave more=30 out"),
        (["more_rate=0.1"], "more is 0; write more=STEPS too"),
        (["more=-1"], "more is -1"),
    ):
        assert main(["train", config(place, "run"), *words]) == 2
        assert sentence in capsys.readouterr().err
    assert content(folder) == before and not (place / "none").exists()


@pytest.mark.parametrize("at", [42, 49, 58])
def test_killed_and_resumed_it_ends_byte_for_byte_the_same(place, continued, monkeypatch, at):
    folder, _ = continued
    file, killed = config(place, f"killed{at}"), place / f"killed{at}"
    assert main(["train", file]) == 0
    check = loop._check_finite

    def kill(state, step, *rest):
        if step == at:
            raise KeyboardInterrupt
        check(state, step, *rest)

    monkeypatch.setattr(loop, "_check_finite", kill)
    assert main(["train", file, "more=18"]) == 130
    assert not (killed / "sae").exists()
    monkeypatch.setattr(loop, "_check_finite", check)
    assert main(["train", file, "more=18"]) == 0
    assert content(killed) == content(folder)


def test_killed_before_it_began_it_begins_again(place, continued, monkeypatch):
    """Between the two writes that make a finished run an unfinished one."""
    file, folder = config(place, "torn"), place / "torn"
    assert main(["train", file]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("jhsae.training.more.write_whole", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["train", file, "more=18"]) == 130
    assert not (folder / "sae").exists() and (folder / "sae-40").exists()
    assert main(["train", file, "more=18"]) == 0 and content(folder) == content(continued[0])


def test_an_unfinished_run_is_finished_first(place, monkeypatch, capsys):
    file = config(place, "short")
    check = loop._check_finite

    def kill(state, step, *rest):
        if step == 21:
            raise KeyboardInterrupt
        check(state, step, *rest)

    monkeypatch.setattr(loop, "_check_finite", kill)
    assert main(["train", file]) == 130
    capsys.readouterr()
    assert main(["train", file, "more=5"]) == 2
    assert "is at step 14 of 40, so that it cannot be continued; finish it first" in capsys.readouterr().err


def test_an_evaluation_of_before_is_not_taken_for_one_of_after(place):
    file, folder = config(place, "evaluated"), place / "evaluated"
    assert main(["train", file]) == 0
    held_out = evaluate.Evaluate(str(folder), Store.open(place / "store").path)
    first = evaluate.run(held_out)
    assert evaluate.run(held_out) == first
    assert main(["train", file, "more=18"]) == 0
    second = evaluate.run(held_out)
    assert second["config_hash"] != first["config_hash"] and second["metrics"]["ev_r2"] != first["metrics"]["ev_r2"]
    assert evaluate.run(held_out) == second


def test_a_rate_of_its_own_and_one_that_has_decayed_to_nothing(place):
    decayed = {"_target_": "jhsae.schedule.Trapezoid", "peak": 0.02, "steps": 400, "decay": 400}
    file = runs.train_config(
        place, place / "store", place / "x", stages=[{"name": "a", "steps": 400, "learning_rate": decayed}]
    )
    assert extended(cfg.load(Train, file, ["more=5"])).stages[-1].learning_rate == pytest.approx(0.02 / 400)
    faster = cfg.load(Train, file, ["more=5", "stages.0.learning_rate.steps=300", "stages.0.learning_rate.decay=300"])
    with pytest.raises(UserError, match=r"fallen from 0.02 to 0 at the last step.*write more_rate=0.002"):
        extended(faster)
    slot = "more_rate={_target_: jhsae.schedule.Linear, start: 0.1, end: 0.0, steps: 500}"
    rate = extended(cfg.load(Train, file, ["more=5", slot])).stages[-1].learning_rate
    assert rate == {"_target_": "jhsae.schedule.Linear", "start": 0.1, "end": 0.0, "steps": 500}


def test_hashes_of_runs_without_it_are_those_of_before(place):
    plain = cfg.load(Train, config(place, "y"))
    assert cfg.config_hash(plain) == cfg.config_hash(extended(plain)) and extended(plain) is plain
    assert "more" not in json.dumps(cfg.diff(plain, plain))
