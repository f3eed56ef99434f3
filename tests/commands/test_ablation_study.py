"""``jhsae ablate`` from poles, with training: rows, what is skipped, several processes, the pages."""

import json

import numpy as np
import pytest
import runs
import yaml

from jhsae import config
from jhsae.commands import ablate
from jhsae.commands.ablation import work
from jhsae.commands.ablation.heldout import held_out
from jhsae.commands.ablation.plan import Study
from jhsae.errors import UserError
from jhsae.files.lock import owned


def study(folder, **changes):
    if not (folder / "store").exists():
        runs.store(folder / "store")
    stages = [{"name": "short", "steps": 3, "learning_rate": 1e-2}]
    base = runs.train_config(folder, folder / "store", folder / "base", stages=stages)
    top = {
        "out": str(folder / "out"),
        "store": str(folder / "store"),
        "poles": {"noisy": {"train": str(base)}},
        "axes": {"pick": {"two": ["sae.pick.k=2"]}},
        "seeds": [0, 1],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(top | changes))
    return config.load(ablate.Ablate, folder / "study.yaml")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


def test_validation_and_test_rows_share_no_sequence(tmp_path):
    rows = held_out(study(tmp_path))
    kept = {kind: set(rows.units(kind).tolist()) for kind in ("validation", "test")}
    assert kept["validation"] and kept["test"] and not kept["validation"] & kept["test"]
    sizes = {kind: sum(map(len, rows.batches(kind))) for kind in kept}
    assert sizes["validation"] + sizes["test"] == 512 and sizes["validation"] == pytest.approx(128, abs=8)
    with pytest.raises(UserError, match="validation=1 leaves 0 for the test; write another validation"):
        held_out(study(tmp_path, validation=1.0))


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on_and_a_finished_one_is_left_alone(tmp_path, monkeypatch, capsys):
    asked = study(tmp_path)
    real, calls, freed = work.train, [], []

    def train(settings):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(settings.out)
        return real(settings)

    monkeypatch.setattr(work, "train", train)
    monkeypatch.setattr(work, "forget_programs", lambda: freed.append(len(calls)))
    with pytest.raises(KeyboardInterrupt):
        ablate.run(asked)
    assert freed == [1, 2]  # the compiled programs of each run, after it
    assert len(rows_of(tmp_path)) == 2 and "ablate: 2 of about 4 runs" in capsys.readouterr().out
    monkeypatch.setattr(work, "train", real)
    with owned(Study(asked).settings(Study(asked).arms[0], (), None, 5).out):
        ablate.run(asked)  # a lock of another run is in nobody's way
    rows = rows_of(tmp_path)
    assert [(row["arm"], row["seed"], row["kind"]) for row in rows] == [
        ("noisy", 0, "test"), ("noisy", 1, "test"), ("noisy: pick=two", 0, "test"), ("noisy: pick=two", 1, "test"),
    ]  # fmt: skip
    for row in rows:
        m = row["metrics"]
        assert {"commit", "config_hash", "seconds", "rate", "size"} <= row.keys() and m["tokens"] == 3 * 64
        assert np.mean(list(row["units"]["ev_r2"].values())) == pytest.approx(m["ev_r2"], abs=1e-4)
        assert (
            12 * 16 < m["encoder_macs"] <= 12 * 16 + 2 * 2 * (16 + 3)
            and m["encoder_macs"] == m["encoder_macs_without_tables"]
        )
        assert 0 <= m["sibling_cosine"] <= 1 and m["parameters"] > 0
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    (tmp_path / "out" / "table.md").unlink()
    ablate.run(asked)
    assert before == (tmp_path / "out" / "results.jsonl").read_bytes()
    last = capsys.readouterr().out.splitlines()[-1]
    assert "4 rows of 2 arms, results.jsonl, table.md, ablation.html; next: python -m webbrowser" in last
    assert "| pick=two | 2 |" in (tmp_path / "out" / "table.md").read_text()
    page = (tmp_path / "out" / "ablation.html").read_text()
    assert page.count("<svg ") >= 3 and "EV against L0" in page and "http" not in page.split("<style>")[0].lower()[200:]


def test_a_row_is_appended_when_no_other_process_does(tmp_path, monkeypatch):
    """One that finds the file owned waits."""
    waited = []
    path = tmp_path / "results.jsonl"
    tries = iter([True, True, False])

    def busy(folder, verb=""):
        if next(tries):
            raise work.BusyError("owned")
        return owned(folder, verb)

    monkeypatch.setattr(work, "owned", busy)
    monkeypatch.setattr(work.time, "sleep", waited.append)
    work.append_row(path, "{}")
    assert path.read_text() == "{}\n" and len(waited) == 2


@pytest.mark.slow
def test_two_processes_share_the_runs(tmp_path):
    ablate.run(study(tmp_path, processes=2, rates=[1e-2, 2e-2], more_rates=0))
    rows = rows_of(tmp_path)
    keys = [(row["config_hash"], row["kind"]) for row in rows]
    assert len(keys) == len(set(keys)) == 2 * (2 + 2)
    assert "| pick=two | 2 |" in (tmp_path / "out" / "table.md").read_text()
    broken = study(tmp_path, processes=2, seeds=[7], overrides=["data.batch=100000"])
    with pytest.raises(UserError, match="2 of 2 processes ended with code 2; see the message above"):
        ablate.run(broken)
