"""Prints the README's table from results.jsonl, or with --write puts it between the README's table markers."""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
HEAD = (
    "| | explained variance | CE recovered | L0 (parents + atoms) | dead features | off 90° (null) | parameters "
    "| training |"
)


def line(row: dict) -> str:
    """One run as a row of the table."""
    m = row["metrics"]
    parts = f"{m['l0']:.1f}" + (f" | {m['l0_parents']:.1f} + {m['l0_atoms']:.1f}" if "l0_parents" in m else " | flat")
    angle = "n/a"
    if "parent_child_off_90" in m:
        angle = f"{m['parent_child_off_90']:.2f}° ({m['parent_child_off_90_null']:.2f}°)"
    return (
        f"| {row['name']} | {m['ev_r2']:.3f} | {m['ce_recovered']:.3f} | {parts} | {100 * m['dead']:.1f} % | {angle} "
        f"| {m['parameters']:,} | {m['train_seconds']:.0f} s |"
    )


def table(rows: list[dict]) -> str:
    """The table and the sentence under it."""
    m, evaluation = rows[0]["metrics"], rows[0]["evaluation"]
    head = HEAD.replace("L0 (parents + atoms)", "L0 | parents + atoms")
    hashes = ", ".join(f"{row['name']} `{row['config_hash']}`" for row in rows)
    note = (
        f"Held-out WordNet glosses, {m['rows']:,} tokens; layer 2 of the embedded 4-layer model; one seed; "
        f"{evaluation['platform']}, {evaluation['device_count']} device. Explained variance is the centred R². "
        f"Cross-entropy (nats per token) is {m['ce_model']:.2f} for the model and {m['ce_zero']:.2f} with zeros in "
        f"place of the layer. Off 90°: median distance of the angle between an atom and its expert from a right angle, "
        f"in the causal metric, beside the same atoms paired with other experts. Config hashes: {hashes}; commit "
        f"`{rows[0]['commit'][:12]}`. Raw numbers and the command: `experiments/quickstart/`."
    )
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *map(line, rows), "", note]) + "\n"


def main() -> None:
    """Prints or writes the table."""
    text = table([json.loads(row) for row in (HERE / "results.jsonl").read_text().splitlines()])
    if "--write" not in sys.argv:
        print(text)
        return
    marked = re.compile(r"(<!-- table: experiments/quickstart -->\n).*?(<!-- end of table -->)", re.DOTALL)
    README.write_text(marked.sub(lambda m: m[1] + text + m[2], README.read_text()))


if __name__ == "__main__":
    main()
