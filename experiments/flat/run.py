"""Trains and evaluates every config of configs/flat on the embedded language model; one row of results.jsonl each.

    jhsae harvest harvest/embedded.yaml out=stores/embedded
    jhsae harvest harvest/embedded_heldout.yaml out=stores/embedded-heldout
    python experiments/flat/run.py [NAME ...] [--runs FOLDER]
    python experiments/flat/run.py --comments

A name is that of a file without .yaml; all by default. The last command writes the numbers into the opening comments
of the configs and the table into README.md.
"""

import argparse
import re
from pathlib import Path

from jhsae import config as cfg
from jhsae.commands import evaluate
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.folders import write_whole
from jhsae.training.config import Train
from jhsae.training.run import train

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "flat"
RESULTS = HERE / "results.jsonl"
NAMES = [path.stem for path in sorted(CONFIGS.glob("*.yaml"))]
HELD_OUT = "stores/embedded-heldout"


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}")
    top.add_argument("--runs", type=Path, default=Path("runs/flat"))
    top.add_argument("--comments", action="store_true", help="write the results into configs and README")
    arguments = top.parse_args()
    if arguments.comments:
        write_comments()
        return
    for name in arguments.names or NAMES:
        folder = train(cfg.load(Train, CONFIGS / f"{name}.yaml", [f"out={arguments.runs / name}"]))
        row = evaluate.run(evaluate.Evaluate(str(folder), HELD_OUT, "embedded", sequences=128))
        kept = [old for old in rows() if old["name"] != name]
        write_whole(RESULTS, "".join(to_json(one) + "\n" for one in [*kept, row]))


def rows() -> list[dict]:
    """The rows there are; one per config."""
    return read_lines(RESULTS) if RESULTS.exists() else []


def write_comments() -> None:
    """The line of each config that says what it cost and reached, and the table."""
    found = {row["name"]: row for row in rows()}
    lines = [
        "| config | explained variance | CE recovered | L0 | dead | seconds | config hash |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        m, digest = found[name]["metrics"], found[name]["config_hash"]
        path = CONFIGS / f"{name}.yaml"
        text = re.sub(
            r"^# (COST|Reached:).*$", f"# Reached: {reached(m)}.", path.read_text(), count=1, flags=re.MULTILINE
        )
        path.write_text(text)
        cells = (
            f"{m['ev_r2']:.3f} | {m['ce_recovered']:.3f} | {m['l0']:.1f} | {m['dead']:.3f} | {m['train_seconds']:.0f}"
        )
        lines.append(f"| `flat/{name}.yaml` | {cells} | `{digest}` |")
    commits = ", ".join(f"`{commit[:12]}`" for commit in sorted({row["commit"] for row in rows()}))
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end of table -->\n")
    table = "\n".join(lines) + f"\n\nCommit {commits}.\n"
    readme.write_text(f"{before}<!-- table -->\n{table}<!-- end of table -->\n{after}")


def reached(m: dict) -> str:
    """The numbers to expect, in one line."""
    return (
        f"held-out EV {m['ev_r2']:.3f}, CE recovered {m['ce_recovered']:.3f}, L0 {m['l0']:.1f}, dead {m['dead']:.3f}; "
        f"{m['train_seconds']:.0f} s on one busy CPU core"
    )


if __name__ == "__main__":
    main()
