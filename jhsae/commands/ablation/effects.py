"""From rows to what is reported: means and ranges over seeds, and paired differences to the pole with intervals.

A difference of explained variance has two intervals: over the held-out sequences, for these seeds of training, and
over the seeds. Every other difference has that over seeds. All are bootstraps of `jhsae.evals.nulls`; with 3 seeds no
p-value below 0.25 can come, so that one over seeds alone is never distinguishable from chance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jhsae.commands.ablation.arms import Arm
from jhsae.commands.ablation.plan import Rows, Run, Step, Study
from jhsae.errors import UserError
from jhsae.evals.nulls import Comparison, paired, sentence

BUDGETS = ("l0", "parameters", "encoder_macs", "encoder_macs_without_tables", "tokens")
ALWAYS = ("ev_r2", "ce_recovered", "dead", "sibling_cosine")
WORDS = {
    "ev_r2": "EV",
    "ce_recovered": "CE recovered",
    "dead": "dead",
    "sibling_cosine": "sibling cosine",
    "l0": "L0",
    "parameters": "parameters",
    "encoder_macs": "encoder MACs",
    "encoder_macs_without_tables": "without tables",
    "tokens": "tokens",
}
Summary = dict[str, Any]


def summarised(study: Study, rows: Rows) -> Summary:
    """Everything that the pages show, as plain data.

    Args:
        study: the arms.
        rows: those of results.jsonl.

    Raises:
        UserError: no arm has a result.
    """
    steps = dict(study.steps(rows))
    found = {arm: _test_rows(study, arm, step, rows) for arm, step in steps.items()}
    if not any(found.values()):
        failures = "; ".join(step.failure for step in steps.values() if step.failure)
        raise UserError(
            f"{study.config.out} has no row of test sequences ({failures or 'nothing has been trained'}); run jhsae "
            "ablate on it, or change what failed"
        )
    shown = list(dict.fromkeys([*ALWAYS, *study.config.table]))
    arms = [
        compared(arm, steps[arm].size, steps[arm].rate, own, found.get(Arm(arm.pole), []), shown)
        for arm, own in found.items()
        if own
    ]
    return {
        "metrics": {name: WORDS.get(name, name) for name in shown if name not in BUDGETS},
        "budgets": {name: WORDS[name] for name in BUDGETS},
        "poles": list(study.config.poles),
        "arms": arms,
        "failures": [{"arm": arm.name, "reason": step.failure} for arm, step in steps.items() if step.failure],
        "left_out": [left._asdict() for left in study.left_out],
        "match": study.config.match,
        "reference": study.config.reference,
        "rates": study.config.rates,
        "seeds": study.config.seeds,
        "commits": sorted({str(row["commit"]) for own in found.values() for row in own}),
    }


def _test_rows(study: Study, arm: Arm, step: Step, rows: Rows) -> list[dict[str, Any]]:
    """The rows of an arm's seeds, in their order; none of an arm without a choice."""
    if step.failure is not None:
        return []
    runs = [Run(arm, step.size, step.rate, seed, "test") for seed in study.config.seeds]
    return [row for run in runs if (row := rows.get(study.key(run))) is not None]


def compared(
    arm: Arm,
    size: Sequence[str],
    rate: float | None,
    own: list[dict[str, Any]],
    pole: list[dict[str, Any]],
    shown: Sequence[str],
) -> Summary:
    """One arm beside its pole, from their rows alone.

    Args:
        arm: whose rows these are.
        size: overrides that were chosen for it.
        rate: the peak of its learning rate; None for that of its config.
        own: its test rows, by seed.
        pole: those of its pole.
        shown: metrics.

    Returns:
        Its numbers, and their paired differences to the pole's of the same seeds; none for the pole itself.
    """
    numbers = {name: over_seeds([row["metrics"].get(name) for row in own]) for name in (*shown, *BUDGETS)}
    seeds = {row["seed"] for row in own} & {row["seed"] for row in pole}
    pairs = [[row for row in side if row["seed"] in seeds] for side in (own, pole)]
    differs: dict[str, Any] = {}
    sentences: list[str] = []
    if arm.picks and seeds:
        for name in shown:
            ours, poles = ([_of_seed(row, name) for row in side] for side in pairs)
            differs[name] = as_data(paired(ours, poles))
        ours, poles = ([row["units"]["ev_r2"] for row in side] for side in pairs)
        units = paired(ours, poles)
        differs["ev_r2_units"] = as_data(units)
        if units is not None:
            sentences.append(sentence(units, f"EV of {arm.name}, less that of {arm.pole}"))
    return {
        "pole": arm.pole,
        "change": arm.change,
        "axes": [axis for axis, _ in arm.picks],
        "size": list(size),
        "rate": rate,
        "seeds": [row["seed"] for row in own],
        "hashes": [row["config_hash"] for row in own],
        "numbers": numbers,
        "differences": differs,
        "sentences": sentences,
    }


def _of_seed(row: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """A metric of one seed, as the one unit of that seed."""
    return {str(row["seed"]): _number(row["metrics"].get(name))}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def over_seeds(values: Sequence[Any]) -> Summary | None:
    """Mean, smallest and largest of the values that there are."""
    known = [number for value in values if (number := _number(value)) is not None]
    return {"mean": sum(known) / len(known), "least": min(known), "most": max(known)} if known else None


def as_data(result: Comparison | None) -> Summary | None:
    """A difference with its interval, which one group alone has not."""
    if result is None:
        return None
    known = result.groups > 1
    return {
        "mean": result.estimate,
        "low": result.low if known else None,
        "high": result.high if known else None,
        "p": result.p if known else None,
        "groups": result.groups,
    }
