"""Writes the tables of README.md and truth.png from results.jsonl.

    python experiments/truth/table.py

A cell is the mean over seeds ± half of the range from the smallest to the largest; without ± there is one seed.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from arms import ARMS, FLAT, HIERARCHICAL, NARROW, STARTED, Size, kind, swept_at
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study import best_of

HERE = Path(__file__).parent
SIZE = Size()
Row = dict[str, Any]
Value = Callable[[Row], float | None]
COLOURS = dict(zip((*FLAT, *HIERARCHICAL), ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#D55E00"), strict=True))  # fmt: skip  # noqa: E501
COMPARED = (*FLAT, *HIERARCHICAL)


def metric(name: str) -> Value:
    """A number of a row's metrics."""
    return lambda row: row["metrics"].get(name)


def part(*path: str) -> Value:
    """A number inside a row's parts; None where the arm has no such part."""

    def value(row: Row) -> float | None:
        found = row["parts"]
        for name in path:
            found = None if found is None else found.get(name)
        return found

    return value


def level(number: int, name: str) -> Value:
    """A score of the features of one level, from any latent."""
    return lambda row: row["parts"]["levels"][number][name]


BEST: dict[str, Value] = {
    "explained variance": metric("ev_r2"),
    "MCC": metric("mcc"),
    "F1 of latents": metric("f1"),
    "F1 of features": metric("feature_f1"),
    "best F1 of the roots": part("roots", "any", "best_f1"),
}
MAIN: dict[str, Value] = {
    "latents": metric("latents"),
    "parameters": metric("parameters"),
    "encoder products": lambda row: row["encoder_products"],
    "L0": metric("l0"),
    "parents' L0": metric("l0_parents"),
    "EV": metric("ev_r2"),
    "MCC": metric("mcc"),
    "F1 of latents": metric("f1"),
    "F1 of features": metric("feature_f1"),
    "dead latents": metric("dead_latents"),
}
HIERARCHY: dict[str, Value] = {
    "roots found: any latent": part("roots", "any", "found"),
    "best F1": part("roots", "any", "best_f1"),
    "by parents": part("roots", "parents", "found"),
    "by the first 16": part("roots", "prefix", "found"),
    "tree": part("tree", "share"),
    "chance": part("tree", "chance_p99"),
    "edges": part("edges", "share"),
    "chance ": part("edges", "chance_p99"),
    "absorption, hard": part("absorption", "hard"),
    "soft": part("absorption", "soft"),
    "hedging": part("hedging", "hedging"),
}
LEVELS: dict[str, Value] = {
    f"level {i}: {words}": level(i, name)
    for i in range(4)
    for name, words in (("any_mcc", "MCC"), ("feature_f1", "F1 of features"))
}


def main() -> None:
    """Writes tables and figure."""
    rows = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
    text = (HERE / "README.md").read_text()
    for name, lines in made(rows).items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text = marked.sub(lambda m, new=lines: m[1] + new + m[2], text)
    (HERE / "README.md").write_text(text)
    draw(chosen(rows)).savefig(HERE / "truth.png", dpi=110, metadata={"Software": None})


def made(rows: list[Row]) -> dict[str, str]:
    """The parts of README.md that are written here, by the name of their marker."""
    return {
        "rates": rates(rows),
        "main": table(chosen(rows), MAIN, ARMS, SIZE.swept),
        "hierarchy": table(chosen(rows), HIERARCHY, ARMS, SIZE.swept),
        "levels": table(chosen(rows), LEVELS, ARMS, SIZE.swept),
        "best": best(chosen(rows)),
        "l0s": by_l0(chosen(rows)),
        "about": about(rows),
    }


def best_rates(rows: list[Row]) -> dict[str, float]:
    """The rate of each arm, chosen as the study does, at the L0 and seed of the sweep."""
    arms = dict.fromkeys(row["arm"] for row in swept(rows))
    return {arm: best_of([row for row in swept(rows) if row["arm"] == arm])["rate"] for arm in arms}


def swept(rows: list[Row]) -> list[Row]:
    """The rows of the sweep of rates."""
    return [
        row for row in rows if row["arm"] in COMPARED and row["seed"] == 0 and row["l0"] == swept_at(row["arm"], SIZE)
    ]


def chosen(rows: list[Row]) -> list[Row]:
    """The rows at the best rate of their arm."""
    best = best_rates(rows)
    return [row for row in rows if row["rate"] == best[kind(row["arm"])]]


def of(rows: list[Row], arm: str, l0: int) -> list[Row]:
    """The seeds of an arm at an L0."""
    return [row for row in rows if row["arm"] == arm and row["l0"] == l0]


def mean(rows: Iterable[Row], value: Value) -> float | None:
    """The mean over rows; None where the number is not defined for any."""
    found = [v for v in map(value, rows) if v is not None]
    return sum(found) / len(found) if found else None


