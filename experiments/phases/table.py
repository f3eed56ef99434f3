"""Prints the tables of the four experiments from results.jsonl, or with --write puts them into README.md.

    python experiments/phases/table.py [--write]

Means over seeds, in brackets the smallest and the largest; under a table the paired differences that it is about, one
sentence each: over concepts or sequences as the units, every seed beside the same seed of the other variant.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jhsae.evals import nulls

HERE = Path(__file__).parent
Rows = list[dict[str, Any]]
RUN = {
    "ev_r2": "explained variance",
    "ce_recovered": "CE recovered",
    "kl": "KL",
    "l0": "L0",
    "dead": "dead",
    "f1_concepts": "F1, unseen words of the concepts",
    "f1_wordnet": "F1, WordNet files",
    "purity_concepts": "purity, concepts",
    "absorption": "absorption",
    "off_90": "off 90°",
}
TEACHER = {
    "heldout": "projection of held-out words",
    "auc": "AUC",
    "off_90": "off 90°, unseen child",
}
NULLS = ("shuffled", "random", "other", "swap")


def main() -> None:
    rows = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
    parts = {name: make(rows) for name, make in TABLES.items()}
    if "--write" not in sys.argv:
        print("\n\n".join(f"## {name}\n\n{text}" for name, text in parts.items()))
        return
    readme, text = HERE / "README.md", (HERE / "README.md").read_text()
    for name, part in parts.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = marked.sub(lambda m, part=part: f"{m[1]}{part}\n{m[2]}", text)
    readme.write_text(text)


def of(rows: Rows, experiment: str) -> dict[str, Rows]:
    """The rows of an experiment by variant, ordered by seed."""
    own = [row for row in rows if row["experiment"] == experiment]
    return {
        name: sorted((row for row in own if row["variant"] == name), key=lambda row: str(row["seed"]))
        for name in dict.fromkeys(row["variant"] for row in own)
    }


def cell(rows: Rows, name: str) -> str:
    """Mean and range of one number, and the mean of its null where it has one."""
    values = [row["numbers"][name] for row in rows if row["numbers"].get(name) is not None]
    if not values:
        return "n/a"
    null = [row["numbers"][f"{name}_null"] for row in rows if row["numbers"].get(f"{name}_null") is not None]
    return spread(values) + (f"; {np.mean(null):.3g}" if null else "")


def spread(values: list[float]) -> str:
    """Mean, and the smallest and the largest in brackets."""
    return f"{np.mean(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def table(groups: dict[str, Rows], columns: dict[str, str]) -> str:
    """A Markdown table, a line per variant."""
    lines = ["| | seeds | " + " | ".join(columns.values()) + " |", "|---" * (2 + len(columns)) + "|"]
    for name, rows in groups.items():
        lines.append(f"| {name} | {len(rows)} | " + " | ".join(cell(rows, c) for c in columns) + " |")
    return "\n".join(lines)


def pairs(first: Rows, second: Rows) -> tuple[Rows, Rows]:
    """The rows of seeds that both sides have."""
    seeds = [row["seed"] for row in first if row["seed"] in [other["seed"] for other in second]]
    return tuple([row for row in side if row["seed"] in seeds] for side in (first, second))  # type: ignore[return-value]


def paired(groups: dict[str, Rows], one: str, other: str, names: tuple[str, ...]) -> list[str]:
    """A sentence per unit-wise difference between two variants."""
    if one not in groups or other not in groups:
        return []
    a, b = pairs(groups[one], groups[other])
    return [line(f"{name}: {one} less {other}", *([row["units"][name] for row in side] for side in (a, b)))
            for name in names if a and name in a[0]["units"] and name in b[0]["units"]]  # fmt: skip


def line(name: str, first: list[dict], second: list[dict]) -> str:
    """The sentence of one paired difference, with the mean of every seed."""
    result = nulls.paired(first, second)
    if result is None:
        return f"- {name}: no pair has a value."
    seeds = [nulls.paired([a], [b]) for a, b in zip(first, second, strict=True)]
    signs = {np.sign(s.estimate) for s in seeds if s is not None}
    each = ", ".join("none" if s is None else f"{s.estimate:+.3g}" for s in seeds)
    doubt = " **The seeds differ in sign.**" if result.significant and len(signs) > 1 else ""
    return f"- {nulls.sentence(result, name)} By seed: {each}.{doubt}"


def initialisation(rows: Rows) -> str:
    groups, same = of(rows, "initialisation"), of(rows, "stability")
    text = table(groups, RUN)
    names = ("ev_r2", "f1_concepts", "f1_wordnet", "absorption")
    for one, other in (("teacher", "permuted"), ("teacher", "random"), ("permuted", "random"), ("teacher", "flat"),
                       ("teacher", "random_frozen"), ("teacher", "parents_only")):  # fmt: skip
        if found := paired(groups, one, other, names):
            text += "\n\n" + "\n".join(found)
    if same:
        text += "\n\nTwo seeds of one variant, matched:\n\n"
        text += table(same, {"cosine": "cosine of parents' rows", "overlap": "overlap of subspaces"})
    return text


def penalties(rows: Rows) -> str:
    start = of(rows, "initialisation")
    groups = {"all": start.get("teacher", []), **of(rows, "penalties"), "random_all": start.get("random", [])}
    text = table({name: found for name, found in groups.items() if found}, RUN)
    names = ("ev_r2", "f1_concepts", "absorption")
    for one, other in (("all", "no_causal"), ("all", "no_bi"), ("all", "none"), ("random_all", "random_no_causal")):
        if found := paired(groups, one, other, names):
            text += "\n\n" + "\n".join(found)
    return text


def teacher(rows: Rows) -> str:
    """Medians over units, as in teacher.json, of the model and of its nulls."""
    groups = of(rows, "teacher")
    head = ["| | seeds | condition | " + " | ".join(f"{w} ({', '.join(NULLS)})" for w in TEACHER.values())]
    head[0] += " | the original's share ≥ 80° (random weights) |"
    lines = [*head, "|---" * (4 + len(TEACHER)) + "|"]
    for name, found in groups.items():
        cells = [middle(found, what) for what in TEACHER]
        share = [[r["numbers"].get(k) for r in found] for k in ("original_share", "original_share_random")]
        shares = "n/a" if None in share[0] else f"{np.mean(share[0]):.2f} ({np.mean(share[1]):.2f})"
        condition = spread([r["numbers"]["condition"] for r in found])
        lines.append(f"| {name} | {len(found)} | {condition} | " + " | ".join([*cells, shares]) + " |")
    text = "\n".join(lines)
    for name in ("park", "mean", "lda", "logistic"):
        sentences = [
            line(f"{name}, {what} less {null}", [r["units"][what] for r in groups[name]],
                 [r["units"][f"{what}_{null}"] for r in groups[name]])
            for what in TEACHER for null in NULLS
            if name in groups and f"{what}_{null}" in groups[name][0]["units"]
        ]  # fmt: skip
        text += "\n\n" + "\n".join(sentences) if sentences else ""
    return text


def middle(rows: Rows, what: str) -> str:
    """The median over units, averaged over seeds, with the same of the nulls in parentheses."""
    if what not in rows[0]["units"]:
        return "n/a"

    def median(name: str) -> str:
        found = [np.median([*row["units"][name].values()]) for row in rows if row["units"].get(name)]
        return f"{np.mean(found):.3g}" if found else "n/a"

    return f"{median(what)} ({', '.join(median(f'{what}_{null}') for null in NULLS)})"


def steering(rows: Rows) -> str:
    groups = of(rows, "steering")
    columns = {"target": "target", "siblings": "siblings", "unrelated": "unrelated", "selectivity": "selectivity"}
    text = table(groups, columns)
    against = [
        line(f"{what} of {name} less random directions", [r["units"][what] for r in found],
             [r["units"][f"{what}_null"] for r in found])
        for name, found in groups.items() for what in ("target", "selectivity")
    ]  # fmt: skip
    text += "\n\n" + "\n".join(against)
    for one, other in (("teacher", "permuted"), ("teacher", "random"), ("teacher", "flat")):
        if found := paired(groups, one, other, ("target", "siblings", "selectivity")):
            text += "\n\n" + "\n".join(found)
    return text


TABLES = {"teacher": teacher, "initialisation": initialisation, "penalties": penalties, "steering": steering}

if __name__ == "__main__":
    main()
