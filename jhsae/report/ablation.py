"""The page of ``jhsae ablate``: effects per axis with intervals, metrics against L0, budgets, and what was left out."""

from typing import Any

from markupsafe import Markup

from jhsae.report.drawing import Labels
from jhsae.report.effects import Effect, Point, against_l0, effects
from jhsae.report.figures import Figure
from jhsae.report.formats import significant
from jhsae.report.page import FOLDER, environment

Summary = dict[str, Any]
PLOTTED = ("ev_r2", "ce_recovered")  # against L0


def render(summary: Summary, title: str) -> str:
    """The page as HTML.

    Args:
        summary: the arms with their numbers and differences, as plain data (`jhsae.commands.ablation.effects`).
        title: its heading.
    """
    template = environment()
    template.filters |= {"spread": spread, "difference": difference}
    shown = {
        "style": Markup((FOLDER / "style.css").read_text()),
        "title": title,
        "summary": summary,
        "sections": [(pole, _arms(summary, pole), _figures(summary, pole)) for pole in summary["poles"]],
    }
    return template.get_template("ablation.html.jinja").render(shown)


def spread(value: Summary | None) -> str:
    """The mean; n/a where there is no value."""
    return "n/a" if value is None else significant(value["mean"])


def difference(value: Summary | None) -> str:
    """A signed difference; n/a where there is no pair."""
    return "n/a" if value is None else f"{value['mean']:+.3g}"


def _arms(summary: Summary, pole: str) -> list[Summary]:
    """The arms of a pole, itself first, in the order of their axes."""
    return [arm for arm in summary["arms"] if arm["pole"] == pole]


def _figures(summary: Summary, pole: str) -> list[Figure]:
    found = [_effects(summary, pole, name, words) for name, words in summary["metrics"].items()]
    metrics = summary["metrics"]
    found += [_against(summary, pole, name, metrics[name]) for name in PLOTTED if name in metrics]
    return [figure for figure in found if figure is not None]


def _effects(summary: Summary, pole: str, name: str, words: str) -> Figure | None:
    """The differences of a metric to the pole; those of explained variance with intervals over sequences."""
    key = "ev_r2_units" if name == "ev_r2" else name
    rows = [
        Effect(arm["change"], found["mean"], found["low"], found["high"])
        for arm in _arms(summary, pole)
        if (found := arm["differences"].get(key)) is not None
    ]
    if not rows:
        return None
    few = f"{len(summary['seeds'])} seeds of training, of which few make an interval too short"
    over = "held-out sequences, for these seeds of training" if name == "ev_r2" else few
    title = f"{words}, less that of {pole}"
    drawn = effects(Labels(title, f"difference of {words}", f"{name} {pole}"), rows)
    clear = sum(row.low is not None and row.high is not None and (row.low > 0 or row.high < 0) for row in rows)
    caption = (
        f"Bars: 95 % bootstrap intervals over {over}. Filled: the interval does not hold 0 ({clear} of {len(rows)})."
    )
    return Figure(drawn, caption, title)


def _against(summary: Summary, pole: str, name: str, words: str) -> Figure | None:
    """A metric against L0."""
    points = [
        Point(arm["change"] or "the pole", l0["mean"], value["mean"], value["least"], value["most"], not arm["change"])
        for arm in _arms(summary, pole)
        if (l0 := arm["numbers"]["l0"]) is not None and (value := arm["numbers"][name]) is not None
    ]
    if not points:
        return None
    title = f"{words} against L0, {pole}"
    drawn = against_l0(Labels(title, words, f"{name} {pole}"), points)
    return Figure(drawn, "Means over seeds; lines reach from the smallest seed to the largest.", title)
