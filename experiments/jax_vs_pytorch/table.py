"""Prints the tables of README.md from results.jsonl, or with --write puts them between the markers there.

    python experiments/jax_vs_pytorch/table.py [--write]

Differences and intervals are those of ``jhsae ablate`` (`jhsae.commands.ablation.effects.compared`).
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comparison import TABLES, Row

from jhsae.commands.ablation.arms import Arm
from jhsae.commands.ablation.effects import Summary, compared
from jhsae.commands.ablation.markdown import difference, spread

HERE = Path(__file__).parent
POLES = ("scale", "geometry", "scale_as_published", "geometry_as_published")
SHOWN = ("ev_r2", "ce_recovered", "l0", "dead", "parameters")
ORDER = (("order", "other"),)  # the picks of a swap that means nothing
NULLS = {"geometry_as_published": (("l1", "none"),)}  # poles with another one: a term without gradient there
APART = 0.05  # part by which a budget may differ before the row says so
HEAD = (
    "row", "swap", "at", "EV less the pole's, over seeds", "over sequences", "CE recovered less the pole's",
    "L0: pole, swap", "dead: pole, swap",
)  # fmt: skip
Found = dict[Arm, list[dict[str, Any]]]


def main() -> None:
    rows = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
    parts = made(rows)
    if "--write" not in sys.argv:
        print("\n\n".join(f"## {name}\n\n{text}" for name, text in parts.items()))
        return
    page = HERE / "README.md"
    page.write_text(filled(page.read_text(), parts))


def filled(text: str, parts: dict[str, str]) -> str:
    """The page with its tables between the markers."""
    for name, part in parts.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = marked.sub(lambda m, part=part: f"{m[1]}{part}\n{m[2]}", text)
    return text


def made(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Every table of the page, by the name of its marker."""
    arms: Found = {}
    for row in rows:
        if row["kind"] == "test":
            arm = Arm(row["pole"], tuple((axis, value) for axis, value in row["picks"]))
            arms.setdefault(arm, []).append(row)
    found = {arm: summary(arm, sorted(own, key=lambda row: row["seed"]), arms) for arm, own in arms.items()}
    return {
        "about": about(rows),
        "poles": poles(found, rows),
        **{name: table(own, found) for name, own in TABLES.items()},
        "missing": missing(found),
    }


def summary(arm: Arm, own: list[dict[str, Any]], arms: Found) -> Summary:
    """An arm beside its pole; a seed that is there twice is an error."""
    pole = sorted(arms[Arm(arm.pole)], key=lambda row: row["seed"])
    for side in (own, pole):
        if len({row["seed"] for row in side}) != len(side):
            raise ValueError(f"{arm.name}: results.jsonl has a seed twice")
    return compared(arm, own[0]["size"], own[0]["rate"], own, pole, SHOWN)


def poles(found: dict[Arm, Summary], rows: list[dict[str, Any]]) -> str:
    """The numbers of the poles, and what each peak of the learning rate gave."""
    lines = ["| pole | explained variance | CE recovered | L0 | dead | parameters | peaks tried: EV (L0), first seed |"]
    lines.append("|---" * 7 + "|")
    for pole in POLES:
        numbers = found[Arm(pole)]["numbers"]
        tried = sorted(
            (row["rate"], row["metrics"]) for row in rows if row["pole"] == pole and row["kind"] == "validation"
        )
        peaks = ", ".join(f"{rate:g}: {m['ev_r2']:.3f} ({m['l0']:.1f})" for rate, m in tried)
        lines.append(f"| {pole} | " + " | ".join(spread(numbers[name]) for name in SHOWN) + f" | {peaks} |")
    return "\n".join(lines)


def table(rows: Iterable[Row], found: dict[Arm, Summary]) -> str:
    """The swaps of one table of the original, and under them what it says and what is wrong with that."""
    lines, notes = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"], list[str]()
    for row in rows:
        own = {arm: numbers for arm, numbers in found.items() if arm.picks and arm.picks[0][0] in row.axes}
        lines += [line(row.name, arm, numbers, found) for arm, numbers in own.items()]
        said = f" ({row.jax} / {row.pytorch})" if row.jax else ""
        if own or row.see:
            notes.append(f"- **{row.name}**{said}: {row.note}")
    return "\n".join([*lines, "", *notes])


def line(name: str, arm: Arm, own: Summary, found: dict[Arm, Summary]) -> str:
    """One swap at one pole; ° where its EV changes no more than by a swap that means nothing."""
    differs, pole = own["differences"], found[Arm(arm.pole)]["numbers"]
    small = abs(differs["ev_r2"]["mean"]) <= nothing(arm.pole, found)
    cells = [name, arm.picks[0][1], arm.pole.replace("_", " "), difference(differs["ev_r2"]) + (" °" if small else "")]
    cells += [difference(differs["ev_r2_units"]), difference(differs["ce_recovered"])]
    cells += [budget(pole["l0"], own["numbers"]["l0"]) + sized(pole, own["numbers"])]
    cells += [f"{pole['dead']['mean']:.3f}, {own['numbers']['dead']['mean']:.3f}"]
    return "| " + " | ".join(cells) + " |"


def nothing(pole: str, found: dict[Arm, Summary]) -> float:
    """The largest change of one seed's EV by a swap that means nothing: at the pole, or at scale where it has none."""
    nulls = [found[arm] for name in (pole, "scale") if (arm := Arm(name, NULLS.get(name, ORDER))) in found]
    return max(abs(nulls[0]["differences"]["ev_r2"][end]) for end in ("low", "high")) if nulls else 0.0


def budget(pole: dict[str, float], own: dict[str, float]) -> str:
    """Both means; a ≠ where they are apart."""
    apart = abs(own["mean"] / pole["mean"] - 1) > APART
    return f"{pole['mean']:.1f}, {own['mean']:.1f}" + (" ≠" if apart else "")


def sized(pole: dict[str, Any], own: dict[str, Any]) -> str:
    """Parameters, where they are not the pole's."""
    ratio = own["parameters"]["mean"] / pole["parameters"]["mean"]
    return f"; parameters × {ratio:.2g} ≠" if abs(ratio - 1) > APART else ""


def missing(found: dict[Arm, Summary]) -> str:
    """The rows of the original without a measured effect."""
    axes = {axis for arm in found for axis, _ in arm.picks}
    lines = [
        f"- {row.name} ({row.jax} / {row.pytorch}): {row.note}"
        for rows in TABLES.values()
        for row in rows
        if not axes & set(row.axes) and not row.see
    ]
    return "\n".join(lines)


def about(rows: list[dict[str, Any]]) -> str:
    """Where the rows come from and what they cost."""
    commits = ", ".join(f"`{commit[:12]}`" for commit in dict.fromkeys(row["commit"] for row in rows))
    seconds = sum(row["seconds"] for row in rows)
    return (
        f"{len(rows)} rows ({sum(row['kind'] == 'test' for row in rows)} of test sequences), config hash and commit "
        f"({commits}) in each; {seconds / 60:.0f} minutes on a shared CPU."
    )


if __name__ == "__main__":
    main()
