"""Wall-clock times of a run: seconds spent waiting for batches, and the summary of its timing.jsonl."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array

from jhsae.files.bounded import read_lines
from jhsae.files.forms import COUNT, NUMBER, check


class TimedBatches(Iterator[np.ndarray | Array]):
    """Batches, and the `seconds` that the caller has waited for them.

    The device computes the step before while the host waits, so this is the most that input can have delayed it.
    """

    def __init__(self, batches: Iterator[np.ndarray | Array], clock: Callable[[], float] = time.perf_counter):
        self._batches, self._clock = batches, clock
        self.seconds = 0.0

    def __next__(self) -> np.ndarray | Array:
        before = self._clock()
        batch = next(self._batches)
        self.seconds += self._clock() - before
        return batch


def timing(folder: Path) -> dict[str, float]:
    """Seconds of the training loop and its median rate; nothing for an imported SAE or a run beside others.

    Args:
        folder: The run folder.

    Returns:
        `train_seconds`, compilation included, and `tokens_per_second`, the median over the logged intervals but the
        first.

    Raises:
        UserError: timing.jsonl is damaged.
    """
    rows = _rows(folder)
    if not rows or any("beside" in row for row in rows):  # the times of all runs of the process
        return {}
    return {
        "train_seconds": rows[-1]["seconds"],
        "tokens_per_second": float(np.median([row["tokens_per_second"] for row in rows[1:]] or [0.0])),
    }


def input_share(folder: Path) -> float | None:
    """The share of the training loop's time in which the host waited for a batch, after the first logged row.

    Args:
        folder: The run folder.

    Returns:
        From 0 to 1; None for fewer than two rows, or rows of a version that did not measure it.

    Raises:
        UserError: timing.jsonl is damaged.
    """
    rows = _rows(folder)
    if len(rows) < 2 or not all("input_seconds" in row for row in rows):
        return None
    return sum(row["input_seconds"] for row in rows[1:]) / (rows[-1]["seconds"] - rows[0]["seconds"])


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "timing.jsonl"
    rows = read_lines(path) if path.exists() else []
    for number, row in enumerate(rows, start=1):
        form = {"seconds": NUMBER, "tokens_per_second": NUMBER, "input_seconds?": NUMBER, "beside?": COUNT}
        check(row, form, f"{path}, row {number}")
    return rows
