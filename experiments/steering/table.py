"""Prints the tables from results.jsonl, or with --write puts them into README.md.

python experiments/steering/table.py [--write]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
Rows = list[dict[str, Any]]


def main() -> None:
    parts = tables(read(HERE / "results.jsonl"))
    if "--write" not in sys.argv:
        print("\n\n".join(f"## {name}\n\n{text}" for name, text in parts.items()))
        return
    readme = HERE / "README.md"
    readme.write_text(filled(readme.read_text(), parts))


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def filled(text: str, parts: dict[str, str]) -> str:
    """The page with every part between its marks."""
    for name, part in parts.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = marked.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)
    return text


def tables(rows: Rows) -> dict[str, str]:
    """The parts of the page by name."""
    of = {name: [row for row in rows if row["experiment"] == name] for name in ("planted", "trained", "attribution")}
    return {"planted": planted(of["planted"]), "cases": cases(of["planted"]), "trained": trained(of["trained"]),
            "attribution": attribution(of["attribution"])}  # fmt: skip


def moved(row: dict[str, Any]) -> bool:
    """Whether the latent beats random directions: the interval of the margin is above 0, and p below 0.05."""
    return row["effect"] is not None and row["margin_low"] > 0 and row["p"] < 0.05


def interval(values: list[float], seed: int = 0) -> str:
    """The mean with a 95 % bootstrap interval over cases."""
    rng, array = np.random.default_rng(seed), np.asarray(values)
    means = array[rng.integers(0, len(array), (10_000, len(array)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{array.mean():.2f} [{low:.2f}, {high:.2f}]"


def groups(rows: Rows, *keys: str) -> dict[tuple[str, ...], Rows]:
    """Rows by the values of some keys, in the order of the file."""
    found: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def planted(rows: Rows) -> str:
    lines = [
        "| planted as | in | moved | target | random | target less random | another case's token |",
        "|---" * 7 + "|",
    ]
    for (how, kind), own in groups(rows, "how", "kind").items():
        known = [row for row in own if row["effect"] is not None]
        numbers = (interval([row[key] for row in known]) for key in ("effect", "null", "margin", "effect_on_another"))
        lines.append(f"| {how} | {kind} | {sum(map(moved, own))} of {len(own)} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def cases(rows: Rows) -> str:
    """The cases of the first architecture, one by one."""
    lines = ["| planted as | token | effect | random, 97.5 % | effect less random | p |", "|---" * 6 + "|"]
    for (how, kind), own in groups(rows, "how", "kind").items():
        if kind != rows[0]["kind"]:
            continue
        for row in own:
            effect = f"{row['effect']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            margin = f"{row['margin']:.2f} [{row['margin_low']:.2f}, {row['margin_high']:.2f}]"
            lines.append(
                f"| {how} | `{row['token'].strip()}` | {effect} | {row['null_high']:.2f} | {margin} | {row['p']:.2g} |"
            )
    return "\n".join(lines)


def trained(rows: Rows) -> str:
    lines = ["| | moved | its own 10 tokens | random | less random |", "|---" * 5 + "|"]
    for (kind,), own in groups(rows, "kind").items():
        known = [row for row in own if row["effect"] is not None]
        numbers = (interval([row[key] for row in known]) for key in ("effect", "null", "margin"))
        silent = f" ({len(own) - len(known)} not active on a prompt)" if len(known) < len(own) else ""
        lines.append(f"| {kind} | {sum(map(moved, own))} of {len(own)}{silent} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def attribution(rows: Rows) -> str:
    lines = [
        "| | gradient | sum within 5 % of the effect | gap, median (largest) | correlation with single ablations |"
    ]
    lines.append("|---" * 5 + "|")
    for (kind, path), own in groups(rows, "kind", "path").items():
        gaps = [row["gap"] for row in own]
        pairs = np.array([pair for row in own for pair in zip(row["scores"], row["ablated"], strict=True)])
        close = sum(gap <= 0.05 for gap in gaps)
        lines.append(
            f"| {kind} | {path} | {close} of {len(own)} prompts | {np.median(gaps):.2g} ({max(gaps):.2g}) | "
            f"{np.corrcoef(pairs.T)[0, 1]:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
