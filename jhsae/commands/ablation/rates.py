"""The search for an arm's learning rate: a list of peaks, extended while the best is at its edge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from jhsae.errors import UserError
from jhsae.training.config import StageConfig, Train

SCALED = ("peak", "value", "start", "end")  # arguments of schedules that are learning rates
FACTOR = 2.0  # between neighbouring peaks, where there is only one

Found = Mapping[float, tuple[float, float] | None]  # peak -> (explained variance, L0); None where training diverged


def peak_of(config: Train) -> float:
    """The largest learning rate of all stages.

    Raises:
        UserError: a schedule without any of the arguments `SCALED`.
    """
    return max(_peak(stage.learning_rate) for stage in config.stages)


def at_peak(config: Train, peak: float) -> list[StageConfig]:
    """The stages with learning rates whose largest is `peak`; the ratios between stages and between steps stay."""
    factor = peak / peak_of(config)
    return [replace(stage, learning_rate=_scaled(stage.learning_rate, factor)) for stage in config.stages]


def best_rate(found: Found, l0: float | None, off: float) -> float | None:
    """The peak of largest explained variance among those that keep their L0, or of all where none does.

    Args:
        found: what each peak gave on validation rows.
        l0: the L0 that is wanted; None for the median of all.
        off: the part of it by which a peak may miss it.

    Returns:
        The peak; None where training diverged at all of them.
    """
    known = {peak: pair for peak, pair in found.items() if pair is not None}
    if not known:
        return None
    wanted = median(pair[1] for pair in known.values()) if l0 is None else l0
    kept = {peak: ev for peak, (ev, own) in known.items() if abs(own - wanted) <= off * wanted}
    return max(kept or known, key=lambda peak: (kept or {p: ev for p, (ev, _) in known.items()})[peak])


def next_rates(found: Found, rates: Sequence[float], more: int, l0: float | None, off: float) -> list[float]:
    """The peaks that are still to be tried: those of the list, then one beyond the edge at which the best is.

    Args:
        found: what was tried.
        rates: the list.
        more: how many are tried on each side of the list at most.
        l0: as in `best_rate`.
        off: as in `best_rate`.
    """
    if missing := [rate for rate in rates if rate not in found]:
        return missing
    best, tried = best_rate(found, l0, off), sorted(found)
    if best is None:
        best = tried[0]  # training diverged at all of them
    above, below = (sum(rate > max(rates) for rate in tried), sum(rate < min(rates) for rate in tried))
    if best == tried[0] and below < more:
        return [_beyond(tried[0], tried[1] if len(tried) > 1 else tried[0] * FACTOR)]
    if best == tried[-1] and above < more:
        return [_beyond(tried[-1], tried[-2] if len(tried) > 1 else tried[-1] / FACTOR)]
    return []


def _beyond(edge: float, neighbour: float) -> float:
    return float(f"{edge * edge / neighbour:.3g}")


def _scaled(rate: Any, factor: float) -> Any:
    """A learning rate, or its schedule, times a factor; rounded, so that the same peak gives the same config."""
    if not isinstance(rate, dict):
        return float(f"{rate * factor:.6g}")
    return rate | {name: float(f"{rate[name] * factor:.6g}") for name in SCALED if name in rate}


def _peak(rate: Any) -> float:
    if not isinstance(rate, dict):
        return float(rate)
    sizes = [float(rate[name]) for name in SCALED if isinstance(rate.get(name), int | float)]
    if not sizes or not max(sizes) > 0:
        raise UserError(
            f"the learning rate {rate} has none of {', '.join(SCALED)} above 0, so that its peak cannot be set; write "
            "a schedule of jhsae.schedule, or no rates"
        )
    return max(sizes)
