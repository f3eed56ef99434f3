"""Explained variance against L0: one point per SAE, and that of its parents alone."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jhsae.report.drawing import Labels
from jhsae.report.svg import BACK, COLOURS, RULE, SOFT, STYLE, plain, svg

LABEL_ROW = 0.22  # inches
MARGIN = 0.12  # of the range, on every side


class Point(NamedTuple):
    """An SAE at (L0, value); `parents` is the same of its parents alone, of a hierarchical one."""

    name: str
    place: int
    at: tuple[float, float]
    shown: str
    parents: tuple[float, float] | None
    tree: bool


def against_l0(labels: Labels, points: list[Point]) -> str:
    """The points, each named in a column on the right, in the order of their values."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, max(3.3, 0.9 + LABEL_ROW * len(points))))
        axes = figure.add_axes((0.095, 0.15, 0.6, 0.75))
        every = [spot for point in points for spot in (point.at, point.parents) if spot is not None]
        axes.set_xlim(*_padded([x for x, _ in every]))
        axes.set_ylim(*_padded([y for _, y in every]))
        for point in points:
            _draw(axes, point)
        _names(axes, points)
        axes.set_xlabel("L0 (active features per token)")
        axes.set_ylabel(plain(labels.unit))
        axes.set_title(plain(labels.title))
        return svg(figure, f"against L0 {labels.identity}")


def _draw(axes: Axes, point: Point) -> None:
    """The SAE filled, a circle where it is hierarchical; its parents hollow, joined to it."""
    colour = COLOURS[point.place % len(COLOURS)]
    if point.parents is not None:
        (x, y), (parents_x, parents_y) = point.at, point.parents
        axes.plot([parents_x, x], [parents_y, y], color=colour, linewidth=1, zorder=2)
        axes.scatter([parents_x], [parents_y], s=40, facecolor=BACK, edgecolor=colour, linewidth=1.4, zorder=3)
    axes.scatter(*point.at, s=48, color=colour, marker="o" if point.tree else "s", zorder=4)


def _names(axes: Axes, points: list[Point]) -> None:
    """Names right of the axes, with a line from each point; no two names in one row."""
    low, high = axes.get_ylim()
    wanted = [(point.at[1] - low) / (high - low) for point in points]
    row = LABEL_ROW / (axes.figure.get_size_inches()[1] * axes.get_position().height)
    for point, height in zip(points, apart(wanted, row), strict=True):
        axes.annotate(
            f"{plain(point.name, 22)}  {point.shown}",
            point.at,
            (1.05, height),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 5},
            color=COLOURS[point.place % len(COLOURS)],
            fontweight="bold",
        )
    if any(point.parents for point in points):
        axes.text(1.05, -0.02, "hollow: parents alone", transform=axes.transAxes, size=8, color=SOFT, va="center")


def apart(wanted: Sequence[float], row: float) -> list[float]:
    """Heights nearest to those wanted, in their order, at least `row` apart, within 0 and 1 where there is room.

    Heights that are too near to one another are spread around their common mean, again and again.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    blocks = [[float(wanted[i]), 1] for i in order]  # middle, names
    start = 0
    while start + 1 < len(blocks):
        (low, below), (high, above) = blocks[start], blocks[start + 1]
        if high - low >= row * (below + above) / 2 - 1e-12:
            start += 1
            continue
        # The lower block's names are wanted where they are, relative to its middle: the mean of both is weighted.
        middle = (low * below + high * above) / (below + above)
        blocks[start : start + 2] = [[middle, below + above]]
        start = max(start - 1, 0)
    heights = [middle + row * (n - (size - 1) / 2) for middle, size in blocks for n in range(int(size))]
    shift = min(0.0, 1 - heights[-1]) if heights else 0.0
    shift = max(shift, -heights[0]) if heights else 0.0
    found = [0.0] * len(wanted)
    for i, height in zip(order, heights, strict=True):
        found[i] = height + shift
    return found


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a margin; around a single value, a tenth of it."""
    low, high = min(values), max(values)
    margin = MARGIN * (high - low) or 0.1 * abs(high) or 0.1
    return low - margin, high + margin
