"""Makes the tables of README.md, and ev_against_macs.png, from results.jsonl alone.

    python experiments/hierarchy/table.py            (prints the tables)
    python experiments/hierarchy/table.py --write    (puts them between the markers of README.md)

A cell is the mean over seeds, in brackets the smallest and the largest. Rows at other rates than an arm's best are in
the table of rates alone.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from columns import COSTS, QUALITY, WORLDS, Value, metric
from jobs import DIVERGED, Job, Row, rate_of
from matplotlib.figure import Figure
from settings import LABELLED, REAL, WORLD, Arm, Size
from study import read_rows

from jhsae.commands.ablation.effects import as_data, over_seeds
from jhsae.commands.ablation.markdown import difference, spread
from jhsae.evals.nulls import paired
from jhsae.files.bounded import read_lines

HERE = Path(__file__).parent
SIZE = Size()
OURS = "recommended"
Rows = dict[Job, Row]


def main() -> None:
    """Prints or writes the tables."""
    rows = read_rows(HERE / "results.jsonl")
    if "--write" not in sys.argv:
        print("\n\n".join(f"## {name}\n\n{text}" for name, text in made(rows).items()))
        return
    text = (HERE / "README.md").read_text()
    for name, new in made(rows).items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text = marked.sub(lambda m, new=new: f"{m[1]}{new}\n{m[2]}", text)
    (HERE / "README.md").write_text(text)
    draw(rows).savefig(HERE / "ev_against_macs.png", dpi=110, metadata={"Software": None})


def made(rows: Rows) -> dict[str, str]:
    """The parts of README.md that are written here, by the name of their marker."""
    return {
        "reached": reached(rows),
        "main": "\n\n".join(_main(rows, layer) for layer in SIZE.layers),
        "differences": differences(rows),
        "l0s": by_l0(rows),
        "worlds": "\n\n".join(_world(rows, name) for name in SIZE.worlds),
        "latents": latents(rows),
        "longer": longer(rows),
        "inference": inference(),
        "rates": rates(rows),
        "about": about(rows),
        "arms": table(["arm", "config", "rates"], (line for arms in (REAL, WORLD) for line in _arms(arms))),
    }


def _arms(arms: dict[str, Arm]) -> Iterator[list[str]]:
    place = "language model" if arms is REAL else "worlds"
    for name, arm in arms.items():
        tried = f"that of {arm.like}" if arm.like else ", ".join(f"{rate:g}" for rate in arm.rates)
        yield [f"{name} ({place})", arm.about, tried]


def of(rows: Rows, part: str, place: str | int, arm: str, l0: float | None, times: int = 1) -> list[Row]:
    """The rows of the seeds of an arm at its best rate, in their order; none where that is not known yet."""
    found = []
    for seed in SIZE.seeds:
        known = {job for job in rows if job[:3] == (part, str(place), arm) and l0 in (None, job.l0)}
        for job in sorted(job for job in known if (job.seed, job.times) == (seed, times)):
            if job.rate == rate_of(job, SIZE, rows.get)[1] and DIVERGED not in rows[job]:
                found.append(rows[job])
    return found


def table(head: Iterable[str], lines: Iterable[list[str]]) -> str:
    """A Markdown table; a sentence where it has no line."""
    head, lines = [*head], [*lines]
    if not lines:
        return "Not run yet."
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def cell(rows: list[Row], value: Value) -> str:
    """Mean [smallest, largest]; a dash where the number is not defined."""
    found = over_seeds([value(row) for row in rows])
    return "-" if found is None else spread(found)


def _lines(found: Iterable[tuple[list[str], list[Row]]], columns: dict[str, Value]) -> Iterator[list[str]]:
    for names, rows in found:
        if rows:
            yield [*names, str(len(rows)), *(cell(rows, value) for value in columns.values())]


def _main(rows: Rows, layer: int) -> str:
    columns, l0 = QUALITY | COSTS, SIZE.l0s[0]
    found = (([arm], of(rows, "real", layer, arm, l0)) for arm in REAL)
    return f"**Layer {layer}, L0 {l0}**\n\n" + table(["arm", "seeds", *columns], _lines(found, columns))


def _world(rows: Rows, name: str) -> str:
    found = (([arm], of(rows, "worlds", name, arm, None)) for arm in WORLD)
    return f"**{name}**\n\n" + table(["arm", "seeds", *WORLDS], _lines(found, WORLDS))


def by_l0(rows: Rows) -> str:
    """Quality at every layer and L0."""
    found = (
        ([str(layer), str(l0), arm], of(rows, "real", layer, arm, l0))
        for layer in SIZE.layers
        for l0 in sorted(SIZE.l0s)
        for arm in REAL
    )
    columns = QUALITY | {"encoder MACs": COSTS["encoder MACs"]}
    return table(["layer", "set L0", "arm", "seeds", *columns], _lines(found, columns))


def longer(rows: Rows) -> str:
    """The arms that were trained longer, beside the same seeds of the usual length."""
    layer, l0 = SIZE.layers[0], SIZE.l0s[0]
    found = (
        ([arm, f"{SIZE.steps * times:,}"], _same_seeds(of(rows, "real", layer, arm, l0, times), kept))
        for arm in REAL
        if (kept := of(rows, "real", layer, arm, l0, SIZE.longer))
        for times in (1, SIZE.longer)
    )
    return table(["arm", "steps", "seeds", *QUALITY], _lines(found, QUALITY))


def inference() -> str:
    """Trained trees with another encoder, from inference.jsonl; differences are to what they were trained with."""
    file = HERE / "inference.jsonl"
    rows = read_lines(file) if file.exists() else []
    lines = []
    for key in dict.fromkeys(row["key"] for row in rows):
        own = [row for row in rows if row["key"] == key]
        (trained,) = {row["trained"] for row in own}
        for value in own[0]["values"]:
            here, there = ([{"metrics": row["values"][name]} for row in own] for name in (value, trained))
            ev = metric("ev_r2")
            less_ev = over_seeds([ev(one) - ev(other) for one, other in zip(here, there, strict=True)])
            cells = [cell(here, metric(name)) for name in ("l0", "ev_r2", "ce_recovered", "encoder_macs")]
            about = [own[0]["arm"], key, value + (" (trained)" if value == trained else ""), str(len(own))]
            lines.append([*about, *cells, "-" if less_ev is None else spread(less_ev)])
    head = ["arm", "key", "value", "seeds", "L0", "EV", "CE recovered", "encoder MACs", "EV less that as trained"]
    return table(head, lines)


def _same_seeds(rows: list[Row], others: list[Row]) -> list[Row]:
    seeds = {row["seed"] for row in others}
    return [row for row in rows if row["seed"] in seeds]


def less(ours: list[Row], others: list[Row], name: str, units: bool = False) -> dict[str, Any] | None:
    """The paired difference of a metric with its interval, over held-out sequences or over seeds; None without pairs.

    Args:
        ours: rows of an arm.
        others: rows of the arm that is subtracted.
        name: of the metric.
        units: over sequences, for these seeds.
    """
    sides = [_same_seeds(ours, others), _same_seeds(others, ours)]
    if not sides[0]:
        return None
    values = [
        [row["units"][name] if units else {str(row["seed"]): row["metrics"].get(name)} for row in side]
        for side in sides
    ]
    return as_data(paired(*values))


def differences(rows: Rows) -> str:
    """Recommended less every other arm."""
    lines = []
    for layer in SIZE.layers:
        for l0 in sorted(SIZE.l0s):
            ours = of(rows, "real", layer, OURS, l0)
            for arm in REAL:
                others = of(rows, "real", layer, arm, l0)
                if arm == OURS or less(ours, others, "ev_r2") is None:
                    continue
                found = [less(ours, others, "ev_r2", units=True)]
                found += [less(ours, others, name) for name in ("ev_r2", "ce_recovered", "l0")]
                share = over_seeds([metric("encoder_macs")(row) for row in ours])["mean"]
                share /= over_seeds([metric("encoder_macs")(row) for row in others])["mean"]
                lines.append([str(layer), str(l0), arm, *map(difference, found), f"{share:.2f}"])
    head = ["layer", "L0", "recommended less", "EV (sequences)", "EV (seeds)", "CE recovered (seeds)", "L0 (seeds)"]
    return table([*head, "MACs, ratio"], lines)


def reached(rows: Rows) -> str:
    """What was asked of the recommended arm, beside the worst case of what was measured."""
    places = [(layer, l0) for layer in SIZE.layers for l0 in SIZE.l0s]

    def worst(of_place: Callable[[int, int], list[float]], smallest: bool) -> tuple[float | None, int]:
        found = [values for place in places if (values := of_place(*place))]
        picked = [min(values) if smallest else max(values) for values in found]
        return (min(picked) if smallest else max(picked)) if picked else None, len(found)

    def gain(arm: str, name: str) -> Callable[[int, int], list[float]]:
        def value(layer: int, l0: int) -> list[float]:
            pair = [of(rows, "real", layer, one, l0) for one in (OURS, arm)]
            found = less(*pair, name)
            return [] if found is None else [found["mean"]]

        return value

    def own(name: str) -> Callable[[int, int], list[float]]:
        found = metric(name)
        return lambda layer, l0: [n for row in of(rows, "real", layer, OURS, l0) if (n := found(row)) is not None]

    def ratio(layer: int, l0: int) -> list[float]:
        pair = [
            over_seeds([row["metrics"]["encoder_macs"] for row in of(rows, "real", layer, a, l0)])
            for a in (OURS, "topk")
        ]
        return [pair[0]["mean"] / pair[1]["mean"]] if pair[0] and pair[1] else []

    asked: list[tuple[str, float, Callable[[int, int], list[float]], bool]] = [
        ("EV less topk's", 0.02, gain("topk", "ev_r2"), True),
        ("EV less batchtopk's", 0.02, gain("batchtopk", "ev_r2"), True),
        ("EV less that of flat pursuit at equal MACs", 0.02, gain("flat_macs", "ev_r2"), True),
        ("CE recovered less topk's", 0.0, gain("topk", "ce_recovered"), True),
        ("CE recovered less batchtopk's", 0.0, gain("batchtopk", "ce_recovered"), True),
        ("CE recovered less that of flat pursuit at equal MACs", 0.0, gain("flat_macs", "ce_recovered"), True),
        ("encoder MACs over topk's", 1 / 3, ratio, False),
        ("sibling cosine", 0.3, own("sibling_cosine"), False),
        ("dead, of 10,000 test rows", 0.02, own("dead"), False),
        (f"dead, of {SIZE.dead_rows:,} training rows", 0.02, own("dead_in_training_rows"), False),
        ("EV less that of the exact-L0 form", 0.01, gain("recommended_exact", "ev_r2"), False),
    ]
    lines = []
    for words, bound, value, smallest in asked:
        found, count = worst(value, smallest)
        if found is not None:
            verdict = "yes" if (found >= bound if smallest else found <= bound) else "no"
            sign = ">=" if smallest else "<="
            lines.append([words, f"{sign} {bound:.3g}", f"{found:.3g}", verdict, f"{count} of {len(places)}"])
    return table(["recommended", "asked", "worst layer and L0", "reached", "measured"], lines + _worlds_reached(rows))


def _worlds_reached(rows: Rows) -> list[list[str]]:
    """The same of the worlds: the smallest mean over seeds of two and of four times as many experts as roots."""
    lines = []
    for name, roots in {"tree_336": 0.95, "tree_1360": 0.9, "irregular_335": 0.9}.items():
        for words, bound in (("roots F1", roots), ("level 1 F1", 0.8), ("edges", 0.7)):
            means = [
                over_seeds(list(map(WORLDS[words], of(rows, "worlds", name, arm, None))))
                for arm in ("tree_2x", "tree_4x")
            ]
            known = [one["mean"] for one in means if one is not None]
            if known:
                verdict = "yes" if min(known) >= bound else "no"
                lines.append([f"{name}: {words}", f">= {bound:g}", f"{min(known):.3g}", verdict, f"{len(known)} of 2"])
    return lines


def latents(rows: Rows) -> str:
    """Latents beside word classes, and two seeds beside each other; in brackets the null."""
    lines = []
    for part in ("labels", "stability"):
        for layer in SIZE.layers:
            for arm in LABELLED:
                found = of(rows, part, layer, arm, SIZE.l0s[0])
                names = [name for name in (found[0]["metrics"] if found else ()) if not name.endswith("_null")]
                for name in names:
                    null = cell(found, metric(f"{name}_null")).split(" ")[0]
                    lines.append([part, str(layer), arm, name, str(len(found)), cell(found, metric(name)), null])
    return table(["", "layer", "arm", "measure", "rows", "value", "by chance"], lines)


def rates(rows: Rows) -> str:
    """Validation explained variance and L0 of every rate that was tried."""
    lines = []
    places = [("real", str(SIZE.layers[0]), REAL), *(("worlds", name, WORLD) for name in SIZE.worlds)]
    for part, place, arms in places:
        for arm in arms:
            found = {
                job.rate: job
                for job in rows
                if job[:3] == (part, place, arm) and (job.seed, job.times) == (SIZE.seeds[0], 1)
                and (part == "worlds" or job.l0 == SIZE.l0s[0])
            }  # fmt: skip
            if found and arms[arm].like is None:
                chosen = rate_of(next(iter(found.values())), SIZE, rows.get)[1]
                cells = [f"{rate:g}: {_tried(rows[job])}" for rate, job in sorted(found.items())]
                lines.append([place, arm, "; ".join(cells), "-" if chosen is None else f"{chosen:g}"])
    return table(["layer or world", "arm", "rate: EV (L0)", "chosen"], lines)


def _tried(row: Row) -> str:
    if DIVERGED in row:
        return "diverged"
    return f"{row['validation']['ev_r2']:.4f} ({row['validation']['l0']:.1f})"


def about(rows: Rows) -> str:
    """Where the rows come from."""
    if not rows:
        return "No rows yet."
    commits = ", ".join(
        f"`{name}`" for name in sorted({str(row["commit"])[:12] + str(row["commit"])[40:] for row in rows.values()})
    )
    hours = sum(row["seconds"] for row in rows.values()) / 3600
    diverged = sum(DIVERGED in row for row in rows.values())
    return (
        f"{len(rows)} rows, {hours:.1f} process-hours of training and measuring; {diverged} runs diverged. Commit "
        f"{commits}; every row has its config hash."
    )


def draw(rows: Rows) -> Figure:
    """Explained variance against the encoder multiplications of a token; a line joins the L0s of an arm."""
    figure = Figure(figsize=(6 * len(SIZE.layers), 4), facecolor="white", layout="constrained")
    panels = [figure.add_subplot(1, len(SIZE.layers), i + 1) for i in range(len(SIZE.layers))]
    for axes, layer in zip(panels, SIZE.layers, strict=True):
        for number, arm in enumerate(REAL):
            points = [
                tuple(over_seeds([row["metrics"][name] for row in found])["mean"] for name in ("encoder_macs", "ev_r2"))
                for l0 in sorted(SIZE.l0s)
                if (found := of(rows, "real", layer, arm, l0))
            ]
            if points:
                style = "-" if arm == OURS else "--" if arm.startswith("flat_") else ":"
                axes.plot(*zip(*points, strict=True), style, marker="o", ms=4, color=f"C{number % 10}", label=arm)
        axes.set(xscale="log", xlabel="encoder multiplications per token", title=f"layer {layer}")
        axes.set_ylabel("explained variance, test rows")
        axes.spines[["top", "right"]].set_visible(False)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
