"""Which runs there are, in the order of their importance, and the learning rate of each arm, as a function of the rows.

A rate is chosen by explained variance on validation rows at the first seed: of arms on the language model at the first
layer and L0, for all others; of arms on a world there.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from settings import LABELLED, LEFT_OUT, LONGER, MAIN, REAL, WORLD, Size

from jhsae.commands.ablation.rates import best_rate, next_rates

OFF_L0 = 0.15  # a rate at which L0 is further from what it is set to is not taken
MORE = 1  # further rates that are tried on each side of a list
EXTRAS = ("stability", "labels")
DIVERGED = "diverged"
Row = dict[str, Any]


class Job(NamedTuple):
    """What one row of the results is about.

    Args:
        part: "real" or "worlds" for a run; "labels" for its latents beside word classes, "stability" for what the run
            and that of the next seed have in common.
        place: a layer, or the name of a world.
        arm: one of `REAL`, or of `WORLD`.
        l0: what it is set to.
        rate: peak of the learning rate; 0 where it is not chosen yet.
        seed: of the initial parameters and of the order of the rows.
        times: the study's number of steps.
    """

    part: str
    place: str
    arm: str
    l0: float
    rate: float
    seed: int
    times: int = 1


RowOf = Callable[[Job], Row | None]


def finals(size: Size, world_l0: Callable[[str], float]) -> Iterator[Job]:
    """Every run that is reported, without its rate, the most important first.

    Args:
        size: sizes of the study.
        world_l0: the L0 that arms are set to, by the name of a world.
    """
    first, *layers = (str(layer) for layer in size.layers)
    l0, *other_l0s = size.l0s
    main = [arm for arm in MAIN if _is_run(arm, size)]
    others = [arm for arm in REAL if arm not in MAIN and _is_run(arm, size)]

    def real(arms: list[str], places: list[str], l0s: list[int]) -> Iterator[Job]:
        for k in l0s:
            for place in places:
                for seed in size.seeds:
                    yield from (Job("real", place, arm, k, 0.0, seed) for arm in arms)

    yield from real(main, [first], [l0])
    yield from real(main, layers, [l0])
    for place in size.worlds:
        for seed in size.seeds:
            everywhere = (arm for arm in WORLD if arm not in LEFT_OUT and _is_run(arm, size))
            yield from (Job("worlds", place, arm, world_l0(place), 0.0, seed) for arm in everywhere)
    for place in size.worlds[:1]:
        for arm in (arm for arm in LEFT_OUT if _is_run(arm, size)):
            yield from (Job("worlds", place, arm, world_l0(place), 0.0, seed) for seed in size.seeds)
    yield from real(main, [first, *layers], other_l0s)
    yield from real(others, [first, *layers], [l0])
    for part in EXTRAS:
        for place in (first, *layers):
            arms = [arm for arm in LABELLED if _is_run(arm, size)]
            yield from (Job(part, place, arm, l0, 0.0, seed) for arm in arms for seed in size.seeds)
    yield from (Job("real", first, arm, l0, 0.0, size.seeds[0], size.longer) for arm in LONGER if _is_run(arm, size))
    yield from real(others, [first, *layers], other_l0s)


def wanted(found: Iterator[Job], size: Size, row_of: RowOf) -> Iterator[Job]:
    """The runs that have no row yet and can be made now: those of a search for a rate before what needs it.

    Args:
        found: of `finals`.
        size: sizes of the study.
        row_of: the row of a job; None where there is none.
    """
    seen = set()
    for job in found:
        missing, rate = rate_of(job, size, row_of)
        if not missing and rate is not None:
            missing = [job._replace(rate=rate)]
        for one in missing:
            if one not in seen and row_of(one) is None and all(row_of(run) is not None for run in of_runs(one, size)):
                yield one
            seen.add(one)


def of_runs(job: Job, size: Size) -> list[Job]:
    """The runs whose SAEs a job measures, apart from one that it trains itself."""
    if job.part not in EXTRAS:
        return []
    seeds = [job.seed]
    if job.part == "stability":
        seeds.append(size.seeds[(size.seeds.index(job.seed) + 1) % len(size.seeds)])
    return [job._replace(part="real", seed=seed) for seed in seeds]


def rate_of(job: Job, size: Size, row_of: RowOf) -> tuple[list[Job], float | None]:
    """The runs that the choice of a job's rate waits for; or none, and the rate, None where all of them diverged."""
    arms = WORLD if job.part == "worlds" else REAL
    arm = arms[job.arm].like or job.arm
    rates = arms[arm].rates[: size.rates]
    if len(rates) == 1:
        return [], rates[0]
    if job.part == "worlds":
        first = job._replace(arm=arm, seed=size.seeds[0])
    else:
        first = Job("real", str(size.layers[0]), arm, size.l0s[0], 0.0, size.seeds[0])
    found: dict[float, tuple[float, float] | None] = {}
    while more := next_rates(found, rates, MORE, float(first.l0), OFF_L0):
        tried = {rate: row_of(first._replace(rate=rate)) for rate in more}
        if missing := [first._replace(rate=rate) for rate, row in tried.items() if row is None]:
            return missing, None
        found |= {rate: _measured(row) for rate, row in tried.items() if row is not None}
    return [], best_rate(found, float(first.l0), OFF_L0)


def _measured(row: Row) -> tuple[float, float] | None:
    """(explained variance, L0) on validation rows; None where training diverged."""
    return None if DIVERGED in row else (row["validation"]["ev_r2"], row["validation"]["l0"])


def _is_run(arm: str, size: Size) -> bool:
    return not size.arms or arm in size.arms
