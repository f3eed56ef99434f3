"""Long products of cases: a sample of them in every run, all of them with ``pytest -m slow``."""

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], every: int = 4) -> list[Any]:
    """The cases as parameters, all but each `every`-th of them marked slow.

    Choose an `every` that shares no factor with the inner sizes of a product, so that each value of each axis stays.
    """
    return [case if i % every == 0 else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(cases)]
