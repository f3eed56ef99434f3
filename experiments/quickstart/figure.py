"""Draws figure.svg: the H-SAE as a diagram, and explained variance against L0 of the quickstart's SAEs.

    python experiments/quickstart/figure.py [FILE.svg]

Every number comes from results.jsonl beside this file and from ../flat/results.jsonl.
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLOURS = {"scale": "#0072B2", "geometry": "#D55E00", "topk": "#009E73", "pursuit": "#B8578E"}
OFF, ON, LINE = "#f2f2f2", "#0072B2", "#bbbbbb"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "jhsae", "font.size": 9, "font.family": "sans-serif"}


def results(folder: str) -> list[dict]:
    """The rows of an experiment's results file."""
    return [json.loads(line) for line in (HERE.parent / folder / "results.jsonl").read_text().splitlines()]


def description(rows: list[dict]) -> str:
    """What was drawn: config hash, explained variance and L0 of every SAE, stored in the figure."""
    found = {f"{row['name']} {row['config_hash']}": [row["metrics"]["ev_r2"], row["metrics"]["l0"]] for row in rows}
    return json.dumps(found)


def draw(file: Path) -> None:
    """Writes the figure."""
    ours, flat = results("quickstart"), results("flat")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.5), facecolor="white")
        diagram(figure.add_axes((0.01, 0.02, 0.46, 0.9)))
        scatter(figure.add_axes((0.55, 0.15, 0.44, 0.76)), ours, flat)
        figure.savefig(file, format="svg", metadata={"Date": None, "Description": description(ours + flat)})


def diagram(axes: Axes) -> None:
    """A token, experts of which the router selects some, and one atom of each selected expert."""
    selected, chosen = {1: 2, 4: 0, 6: 3}, 8  # expert -> atom, and the number of experts drawn
    axes.set(xlim=(-0.7, chosen - 0.3), ylim=(-2.45, 1.75))
    axes.axis("off")
    axes.set_title("A hierarchical SAE", loc="left", fontweight="bold", fontsize=9.5)
    axes.text(
        3.5, 1.45, "token x", ha="center", va="center", bbox={"boxstyle": "round", "fc": "white", "ec": "#666666"}
    )
    for expert in range(chosen):
        on = expert in selected
        axes.plot([3.5, expert], [1.22, 0.4], color=ON if on else LINE, lw=1.4 if on else 0.6, zorder=1)
        axes.plot(expert, 0.3, "o", ms=17, color=ON if on else OFF, mec="#666666", mew=0.7)
        for atom in range(4):
            x, lit = expert + 0.2 * (atom - 1.5), on and atom == selected[expert]
            axes.plot([expert, x], [0.1, -0.55], color=ON if lit else LINE, lw=1.4 if lit else 0.5, zorder=0)
            axes.plot(x, -0.6, "o", ms=5.5, color="#D55E00" if lit else OFF, mec="#666666", mew=0.5)
    axes.text(3.5, -1.25, "the router keeps the top k experts (parents, blue);", ha="center", color="#333333")
    axes.text(3.5, -1.6, "each reads x in its own subspace and keeps one atom (orange)", ha="center", color="#333333")
    equation = r"$\hat{x} = b + \sum_e v_e\, W_e + \sum_e \sum_a c_{ea}\, D_{ea}\, U_e$"
    axes.text(3.5, -2.3, equation, ha="center", fontsize=12)


def scatter(axes: Axes, ours: list[dict], flat: list[dict]) -> None:
    """Held-out explained variance against L0; the parents of an H-SAE alone are joined to the whole."""
    for row in flat:
        axes.plot(row["metrics"]["l0"], row["metrics"]["ev_r2"], "s", ms=4, color="#999999", mec="none")
    sizes = [row["metrics"]["parameters"] / 1e3 for row in flat]
    label = f"flat SAEs, {min(sizes):.0f} to {max(sizes):.0f} k parameters"
    axes.plot([], [], "s", ms=4, color="#999999", mec="none", label=label)
    for row in ours:
        m, colour = row["metrics"], COLOURS[row["name"]]
        axes.plot(
            m["l0"],
            m["ev_r2"],
            "o",
            ms=7,
            color=colour,
            label=f"{row['name']}, {m['parameters'] / 1e3:.0f} k parameters",
        )
        if "l0_parents" in m:
            start = (m["l0_parents"], m["parents_only_ev_r2"])
            axes.annotate("", (m["l0"], m["ev_r2"]), start, arrowprops={"arrowstyle": "-", "color": colour, "lw": 1})
            axes.plot(*start, "o", ms=7, mfc="white", color=colour)
            axes.annotate("parents only", start, (9, -4), textcoords="offset points", color=colour, fontsize=8)
    axes.set(
        xlim=(6, 28), ylim=(0.35, 0.9), xlabel="L0 (active features per token)", ylabel="explained variance, held out"
    )
    axes.set_title("Layer 2 of the embedded model", loc="left", fontweight="bold", fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "figure.svg")
