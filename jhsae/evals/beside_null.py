"""A metric of `jhsae.evals.groups` as single numbers beside its null, and as a sentence."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jhsae.evals.groups import mean_of
from jhsae.evals.nulls import Alternative, compare, sentence


@dataclass
class Summary:
    """Numbers of an evaluation for a table, each with ``_null``, and a sentence for each prediction."""

    numbers: dict[str, float | None] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)

    def add(self, metric: dict[str, Any], key: str) -> None:
        """The mean of a metric, and of the draws of its null that are defined."""
        self.numbers[key] = metric["mean"]
        self.numbers[f"{key}_null"] = mean_of([np.nan if draw is None else draw for draw in metric["null"]])

    def compare(self, metric: dict[str, Any], name: str, alternative: Alternative, seed: int) -> None:
        """A sentence, unless a draw of the null is not defined: the test counts every draw."""
        values = np.array([value for value in metric["values"] if value is not None], np.float64)
        if len(values) and None not in metric["null"]:
            result = compare(values, np.array(metric["null"]), alternative=alternative, seed=seed)
            self.sentences.append(sentence(result, name))
