"""The figures, as inline SVG: text stays text, nothing is loaded, and the same numbers give the same bytes.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; line styles tell the runs apart in print.
Labels in a figure are ASCII, because its fonts are the reader's.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,
    "axes.unicode_minus": False,
}
MOST_POINTS = 600
MOST_LETTERS = 64  # of a label


class Series(NamedTuple):
    """One run's values over steps; `place` chooses colour and line style, the same in every figure."""

    name: str
    place: int
    steps: Sequence[float]
    values: Sequence[float]


class Labels(NamedTuple):
    """Title and unit of a figure, and what no other figure of the page is called."""

    title: str
    unit: str
    identity: str


class Bins(NamedTuple):
    """One run's histogram: a count between every two neighbouring edges; `place` as in `Series`."""

    name: str
    place: int
    edges: Sequence[float]
    counts: Sequence[int]


class Mark(NamedTuple):
    """A line with a measured value, its null, or both; quartiles where they are known."""

    name: str
    value: float | None
    null: float | None
    quartiles: tuple[float, float] | None = None


def curves(
    labels: Labels, series: list[Series], boundaries: Mapping[int, str], batch: int | None, log: bool = False
) -> str:
    """A quantity against the step, and against training tokens where all runs share a `batch`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 3.3))
        axes = figure.add_axes((0.17, 0.14, 0.81, 0.67))
        lines = [_line(axes, one) for one in series]
        if log:
            _log_if_wide(axes, [value for one in series for value in one.values])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylabel(plain(labels.unit))
        axes.set_xlabel("training step")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if batch:
            above = axes.secondary_xaxis("top", functions=_scaling(batch))
            above.xaxis.set_major_formatter(EngFormatter(sep=""))
            above.set_xlabel("training tokens", fontsize=8, color="#555555")
            above.tick_params(labelsize=8, colors="#555555", length=2)
            above.spines["top"].set_visible(False)
        for step, text in boundaries.items():
            axes.axvline(step, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)))
            place = axes.get_xaxis_transform()
            axes.text(
                step, 0.98, plain(text), transform=place, rotation=90, va="top", size=7.5, color="#666666", zorder=1
            )
        axes.set_title(plain(labels.title))
        axes.legend(lines, [plain(one.name) for one in series])
        return svg(figure, f"curve {labels.identity}")


def histograms(labels: Labels, bins: list[Bins]) -> str:
    """Outlines of histograms of log10 values, from the first bin of any run that holds something."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 3.3))
        axes = figure.add_axes((0.17, 0.14, 0.81, 0.76))
        for one in bins:
            colour, line = COLOURS[one.place % len(COLOURS)], LINES[one.place % len(LINES)]
            axes.stairs(one.counts, one.edges, label=plain(one.name), color=colour, linestyle=line, linewidth=1.3)
        held = [edge for one in bins for edge, count in zip(one.edges, one.counts, strict=False) if count]
        axes.set_xlim(left=min(held, default=None))
        axes.set_xlabel(plain(labels.unit))
        axes.set_ylabel("features")
        axes.set_title(plain(labels.title))
        axes.legend()
        return svg(figure, f"histogram {labels.identity}")


def angles(title: str, marks: list[Mark]) -> str:
    """Distances from 90 degrees: measured ones filled, nulls hollow."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.85 + 0.36 * len(marks)), layout="constrained")
        axes = figure.subplots()
        for row, mark in enumerate(marks):
            if mark.quartiles:
                colour = COLOURS[mark.value is None]
                axes.plot(mark.quartiles, [row, row], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
            if mark.value is not None and mark.null is not None:
                axes.plot([mark.value, mark.null], [row, row], color="#bbbbbb", linewidth=1, zorder=1)
        measured = _points(axes, [mark.value for mark in marks], facecolor=COLOURS[0], edgecolor=COLOURS[0], zorder=4)
        nulls = _points(axes, [mark.null for mark in marks], facecolor="white", edgecolor=COLOURS[1], zorder=3)
        axes.set_yticks(range(len(marks)), [plain(mark.name) for mark in marks])
        axes.set_ylim(len(marks) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("degrees off a right angle (0 = orthogonal)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.legend([measured, nulls], ["measured", "null"], loc="upper left", bbox_to_anchor=(1, 1))
        return svg(figure, f"angles {title}")


def _points(axes: Axes, values: list[float | None], **style: Any) -> Any:
    """One point per row that has a value."""
    known = [(value, row) for row, value in enumerate(values) if value is not None]
    return axes.scatter([x for x, _ in known], [y for _, y in known], s=34, **style)


def plain(text: str) -> str:
    """`text` without what a reader's font may lack, cut where it would leave no room for the figure.

    It is never hidden from a legend by a leading underscore.
    """
    text = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 3] + "..."
    kept = "".join(c if " " <= c <= "~" else "?" for c in text)
    return f" {kept}" if kept.startswith("_") else kept


def _scaling(batch: int) -> Any:
    """Steps to tokens and back, for arrays."""
    return (lambda steps: steps * batch, lambda tokens: tokens / batch)


def _log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis for positive values that span more than a factor of 30."""
    if min(values) > 0 and max(values) / min(values) > 30:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _line(axes: Axes, series: Series):
    """At most `MOST_POINTS` of the values, evenly thinned, the last one always among them; nothing is smoothed."""
    stride = -(-len(series.steps) // MOST_POINTS) or 1
    keep = sorted({*range(0, len(series.steps), stride), len(series.steps) - 1})
    return axes.plot(
        [series.steps[i] for i in keep],
        [series.values[i] for i in keep],
        color=COLOURS[series.place % len(COLOURS)],
        linestyle=LINES[series.place % len(LINES)],
        linewidth=1.3,
    )[0]


def svg(figure: Figure, name: str) -> str:
    """The figure as an element for HTML: no prologue, no metadata, ids that no other figure has."""
    text, name = io.StringIO(), name.encode("utf-8", "backslashreplace").decode()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    prefix = f"f{hashlib.sha256(name.encode()).hexdigest()[:8]}-"
    drawn = text.getvalue()[text.getvalue().index("<svg") :]
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<[a-zA-Z][^>]*>", lambda tag: _tag(tag[0], prefix), drawn)
    return drawn.replace("<svg ", '<svg aria-hidden="true" ', 1)


def _tag(tag: str, prefix: str) -> str:
    """A tag without name spaces, its ids told apart from those of other figures. Text between tags stays as it is."""
    tag = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", tag)
    return re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\1{prefix}", tag)