def cell(rows: list[Row], value: Value) -> str:
    """Mean ± half the range."""
    found = [v for v in map(value, rows) if v is not None]
    if not found:
        return "-"
    middle, half = sum(found) / len(found), (max(found) - min(found)) / 2
    if max(map(abs, found)) > 100 or all(float(v).is_integer() for v in found):
        return f"{middle:,.0f}" + (f" ± {half:,.0f}" if half else "")
    return f"{middle:.3f}" + (f" ± {half:.3f}" if len(found) > 1 else "")


def joined(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def table(rows: list[Row], columns: dict[str, Value], arms: Iterable[str], l0: int) -> str:
    """One line for each arm at one L0."""
    lines = [
        [arm, str(len(found)), *(cell(found, value) for value in columns.values())]
        for arm in arms
        if (found := of(rows, arm, l0))
    ]
    return joined(["arm", "seeds", *map(str.strip, columns)], lines)


def rates(rows: list[Row]) -> str:
    """Validation explained variance by rate, and the L0 there."""
    best = best_rates(rows)
    found = {
        (row["arm"], row["rate"]): f"{row['validation_ev']:.3f} (L0 {row['metrics']['l0']:.1f})" for row in swept(rows)
    }
    peaks = sorted({row["rate"] for row in swept(rows)})
    lines = []
    for arm in best:
        cells = [f"{found[arm, rate]}" if (arm, rate) in found else "-" for rate in peaks]
        lines.append([arm, *cells, f"{best[arm]:g}"])
    return joined(["arm", *(f"{rate:g}" for rate in peaks), "chosen"], lines)


def by_l0(rows: list[Row]) -> str:
    """Measured L0, explained variance and recovery at every L0."""
    columns = {"L0": metric("l0")} | BEST
    lines = [
        [arm, str(l0), str(len(found)), *(cell(found, value) for value in columns.values())]
        for arm in ARMS
        for l0 in sorted(SIZE.l0s)
        if (found := of(rows, arm, l0))
    ]
    return joined(["arm", "set L0", "seeds", *columns], lines)


def best(rows: list[Row]) -> str:
    """Which comparable arm leads on what, at every L0, and by how much."""
    lines = []
    for name, value in BEST.items():
        line = [name]
        for l0 in sorted(SIZE.l0s):
            scores = {arm: mean(of(rows, arm, l0), value) for arm in COMPARED if of(rows, arm, l0)}
            order = sorted((s, arm) for arm, s in scores.items() if s is not None)[::-1][:2]
            line.append(", ".join(f"{arm} {score:.3f}" for score, arm in order) or "-")
        lines.append(line)
    return joined(["first and second", *(f"L0 {l0}" for l0 in sorted(SIZE.l0s))], lines)


def about(rows: list[Row]) -> str:
    """Where the rows come from."""
    commits = ", ".join(f"`{name}`" for name in sorted({row["commit"][:12] + row["commit"][40:] for row in rows}))
    hours = sum(row["seconds"] for row in rows) / 60
    wide = sorted({(row["config_hash"]) for row in chosen(rows) if row["l0"] == SIZE.swept and row["seed"] == 0})
    return (
        f"{len(rows)} runs, {SIZE.steps:,} steps of {SIZE.batch} tokens each; {hours:.0f} minutes of training on one "
        f"shared CPU core; {SIZE.rows:,} held-out tokens; true L0 {rows[0]['metrics']['true_l0']:.2f}. Commit "
        f"{commits}; every row has its config hash ({len(wide)} at L0 {SIZE.swept} and seed 0: {', '.join(wide)}).\n"
    )


def draw(rows: list[Row]) -> Figure:
    """Every score against measured L0: wide arms solid, narrow ones dashed, those started at the truth as stars."""
    figure = Figure(figsize=(15, 3.6), facecolor="white", layout="constrained")
    panels = [figure.add_subplot(1, len(BEST), i + 1) for i in range(len(BEST))]
    for axes, (name, value) in zip(panels, BEST.items(), strict=True):
        for arm in ARMS:
            _line(axes, rows, arm, value)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel("L0, held out")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _line(axes: Axes, rows: list[Row], arm: str, value: Value) -> None:
    points = [(mean(found, metric("l0")), mean(found, value)) for l0 in SIZE.l0s if (found := of(rows, arm, l0))]
    if not points:
        return
    style = {"ls": "--", "marker": "o", "mfc": "white"} if arm in NARROW else {"ls": "-", "marker": "o"}
    colour = COLOURS[kind(arm)]
    if arm in STARTED:
        style = {"ls": "", "marker": {"geometry_roots": "*", "geometry_permuted": "x", "geometry_all": "P"}[arm]}
    axes.plot(*zip(*sorted(points), strict=True), color=colour, ms=5, label=arm, **style)


if __name__ == "__main__":
    main()
