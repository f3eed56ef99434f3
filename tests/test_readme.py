"""The README's example runs as printed, its table is that of the results file, its tree has every room."""

import html
import json
import re
import runpy
from pathlib import Path

from test_floors import FLOOR

from jhsae.commands.table import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_as_printed(capsys):
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", README, re.DOTALL)[1]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 15
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["metrics"][-1]["explained_variance"] > 0.5
    assert scope["x_hat"].shape == (8, 64) and int(scope["codes"].l0().max()) <= 8
    assert capsys.readouterr().out.strip()


def test_the_table_is_that_of_the_results_file():
    table = re.search(r"<!-- table: (.*?) -->\n(.*?)<!-- end of table -->", README, re.DOTALL)
    rows = [json.loads(line) for line in (ROOT / table[1] / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row in rows:
        line = next(line for line in table[2].splitlines() if line.startswith(f"| {row['name']} "))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        m = row["metrics"]
        assert f"{m['ev_r2']:.3f}" in cells and f"{m['ce_recovered']:.3f}" in cells
        assert f"{m['l0']:.1f}" in cells and f"{m['parameters']:,}" in cells
        assert row["config_hash"] in table[2] and row["commit"] and "dirty" not in row["commit"]


def test_the_tree_has_every_room_in_the_order_of_the_floors():
    tree = re.search(r"```\ncodes(.*?)```", README, re.DOTALL)[0].strip("`\n").splitlines()
    rooms = [[word.rstrip("/") for word in re.split(r"  +|(?<=__) ", line)[0].split(", ")] for line in tree]
    listed = [room for line in rooms for room in line]
    assert sorted(listed) == sorted(FLOOR), "keep the tree of the README and FLOORS in tests/test_floors.py in step"
    floors = [FLOOR[room] for room in listed]
    assert floors == sorted(floors), "a room is listed above one that it may import from"
    for line, names in zip(tree, rooms, strict=True):
        folders = [word for word in re.split(r"  +|(?<=__) ", line)[0].split(", ") if word.endswith("/")]
        assert folders == [f"{name}/" for name in names if (ROOT / "jhsae" / name).is_dir()], line


def test_every_verb_is_in_the_table():
    table = README[README.index("| verb |") : README.index("## Scale")]
    listed = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert len(listed) == len(VERBS) and set(listed) == VERBS.keys()


def test_links_and_paths_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists()]


def test_it_can_be_read_in_ten_minutes():
    assert len(README.splitlines()) <= 185


def test_the_figure_is_that_of_the_results_files():
    path = ROOT / "experiments" / "quickstart" / "figure.py"
    figure = runpy.run_path(str(path))
    drawn = re.search(r"<dc:description>(.*?)</dc:description>", path.with_suffix(".svg").read_text(), re.DOTALL)[1]
    rows = [*figure["results"]("quickstart"), *figure["results"]("flat")]
    assert html.unescape(drawn) == figure["description"](rows), f"python {path} draws it again"


def test_the_figure_is_drawn(tmp_path):
    draw = runpy.run_path(str(ROOT / "experiments" / "quickstart" / "figure.py"))["draw"]
    draw(tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert all(word in text for word in ("scale", "geometry", "topk", "parents only", "token x"))


def test_the_commands_of_ci_and_readme_are_one():
    assert "<!-- command: tests -->" in README and "command: tests" in (ROOT / ".ci" / "run").read_text()
