"""The page on the original comparison: its tables are those of its rows, and its axes those of the config."""

import json
import re
import runpy
from pathlib import Path

import pytest

from jhsae import config as cfg
from jhsae.commands.ablation.arms import Arm
from jhsae.commands.ablation.config import Ablate
from jhsae.commands.ablation.plan import Study

FOLDER = Path(__file__).parents[1] / "experiments" / "jax_vs_pytorch"
ROWS = [json.loads(line) for line in (FOLDER / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return runpy.run_path(str(FOLDER / "table.py"))


@pytest.fixture(scope="module")
def study():
    return cfg.load(Ablate, cfg.find("ablate/jax_vs_pytorch.yaml"))


def test_the_page_is_made_of_the_results(table):
    page, parts = (FOLDER / "README.md").read_text(), table["made"](ROWS)
    assert table["filled"](page, parts) == page
    assert re.findall(r"<!-- (\w+) -->", page.replace("<!-- end -->", "")) == list(parts)
    assert all(re.fullmatch(r"[0-9a-f]{40}", row["commit"]) for row in ROWS)


def test_every_axis_is_of_a_row_of_the_original(table, study):
    named = [axis for rows in table["TABLES"].values() for row in rows for axis in row.axes]
    assert sorted(named) == sorted(study.axes)


def test_a_difference_is_that_of_pairs_of_seeds(table):
    """By hand: the mean of three differences, and with three seeds the interval is their range."""
    own, pole = ([_row(picks, seed, ev) for seed, ev in enumerate(values)] for picks, values in (
        ([["clip", "c1"]], (0.5, 0.7, 0.6)), ([], (0.4, 0.5, 0.8)),
    ))  # fmt: skip
    text = table["made"]([*own, *pole, *([_row([], 0, 0.1, name)][0] for name in study_poles(table))])["training"]
    assert "| Norm clipping | c1 | scale | +0.0333 [-0.2, +0.2] |" in text


def study_poles(table):
    return [name for name in table["POLES"] if name != "scale"]


def _row(picks, seed, ev, pole="scale"):
    metrics = {"ev_r2": ev, "ce_recovered": ev, "l0": 16.0, "dead": 0.0, "parameters": 100, "tokens": 10}
    return {
        "pole": pole, "picks": picks, "size": [], "rate": None, "seed": seed, "kind": "test", "config_hash": f"{ev}",
        "commit": "0" * 40, "seconds": 1.0, "metrics": metrics, "units": {"ev_r2": {"0": ev, "1": ev}},
    }  # fmt: skip


def test_the_rows_are_runs_of_the_config(study):
    """One in sixteen, the poles' first among them: loading a config takes long."""
    test = [row for row in ROWS if row["kind"] == "test"]
    found = {(row["arm"], row["seed"]): row for row in test}
    assert len(found) == len(test)
    plan = Study(study, [])
    for row in sorted(test, key=lambda row: len(row["picks"]))[::16]:
        arm = Arm(row["pole"], tuple((axis, value) for axis, value in row["picks"]))
        assert Path(plan.settings(arm, (), None, row["seed"]).out).name == row["config_hash"], arm.name
