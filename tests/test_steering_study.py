"""The steering experiment: its page is that of its results, what it claims holds, and it runs at tiny size."""

import json
import runpy
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[1] / "experiments" / "steering"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    return runpy.run_path(str(STUDY / "table.py"))


def test_the_page_is_that_of_the_results_file(table):
    text = (STUDY / "README.md").read_text()
    rows = table["read"](STUDY / "results.jsonl")
    assert text == table["filled"](text, table["tables"](rows)) and "| before | flat, Whiten | " in text
    assert all(row["commit"] and "dirty" not in row["commit"] for row in rows)


def test_at_least_eight_of_ten_planted_cases_move_and_beat_random_directions(table):
    rows = [row for row in table["read"](STUDY / "results.jsonl") if row["experiment"] == "planted"]
    for (how, kind), own in table["groups"](rows, "how", "kind").items():
        least = 8 if how == "unembedding" or kind.startswith(("flat", "gated")) else 7
        assert len(own) == 10 and sum(map(table["moved"], own)) >= least, (how, kind)


def test_attributions_add_up_where_the_error_term_is_kept(table):
    rows = [row for row in table["read"](STUDY / "results.jsonl") if row.get("path") == "AlongPath"]
    assert len(rows) == 32 and all(row["gap"] <= 0.05 for row in rows)


@pytest.mark.slow
def test_it_runs_at_tiny_size(table, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["planted.py", "--tiny", "--results", str(tmp_path / "tiny.jsonl")])
    runpy.run_path(str(STUDY / "planted.py"), run_name="__main__")
    rows = [json.loads(line) for line in (tmp_path / "tiny.jsonl").read_text().splitlines()]
    assert {row["experiment"] for row in rows} == {"planted", "trained", "attribution"}
    assert all(part for part in table["tables"](rows).values())
    assert all(row["gap"] <= 0.05 for row in rows if row.get("path") == "AlongPath")
