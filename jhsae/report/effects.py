"""Figures of an ablation, as inline SVG: effects with their intervals, and a metric against L0."""

from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from jhsae.report.drawing import Labels
from jhsae.report.svg import BACK, COLOURS, INK, SOFT, STYLE, plain, svg

MARKERS = "osD^v<>PX*"
LEGEND = 20  # names in a legend; the others are in the table


class Effect(NamedTuple):
    """One row of a figure of effects: a difference and its interval, where it has one."""

    name: str
    mean: float
    low: float | None
    high: float | None


class Point(NamedTuple):
    """One arm in a figure of a metric against another: means over seeds, and the ranges of the second."""

    name: str
    x: float
    y: float
    least: float
    most: float
    is_pole: bool


def effects(labels: Labels, rows: list[Effect]) -> str:
    """Differences to a pole, one below the other; filled where the interval does not hold 0."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.85 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=SOFT, linewidth=0.8)
        for place, row in enumerate(rows):
            clear = row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=COLOURS[0], linewidth=1.6)
            face = COLOURS[0] if clear else BACK
            axes.scatter([row.mean], [place], s=30, facecolor=face, edgecolor=COLOURS[0], zorder=3)
        axes.set_yticks(range(len(rows)), [plain(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(plain(labels.unit))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(plain(labels.title))
        return svg(figure, f"effects {labels.identity}")


def against_l0(labels: Labels, points: list[Point]) -> str:
    """A metric against L0, a marker per arm, the pole in black; bars reach from the smallest seed to the largest."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.9), layout="constrained")
        axes = figure.subplots()
        handles: list[Any] = []
        for place, point in enumerate(points):
            colour = INK if point.is_pole else COLOURS[place % (len(COLOURS) - 1)]
            marker = MARKERS[place // (len(COLOURS) - 1) % len(MARKERS)]
            axes.plot([point.x, point.x], [point.least, point.most], color=colour, linewidth=1)
            handles.append(axes.scatter([point.x], [point.y], s=34, color=colour, marker=marker, zorder=3))
        axes.set_xlabel("L0 (active features per token)")
        axes.set_ylabel(plain(labels.unit))
        axes.set_title(plain(labels.title))
        names = [plain(point.name) for point in points]
        axes.legend(handles[:LEGEND], names[:LEGEND], loc="upper left", bbox_to_anchor=(1, 1))
        return svg(figure, f"against L0 {labels.identity}")
