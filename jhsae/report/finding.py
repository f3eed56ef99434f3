"""The finding of a report in two sentences, and its figure: computed from the rows, whatever their order."""

import math
from itertools import groupby

from jhsae.report import scatter
from jhsae.report.drawing import Labels
from jhsae.report.figures import Figure
from jhsae.report.formats import one, three
from jhsae.report.judging import Match, listed, matches
from jhsae.report.reading import Run, at

MATCHED = ("L0", "parameters", "training tokens")


def sentences(runs: list[Run]) -> list[str]:
    """Two sentences: how much variance each SAE explains, then the best hierarchical one beside the best flat one.

    Without a run of either kind the second sentence compares the best two; of one run, it tells the cross-entropy.
    Runs that are not known to have been measured on the same tokens are not ranked. Empty where nothing was measured.
    """
    known = sorted((run for run in runs if _value(run) is not None), key=_explained, reverse=True)
    if not known:
        return []
    if len(known) == 1:
        return [
            f"{_at(known)}{known[0].name} explains {three(_explained(known[0]))} of {_variance(runs)}.",
            _alone(known[0]),
        ]
    if not _same_tokens(known):
        told = listed([f"{three(_explained(run))} ({run.name})" for run in runs if run in known])
        return [
            f"{_at(known)}the explained share of {_variance(runs)} is {told}.",
            "These are not ranked, because the runs are not known to have been measured on the same tokens.",
        ]
    trees, flats = ([run for run in known if run.hierarchical is tree] for tree in (True, False))
    first, second = (trees[0], flats[0]) if trees and flats else known[:2]
    kinds = (", the best hierarchical SAE,", ", the best flat one") if trees and flats else ("", ", the next")
    return [_ranking(known, runs), _pair(first, second, kinds)]


def figure(runs: list[Run]) -> Figure | None:
    """Explained variance against L0 of every run that has both; None where none has."""
    points = []
    for place, run in enumerate(runs):
        value, l0 = _value(run), run.metrics.get("l0")
        if value is None or not _finite(l0):
            continue
        parents = run.metrics.get("l0_parents"), run.metrics.get("parents_only_ev_r2")
        spot = parents if all(_finite(number) for number in parents) else None
        points.append(scatter.Point(run.name, place, (l0, value), three(value), spot, run.hierarchical))
    if not points:
        return None
    title = "Explained variance against L0"
    drawn = scatter.against_l0(Labels(title, "explained variance, held out", "finding"), points)
    told = "; ".join(f"{point.name} {point.shown} at {one(point.at[0])}" for point in points)
    kinds = "Circles: hierarchical SAEs; squares: flat ones. " if len({point.tree for point in points}) > 1 else ""
    hollow = "Hollow: the parents' part of the reconstruction alone. " if any(p.parents for p in points) else ""
    return Figure(drawn, f"{kinds}{hollow}Centred R² on held-out tokens: {told}.", title)


def _ranking(known: list[Run], runs: list[Run]) -> str:
    """Who explains most, then the others; values that are shown alike share a place."""
    places = [list(same) for _, same in groupby(known, key=lambda run: three(_explained(run)))]
    (best, value, many), *others = [(listed([r.name for r in s]), three(_explained(s[0])), len(s)) for s in places]
    if not others:
        return f"{_at(known)}{best} explain the same share of {_variance(runs)}, {value}."
    behind = [f"{names} ({value}{' each' if many > 1 else ''})" for names, value, many in others]
    verb, each = ("explain", " each") if many > 1 else ("explains", "")
    return f"{_at(known)}{best} {verb} the largest share of {_variance(runs)}, {value}{each}, before {listed(behind)}."


def _pair(first: Run, second: Run, kinds: tuple[str, str]) -> str:
    """One run beside another: the difference, what is matched, what it costs, and whether cross-entropy agrees."""
    difference = round(_explained(first), 3) - round(_explained(second), 3)
    where = (
        f"{three(abs(difference))} {'above' if difference > 0 else 'below'}" if abs(difference) > 5e-4 else "level with"
    )
    text = f"{first.name}{kinds[0]} is {where} {second.name}{kinds[1]}, {_matching(matches([first, second]))}"
    seconds = [run.metrics.get("train_seconds") for run in (first, second)]
    if all(_finite(value) and value > 0 for value in seconds):
        times = f"{seconds[0] / seconds[1]:.1f}"
        text += f", in {'about' if times == '1.0' else f'{times} times'} its training time"
    recovered = [run.metrics.get("ce_recovered") for run in (first, second)]
    if all(_finite(value) for value in recovered):
        text += f"; cross-entropy recovered {_agreement(difference, recovered)}"
    return text + "."


def _agreement(difference: float, recovered: list[float]) -> str:
    """Whether cross-entropy recovered orders two runs as explained variance does."""
    ours, theirs = (three(value) for value in recovered)
    if ours == theirs:
        return f"is the same ({ours})"
    if abs(difference) < 5e-4:
        return f"is {ours} and {theirs}"
    order = "the same" if (recovered[0] > recovered[1]) == (difference > 0) else "the opposite"
    return f"has {order} order ({ours} and {theirs})"


def _matching(table: list[Match]) -> str:
    """What of L0, parameters and training tokens is matched, and what is not."""
    rows = [match for match in table if match.name in MATCHED]
    same = [match.name for match in rows if match.same]
    different = [f"{match.name} ({' and '.join(match.values)})" for match in rows if not match.same]
    parts = [f"matched in {listed(same)}"] if same else []
    parts += [f"not matched in {listed(different)}"] if different else []
    return ", ".join(parts)


def _alone(run: Run) -> str:
    """What the reconstruction of the only run does to the language model."""
    recovered = run.metrics.get("ce_recovered")
    if not _finite(recovered):
        return "What its reconstruction does to the predictions of a language model was not measured."
    return (
        f"Spliced into the language model, its reconstruction recovers {three(recovered)} of the cross-entropy that "
        "zeros in its place lose."
    )


def _at(known: list[Run]) -> str:
    """The L0 of the runs, as a clause; empty where one is unknown."""
    found = [one(run.metrics["l0"]) for run in known if _finite(run.metrics.get("l0"))]
    if len(found) < len(known):
        return ""
    low, high = min(found, key=float), max(found, key=float)
    return f"At an L0 of {low}, " if low == high else f"At an L0 of {low} to {high}, "


def _variance(runs: list[Run]) -> str:
    return "the variance of held-out activations" + (
        "" if all(_value(run) is not None for run in runs) else " (where it was measured)"
    )


def _same_tokens(runs: list[Run]) -> bool:
    """Whether all were measured on the same rows of one store, or on one world."""
    found = {(at(run.result, "evaluation.truth"), run.evaluated_on.sha256, run.metrics.get("rows")) for run in runs}
    world, store, rows = next(iter(found))
    return len(found) == 1 and (world or store) is not None and rows is not None


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _value(run: Run) -> float | None:
    value = run.metrics.get("ev_r2")
    return value if _finite(value) else None


def _explained(run: Run) -> float:
    return float(run.metrics["ev_r2"])
