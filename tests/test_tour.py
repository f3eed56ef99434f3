"""The scripts of experiments/tour run at tiny size, and the committed figures are those of the committed numbers."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

TOUR = Path(__file__).parents[1] / "experiments" / "tour"
SCRIPTS = ("own_array", "look_at_hsae", "ablation")


def committed(name):
    rows = [json.loads(line) for line in (TOUR / "results.jsonl").read_text().splitlines()]
    return next(row for row in rows if row["name"] == name)


@pytest.fixture
def tiny(tmp_path, monkeypatch, capsys):
    """Runs a script at tiny size and gives its row of results.jsonl and what it printed."""

    def run(name):
        words = [str(TOUR / f"{name}.py"), "--tiny", "--out", str(tmp_path / "out"), "--figures", str(tmp_path)]
        monkeypatch.syspath_prepend(TOUR)
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(words[0], run_name="__main__")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        (row,) = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
        assert row["name"] == name and row["config_hash"] and row["versions"]["jax"]
        return row["numbers"], capsys.readouterr().out

    return run


def test_own_array(tiny):
    numbers, printed = tiny("own_array")
    assert numbers.keys() == committed("own_array")["numbers"].keys()
    for found in numbers.values():
        assert 0.3 < found["ev_r2"] < 1 and 4 < found["l0"] <= 8 and 0.2 < found["mean_best_cosine"] < 1
    assert "made" in printed


def test_look_at_hsae(tiny):
    numbers, printed = tiny("look_at_hsae")
    assert 0 < numbers["live_experts"] <= 16 and 0 < numbers["atoms_per_token"] <= numbers["parents_per_token"] <= 11
    assert f"expert {numbers['expert']}" in printed and "atom " in printed
    assert numbers["contexts"] and all(
        re.search(r"\[.+\]", text) for some in numbers["contexts"].values() for text in some
    )


@pytest.mark.slow
def test_ablation(tiny):
    numbers, printed = tiny("ablation")
    assert numbers.keys() == {"base", "residual"}
    assert all(
        len(values) == 1 and np.isfinite(values).all() for found in numbers.values() for values in found.values()
    )
    assert numbers["base"]["ev_r2"] != numbers["residual"]["ev_r2"]
    assert "| child_input | residual | 1 |" in printed


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_quotes_the_committed_numbers(name):
    """Every number of a paragraph's table is in results.jsonl, made on a clean commit; the figure is shown."""
    row, page = committed(name), (TOUR / "README.md").read_text()
    assert row["config_hash"] and re.fullmatch(r"[0-9a-f]{40}", row["commit"])
    assert f"]({name}.png)" in page and f"{name}.py" in page and row["commit"][:12] in page
    for found in row["numbers"].values():
        if isinstance(found, dict) and "ev_r2" in found:
            assert f"{np.mean(found['ev_r2']):.3f}" in page
