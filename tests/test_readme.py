"""The README's example runs as printed, its table is that of the results file, its file tree is complete."""

import json
import re
from pathlib import Path

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
    assert len(rows) == 3
    for row in rows:
        line = next(line for line in table[2].splitlines() if line.startswith(f"| {row['name']} "))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        m = row["metrics"]
        assert f"{m['ev_r2']:.3f}" in cells and f"{m['ce_recovered']:.3f}" in cells
        assert f"{m['l0']:.1f}" in cells and f"{m['parameters']:,}" in cells
        assert row["config_hash"] in table[2] and row["commit"] and "dirty" not in row["commit"]


def test_every_file_of_the_package_is_in_the_tree():
    tree = README[README.index("## Files") :]
    for path in sorted((ROOT / "jhsae").rglob("*.py")):
        name = path.name if path.parent.name == "jhsae" else path.parent.name + "/"
        assert re.search(rf"^\s*{re.escape(name)}", tree, re.MULTILINE) or name == "__init__.py", name


def test_the_commands_of_ci_and_readme_are_one():
    assert "<!-- command: tests -->" in README and "command: tests" in (ROOT / ".ci" / "run").read_text()
