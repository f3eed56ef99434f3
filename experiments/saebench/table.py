"""Prints the table of README.md from results.jsonl, or with --write puts it between the markers there."""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
SHOWN = {"l0": "L0", "explained_variance": "explained variance", "ce_loss_score": "CE score"}


def cell(metric: dict[str, float]) -> str:
    """SAEBench's number, ours, and how far apart they are."""
    return f"{metric['saebench']:.5f} / {metric['jhsae']:.5f} ({metric['difference']:.0e})"


def table(rows: list[dict]) -> str:
    """One line per run, positions and way of loading; and the sentence under it."""
    head = ["run", "positions", "loaded by", *(f"{title}: SAEBench / jhsae (difference)" for title in SHOWN.values())]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["name"], f"{row['positions']} ({row['tokens']:,})", row["through"]]
        lines.append("| " + " | ".join(cells + [cell(row["metrics"][name]) for name in SHOWN]) + " |")
    packages = ", ".join(f"{name} {number}" for name, number in rows[0]["packages"].items())
    hashes = ", ".join(sorted({f"{row['name']} `{row['config_hash']}`" for row in rows}))
    commits = ", ".join(sorted({f"`{row['evaluation']['commit']}`" for row in rows}))
    logits = max(row["logits_differ"] for row in rows)
    density = max(row["density_differs"] for row in rows)
    note = (
        f"{rows[0]['sequences']} held-out sequences. Logits of the language model, TransformerLens's and ours, differ "
        f"by at most {logits:.0e}, the frequency of any latent by {density:.0e}. {packages}. Config hashes: {hashes}; "
        f"evaluated at commit {commits}."
    )
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    """Prints or writes the table."""
    text = table([json.loads(row) for row in (HERE / "results.jsonl").read_text().splitlines()])
    if "--write" not in sys.argv:
        print(text)
        return
    marked = re.compile(r"(<!-- table -->\n).*?(<!-- end of table -->)", re.DOTALL)
    readme = HERE / "README.md"
    readme.write_text(marked.sub(lambda m: m[1] + text + m[2], readme.read_text()))


if __name__ == "__main__":
    main()
