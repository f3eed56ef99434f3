"""The figures of a report: curves over steps, histograms, and angles beside their nulls."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

from jhsae.report.svg import BACK, COLOURS, LINES, RULE, SOFT, STYLE, plain, svg

MOST_POINTS = 600
WIDTH = 4.9  # of a figure, inches
STAGE_ROW, MOST_STAGES, MOST_STAGE_LETTERS = 0.085, 4, 34


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
    """A quantity against the step, and against training tokens where all runs share a `batch`.

    Names of runs are below the axes and names of stages above the curves: neither covers them.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas([one.name for one in series], above=0.62 if batch else 0.3)
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
            above.set_xlabel("training tokens", fontsize=8, color=SOFT)
            above.tick_params(labelsize=8, colors=SOFT, length=2)
            above.spines["top"].set_visible(False)
        _stages(axes, boundaries)
        axes.set_title(plain(labels.title))
        _legend(figure, lines, [one.name for one in series])
        return svg(figure, f"curve {labels.identity}")


def histograms(labels: Labels, bins: list[Bins]) -> str:
    """Outlines of histograms of log10 values, from the first bin of any run that holds something."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas([one.name for one in bins], above=0.3)
        drawn = []
        for one in bins:
            colour, line = COLOURS[one.place % len(COLOURS)], LINES[one.place % len(LINES)]
            drawn.append(axes.stairs(one.counts, one.edges, edgecolor=colour, linestyle=line, linewidth=1.3))
        held = [edge for one in bins for edge, count in zip(one.edges, one.counts, strict=False) if count]
        axes.set_xlim(left=min(held, default=None))
        axes.set_xlabel(plain(labels.unit))
        axes.set_ylabel("features")
        axes.set_title(plain(labels.title))
        _legend(figure, drawn, [one.name for one in bins])
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
                axes.plot([mark.value, mark.null], [row, row], color=RULE, linewidth=1, zorder=1)
        measured = _points(axes, [mark.value for mark in marks], facecolor=COLOURS[0], edgecolor=COLOURS[0], zorder=4)
        nulls = _points(axes, [mark.null for mark in marks], facecolor=BACK, edgecolor=COLOURS[1], zorder=3)
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


def _columns(names: list[str]) -> int:
    """How many names fit beside one another under a figure."""
    return max(1, min(len(names), int((WIDTH - 0.5) / (0.5 + 0.075 * max(map(len, map(plain, names)))))))


def _canvas(names: list[str], above: float) -> tuple[Figure, Axes]:
    """A figure with axes of one size, `above` inches of room above them, and below them room for the names."""
    below = 0.52 + 0.19 * -(-len(names) // _columns(names))
    height = below + 2.2 + above
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_axes((0.17, below / height, 0.81, 2.2 / height))


def _legend(figure: Figure, handles: list[Any], names: list[str]) -> None:
    """The runs in rows under the axes."""
    shown = [plain(name) for name in names]
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.155, 0), "borderaxespad": 0, "borderpad": 0.1}
    figure.legend(handles, shown, ncols=_columns(names), columnspacing=1.4, handlelength=2.4, **place)


def _stages(axes: Axes, boundaries: Mapping[int, str]) -> None:
    """A line where a stage begins; its name in a band that the axis is extended by, above all curves, a row each."""
    named = sorted(boundaries.items())[:MOST_STAGES]
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(axes.get_ylim())
    top = low + (high - low) / (1 - STAGE_ROW * len(named))
    axes.set_ylim(top=float(scale.inverted().transform([top])[0]))
    middle = sum(axes.get_xlim()) / 2
    for row, step in enumerate(sorted(boundaries)):
        top_of_line = 1 - STAGE_ROW * min(row, len(named))
        axes.axvline(step, ymax=top_of_line, color=SOFT, linewidth=0.8, linestyle=(0, (1, 2)))
    for row, (step, text) in enumerate(named):
        right = step > middle
        axes.annotate(
            plain(text, MOST_STAGE_LETTERS),
            (step, 1 - STAGE_ROW * (row + 0.5)),
            (-4 if right else 4, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            size=7.5,
            color=SOFT,
        )


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
