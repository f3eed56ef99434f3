"""The figures of a report and their captions.

One figure per quantity, every run in it. A loss term is drawn together with those of the same name and class alone, and
never mixed with another that happens to share its name.
"""

import math
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from jhsae.report import drawing
from jhsae.report.formats import significant
from jhsae.report.judging import class_name, part
from jhsae.report.reading import Json, Run, at

GENERAL = (
    ("explained_variance", "Explained variance (training batch)", "fraction of variance"),
    ("l0", "L0", "active features per token"),
    ("dead", "Dead features", "fraction of all features"),
    ("loss", "Loss (weighted sum of its terms)", "loss"),
)
OPTIMISER = (("learning_rate", "Learning rate", "learning rate"), ("grad_norm", "Gradient norm", "norm"))

TEACHER_NULLS = ("random_parent", "shuffled", "unseen_shuffled")


class Figure(NamedTuple):
    """An SVG element, the words under it, and what a screen reader says."""

    svg: str
    caption: str
    label: str


class Quantity(NamedTuple):
    """What one figure shows of which runs; `key` is its name in metrics.jsonl."""

    key: str
    title: str
    unit: str
    runs: list[Run]
    identity: str = ""


def general(runs: list[Run]) -> list[Figure]:
    """Explained variance, L0, dead features and the loss."""
    return _figures([Quantity(*words, runs) for words in GENERAL], runs)


def optimiser(runs: list[Run]) -> list[Figure]:
    """Learning rate and gradient norm."""
    return _figures([Quantity(*words, runs) for words in OPTIMISER], runs)


def terms(runs: list[Run]) -> list[Figure]:
    """One figure per loss term: its unweighted value."""
    groups: dict[str, Quantity] = {}
    for run in runs:
        for name, slot in (run.config.get("objective") or {}).items():
            identity = f"{name}: {part(slot)}"
            plain = part({key: value for key, value in slot.items() if not isinstance(value, dict)})
            new = Quantity(name, f"{name}: {plain}", "value, unweighted", [], identity)
            groups.setdefault(identity, new).runs.append(run)
    return _figures(list(groups.values()), runs)


def densities(runs: list[Run]) -> Figure | None:
    """How many features fire how often, of every run that recorded it."""
    found = [(run, place, run.metrics["density"]) for place, run in enumerate(runs) if "density" in run.metrics]
    if not found:
        return None
    bins = [drawing.Bins(run.name, place, d["log10_edges"], d["counts"]) for run, place, d in found]
    title = "Feature density (held-out tokens)"
    svg = drawing.histograms(drawing.Labels(title, "log10 of the fraction of tokens that fire it", "density"), bins)
    live = "; ".join(f"{one.name} {sum(one.counts):,}" for one in bins)
    return Figure(svg, f"Features that fired at all, which alone are drawn: {live}.", title)


def angles(runs: list[Run]) -> Figure | None:
    """Parent-child orthogonality of every hierarchical run beside its null, in both metrics."""
    marks, words = [], []
    for run in runs:
        for name, suffix in (("causal", ""), ("Euclidean", "_euclidean")):
            own, null = (run.metrics.get(f"parent_child_off_90{k}{suffix}") for k in ("", "_null"))
            if own is not None and null is not None:
                marks.append(drawing.Mark(f"{run.name}, {name}", own, null))
                words.append(f"{run.name}, {name}: {own:.2f}° against {null:.2f}°")
    if not marks:
        return None
    return Figure(drawing.angles("parent and child", marks), "; ".join(words) + ".", "Orthogonality beside its null")


def asked_for(runs: list[Run]) -> list[str]:
    """The runs in which training, or its start, made the very angle small which `angles` shows, and how."""
    found = []
    for run in runs:
        slots = [*(run.config.get("objective") or {}).values(), *(run.config.get("init") or [])]
        classes = [class_name(s) for s in [*slots, run.config.get("constraint")] if s]
        how = [name for name in classes if "CausalOrthogonality" in name or name in ("FromTeacher", "AncestorsOut")]
        found += [f"{run.name} ({', '.join(how)})"] if how else []
    return found


def teacher(validation: Json) -> Figure | None:
    """The angles between a teacher's concepts and their children beside those of its nulls, with quartiles."""
    spreads = validation.get("orthogonality") or {}
    marks = [
        drawing.Mark(
            name.replace("_", " "),
            None if name in TEACHER_NULLS else spread["median"],
            spread["median"] if name in TEACHER_NULLS else None,
            (spread["quartile_1"], spread["quartile_3"]),
        )
        for name, spread in spreads.items()
        if None not in [spread.get(key) for key in ("median", "quartile_1", "quartile_3")]
    ]
    if not marks:
        return None
    return Figure(drawing.angles("teacher", marks), "Points: medians. Bars: quartiles.", "The teacher's angles")


def weights(run: Run, term: str) -> str:
    """The weight of a loss term, and where a stage has its own, that of every stage."""
    general = (run.config.get("weights") or {}).get(term, 1)
    own = {stage["name"]: (stage.get("weights") or {}).get(term, general) for stage in run.config.get("stages") or []}
    if all(weight == general for weight in own.values()):
        return part(general) or str(general)
    return ", ".join(f"{part(weight) or weight} ({stage})" for stage, weight in own.items())


def boundaries(runs: list[Run]) -> dict[int, str]:
    """Step after which a stage begins -> which stage of which runs."""
    found: dict[int, dict[str, list[str]]] = {}
    for run in runs:
        stages = run.config.get("stages") or []
        ends = accumulate(stage["steps"] for stage in stages)
        for end, (_, following) in zip(ends, pairwise(stages), strict=False):
            found.setdefault(end, {}).setdefault(following["name"], []).append(run.name)
    return {
        step: "; ".join(f"{', '.join(names)}: {stage}" for stage, names in stages.items())
        for step, stages in found.items()
    }


def _figures(quantities: list[Quantity], runs: list[Run]) -> list[Figure]:
    batches = {at(run.config, "data.batch") for run in runs}
    batch = batches.pop() if len(batches) == 1 else None
    drawn = []
    for quantity in quantities:
        found = [_series(run, runs.index(run), quantity.key) for run in quantity.runs]
        series = [one for one in found if one.steps]
        if not series:
            continue
        log = quantity.key not in ("explained_variance", "l0", "dead", "learning_rate")
        labels = drawing.Labels(quantity.title, quantity.unit, quantity.identity or quantity.title)
        svg = drawing.curves(labels, series, boundaries(quantity.runs), batch, log)
        weighed = "; ".join(f"{run.name} {weights(run, quantity.key)}" for run in quantity.runs)
        words = f" Weight: {weighed}." if quantity.identity else ""
        drawn.append(Figure(svg, _last(series) + words, quantity.title))
    return drawn


def _last(series: list[drawing.Series]) -> str:
    """The last values of a figure in words, with the step once where it is the same."""
    steps = {one.steps[-1] for one in series}
    common = f" (step {steps.pop():,})" if len(steps) == 1 else ""
    values = [
        f"{one.name} {significant(one.values[-1])}{'' if common else f' (step {one.steps[-1]:,})'}" for one in series
    ]
    return f"Last logged{common}: {'; '.join(values)}."


def _series(run: Run, place: int, key: str) -> drawing.Series:
    rows: list[dict[str, Any]] = [row for row in run.steps if key in row and math.isfinite(row[key])]
    return drawing.Series(run.name, place, [row["step"] for row in rows], [row[key] for row in rows])
