"""experiments/many: the example of its page and the study run at tiny size; its table is that of the results."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

MANY = Path(__file__).parents[1] / "experiments" / "many"
PAGE = (MANY / "README.md").read_text()


def test_the_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("runs/small_layers")]
    assert printed == [f"runs/small_layers/layer{n} {n} 1024" for n in (1, 2, 3)]


def test_the_table_is_that_of_the_results():
    """Every ratio is of one round, on a clean commit; no file of a run together differs."""
    rows = [json.loads(line) for line in (MANY / "results.jsonl").read_text().splitlines()]
    study = runpy.run_path(str(MANY / "run.py"))
    assert study["table"](rows, rows[0]) in PAGE and "dirty" not in rows[0]["commit"]
    assert [row["differing"] for row in rows if row["arm"] == "bits"] == [[]] * len({row["round"] for row in rows})
    assert study["hashes"](study["shared_words"](study["WORK"], rows[0]["rows"])) == rows[0]["config_hashes"]


@pytest.mark.slow
def test_the_study_at_tiny_size(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(PAGE)
    words = ["run.py", "--work", str(tmp_path / "work"), "--rounds", "1", "--rows", "80000", "--page", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(MANY / "run.py"), run_name="__main__")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == ["harvest", "longest", "together", "alone", "bits"]
    assert rows[-1]["differing"] == [] and "byte for byte equal" in (tmp_path / "README.md").read_text()
