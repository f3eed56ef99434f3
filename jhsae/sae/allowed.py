"""The number of features that a token may have, by the rules of an SAE alone: the cost of encoding before training."""

import operator
from itertools import accumulate

from jhsae.sae.base import AbstractSAE
from jhsae.sparsify import AbstractRule


def allowed(sae: AbstractSAE) -> tuple[float, ...]:
    """How many features of each level of the forest are active per token, as far as the rules say.

    Rules of single levels multiply (atoms of each selected expert); one rule for all levels is shared out evenly.

    Args:
        sae: any SAE, or its shapes alone.
    """
    levels, rules = sae.forest.levels, sae.sparsifiers
    if len(rules) != len(levels):
        total = _count(rules[0], sae.features) if rules else float(sae.features)
        return (total / len(levels),) * len(levels)
    return tuple(accumulate((_count(rule, size) for rule, size in zip(rules, levels, strict=True)), operator.mul))


def _count(rule: AbstractRule, size: int) -> float:
    """The features that a rule selects among `size`, at the first step."""
    return float(rule.most_active(size) if rule.batch_k is None else rule.batch_k(0))
