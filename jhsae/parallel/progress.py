"""Progress of a long loop: a bar on a terminal or in a notebook, elsewhere a log record every 30 seconds.

``JHSAE_PROGRESS_SECONDS`` is the time between two records. Process 0 alone shows progress. Nothing here reads from a
device: the numbers are those that the caller has on the host already. `ProgressLines` shows several loops, a line each.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm

from jhsae.errors import UserError
from jhsae.parallel.distributed import is_main

logger = logging.getLogger(__name__)
NAME = "JHSAE_PROGRESS_SECONDS"


class Progress:
    """Counts what is done of `total`; use it as a context manager."""

    def __init__(
        self,
        label: str,
        total: int,
        initial: int = 0,
        unit: str = "step",
        clock: Callable[[], float] = time.monotonic,
        lines: "ProgressLines | None" = None,
    ):
        """Draws the bar where it can be seen.

        Args:
            label: Name in front of the bar.
            total: Number of units at the end.
            initial: Units that an earlier, interrupted run has done; they do not count for the rate.
            unit: What is counted, in the singular.
            clock: Seconds, monotonic.
            lines: The view of which this is one line; it writes the records and closes the bar.

        Raises:
            UserError: ``JHSAE_PROGRESS_SECONDS`` is no positive number.
        """
        self._total, self._done, self._unit, self._clock, self._lines = total, initial, unit, clock, lines
        self._seconds, self._tokens, self._numbers = _seconds(), 0, dict[str, float]()
        self._since: tuple[float, int, int] | None = None  # time, units and tokens at the last record
        self._ended = False
        # outside notebooks None asks tqdm whether there is a terminal
        hidden = (False if "ipykernel" in sys.modules else None) if is_main() else True
        self._bar: Any = tqdm(
            total=total,
            initial=initial,
            desc=label,
            unit=unit,
            unit_scale=unit != "step",
            dynamic_ncols=True,
            disable=hidden,
            position=None if lines is None else lines.place(label),
        )
        self._logs = is_main() and self._bar.disable

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._lines is None:
            self.close()

    def close(self) -> None:
        """The bar is drawn for the last time."""
        self._bar.close()

    def show(self, **numbers: float) -> None:
        """Sets the numbers shown beside the count, such as ``ev=0.78``."""
        self._numbers = numbers
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)

    def update(self, units: int = 1, tokens: int = 0) -> None:
        """`units` more are done, for which `tokens` tokens were read."""
        self._bar.update(units)
        self._done, self._tokens = self._done + units, self._tokens + tokens
        if not self._logs:
            return
        now = self._clock()
        if self._since is None:  # the first update ends the compilation, which says nothing of the rate
            self._since = now, self._done, self._tokens
        if self._lines is not None:
            self._lines.tick(now, self._seconds)
        elif now - self._since[0] >= self._seconds:
            logger.info(self.line(now))

    def line(self, now: float) -> str:
        """The record at `now`: what is done, the numbers, and the rate and the remaining time since the last record."""
        then, done, tokens = self._since or (now, self._done, self._tokens)
        parts = [f"{self._unit} {self._done}/{self._total}"]
        parts += [f"{name} {value:.3g}" for name, value in self._numbers.items()]
        if self._ended:
            return "  ".join([*parts, "finished" if self._done == self._total else "stopped"])
        remaining = (self._total - self._done) * (now - then) / max(1, self._done - done)
        if now > then and self._done > done:
            parts += [f"{_short((self._tokens - tokens) / (now - then))} tokens/s", f"ETA {_duration(remaining)}"]
        self._since = (now, self._done, self._tokens) if self._since else None
        return "  ".join(parts)


class ProgressLines:
    """Progress of several loops in one view: a bar for each, one below the other, or one record of a line for each.

    Use it as a context manager; `of` makes the `Progress` of a loop.
    """

    def __init__(self, labels: Sequence[str], clock: Callable[[], float] = time.monotonic):
        """`labels`: the names of all loops, in the order of their lines."""
        self._labels, self._clock = list(labels), clock
        self._width = max(map(len, labels), default=0)
        self._shown: dict[str, Progress] = {}
        self._since: float | None = None

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *_: object) -> None:
        for label in self._labels:
            if label in self._shown:
                self._shown[label].close()

    def of(self, label: str, total: int, initial: int = 0) -> Progress:
        """The progress of one loop."""
        made = Progress(label.ljust(self._width), total, initial, clock=self._clock, lines=self)
        self._shown[label] = made
        return made

    def place(self, label: str) -> int:
        """The number of a loop's line."""
        return self._labels.index(label.rstrip())

    def tick(self, now: float, seconds: float) -> None:
        """Logs the lines of all loops where the last record is `seconds` old."""
        self._since = now if self._since is None else self._since
        if now - self._since >= seconds:
            self._since = now
            lines = [f"{name.ljust(self._width)}  {shown.line(now)}" for name, shown in self._shown.items()]
            logger.info("\n".join(lines))


def _seconds() -> float:
    text = os.environ.get(NAME, "30")
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise UserError(f"{NAME} is {text!r}, expected a number of seconds above 0, e.g. {NAME}=30")
    return found


def _short(number: float) -> str:
    for factor, unit in [(1e9, "G"), (1e6, "M"), (1e3, "k")]:
        if number >= factor:
            scaled = number / factor
            return f"{scaled:.0f}{unit}" if scaled >= 10 else f"{scaled:.1f}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
