"""Budgets of an arm, and the size at which one of them is that of a reference.

Parameters, encoder MACs and tokens follow from a config and are solved before anything is trained. Total L0 is only
known after training: sizes are tried in short of a bisection, on validation rows (`next_size`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jhsae import config as cfg
from jhsae.commands.ablation.arms import shapes_of
from jhsae.errors import UserError
from jhsae.evals import parameters
from jhsae.training.config import Train

LARGEST = 2**24  # of a size that is tried
PILOTS = 6  # sizes that are trained until the L0 is given up
STEEPEST = 4.0  # of log L0 against log size, between two trained sizes
Number = float | int
Trial = tuple[Number, float]  # a size, and the L0 that it gave
FALLING = ("weights.", "stages.")  # keys of which more means a smaller L0: penalties


def budgets(config: Train) -> dict[str, float]:
    """What a config costs, apart from its L0: parameters, encoder MACs as its rules allow, tokens."""
    sae = shapes_of(config)
    macs = sae.encoder_macs()
    return {"parameters": float(parameters(sae)), "macs": float(macs.tables), "tokens": float(tokens(config))}


def tokens(config: Train) -> int:
    """The tokens of all stages."""
    return config.data.batch * sum(stage.steps for stage in config.stages)


def key_of(config: Train, keys: Sequence[str], where: str) -> str:
    """The first of `keys` that a config has.

    Raises:
        UserError: it has none of them.
    """
    tree = cfg.to_dict(config)
    for key in keys:
        if value_at(tree, key) is not None:
            return key
    raise UserError(f"{where} has none of the keys of solve ({', '.join(keys)}); add one that it has")


def value_at(tree: Any, key: str) -> Number | None:
    """The number at a dotted key of plain data; None where there is none."""
    for name in key.split("."):
        if isinstance(tree, Mapping):
            tree = tree.get(name)
        elif isinstance(tree, list) and name.isdigit() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return None
    return None if isinstance(tree, bool) or not isinstance(tree, int | float) else tree


def solved(cost: Callable[[int], float | None], start: int, target: Number, off: float, what: str) -> int:
    """The whole number at which a growing cost is nearest to its target.

    Args:
        cost: of a size; None where that size does not build.
        start: a size that builds.
        target: the cost that is wanted.
        off: the part of it by which the result may miss it.
        what: is sized, for the message.

    Raises:
        UserError: no size comes that near.
    """
    low, high = 0, max(1, start)
    while high < LARGEST and (reached := cost(high)) is not None and reached < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        value = cost(middle)
        low, high = (middle, high) if value is not None and value < target else (low, middle)
    near = {size: value for size in (low, high) if size >= 1 and (value := cost(size)) is not None}
    best = min(near, key=lambda size: abs(near[size] - target), default=None)
    if best is None or abs(near[best] / target - 1) > off:
        nearest = "no size builds" if best is None else f"the nearest is {near[best]:,.0f}, at {best}"
        raise UserError(
            f"{what} has no size with {target:,.0f} ({nearest}); name another key in solve, or write a larger off_l0"
        )
    return best


def scaled_steps(config: Train, target: Number) -> list[str]:
    """Overrides that scale the steps of all stages to a number of tokens."""
    factor = target / tokens(config)
    return [f"stages.{i}.steps={max(1, round(stage.steps * factor))}" for i, stage in enumerate(config.stages)]


def next_size(tried: Sequence[Trial], start: Number, target: Number, key: str) -> Number | None:
    """The next size whose L0 is to be measured; None when trying more makes no sense.

    Args:
        tried: pairs of a size and the L0 that it gave, in the order in which they were tried.
        start: the first size.
        target: the L0 that is wanted.
        key: that is set; weights lower the L0, everything else raises it. `start` says whether it is a whole number.
    """
    if not tried:
        return start
    if len(tried) >= PILOTS:
        return None
    sign = -1.0 if key.startswith(FALLING) else 1.0
    size, l0 = min(tried, key=lambda pair: abs(math.log(max(pair[1], 1e-3) / target)))
    slope = sign
    others = [pair for pair in tried if pair[0] != size and pair[1] > 0 and l0 > 0]
    if others:
        other, its = min(others, key=lambda pair: abs(math.log(pair[0] / size)))
        slope = math.log(its / l0) / math.log(other / size)
        slope = sign * min(max(sign * slope, 1 / STEEPEST), STEEPEST)
    wanted = size * min(max((target / max(l0, 1e-3)) ** (1 / slope), 0.125), 8.0)
    if isinstance(start, float):
        return wanted
    whole = max(1, round(wanted))
    if whole == size:
        whole = max(1, round(size + (1 if (target > l0) == (sign > 0) else -1)))
    return None if whole in [pair[0] for pair in tried] else whole


def nearest(tried: Sequence[Trial], target: Number) -> Trial:
    """The pair of a size and its L0 that is nearest to the target."""
    return min(tried, key=lambda pair: abs(pair[1] - target))
