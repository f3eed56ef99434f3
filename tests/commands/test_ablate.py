"""``jhsae ablate``: one run per changed slot and seed, finished runs skipped, the spread over seeds in a table."""

import json

import pytest
import runs
import yaml

from jhsae import config
from jhsae.commands import ablate
from jhsae.errors import UserError


def test_table_shows_mean_and_spread():
    rows = [
        {"axis": "base", "variant": "base", "metrics": {"ev_r2": 0.5, "l0": 4.0}},
        {"axis": "base", "variant": "base", "metrics": {"ev_r2": 0.7, "l0": 4.0}},
        {"axis": "route", "variant": "flat", "metrics": {"ev_r2": 0.25, "density": {"counts": [1]}}},
    ]
    lines = ablate.table(rows, ["ev_r2", "l0"]).splitlines()
    assert lines[2] == "| base | base | 2 | 0.6 [0.5, 0.7] | 4 [4, 4] |"
    assert lines[3] == "| route | flat | 1 | 0.25 [0.25, 0.25] | n/a |"
    assert ablate.table(rows, ["density"]).splitlines()[3] == "| route | flat | 1 | n/a |", "a histogram is no number"


def _config(folder, store, **changes):
    stages = [{"name": "short", "steps": 6, "learning_rate": 1e-2}]
    base = runs.train_config(folder, store, folder / "base", stages=stages)
    top = {
        "out": str(folder / "out"),
        "train": str(base),
        "store": str(store),
        "lm": "embedded",
        "seeds": [0, 1],
        "axes": {"pick": {"two": ["sae.pick.k=2"]}},
    }
    (folder / "ablate.yaml").write_text(yaml.safe_dump(top | changes))
    return config.load(ablate.Ablate, folder / "ablate.yaml")


def test_a_wrong_override_names_axis_and_variant_before_anything_runs(tmp_path):
    runs.store(tmp_path / "store")
    wrong = _config(tmp_path, tmp_path / "store", axes={"pick": {"two": ["sae.pick.n=2"]}})
    with pytest.raises(UserError, match=r"axes.pick.two: .*sae.pick.n"):
        ablate.run(wrong)
    assert not (tmp_path / "out").exists()


def test_variants_and_seeds_run_once_each(tmp_path, monkeypatch, capsys):
    runs.store(tmp_path / "store")
    loaded = _config(tmp_path, tmp_path / "store")
    # The store of this test belongs to no language model; everything else is real.
    monkeypatch.setattr(
        ablate.evaluate,
        "run",
        lambda c: {"name": c.run, "metrics": {"ev_r2": 0.5, "ce_recovered": 0.1, "l0": 4.0, "dead": 0.0}},
    )
    out = ablate.run(loaded)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(r["axis"], r["variant"], r["seed"]) for r in rows] == [
        ("base", "base", 0), ("base", "base", 1), ("pick", "two", 0), ("pick", "two", 1),
    ]  # fmt: skip
    saes = {f.parents[1].name: f.read_bytes() for f in out.glob("*/sae/sae.safetensors")}
    assert len(saes) == 4 and len(set(saes.values())) == 4
    times = {f: f.stat().st_mtime_ns for f in out.glob("*/sae/sae.safetensors")}
    ablate.run(loaded)
    assert times == {f: f.stat().st_mtime_ns for f in out.glob("*/sae/sae.safetensors")}
    assert "| pick | two | 2 |" in (out / "table.md").read_text()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        f"{out}: 4 runs of 2 variants, results.jsonl, table.md; next: jhsae report report.yaml 'runs=["
    )
    assert f"[{out}/base-seed0,...]" in last
