"""Times of several programs in one process, interleaved: A B, B A, A B, ...

A machine is never quiet for long, so programs are compared round by round: what disturbs one disturbs its neighbours,
and the ratio of two times of one round means more than that of two averages. Every round runs every program once;
rounds alternate between the given order and its reverse. A program returns only when its work is done.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jhsae.errors import UserError

LEAST_ROUNDS = 3  # a median of fewer says nothing


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of some numbers."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, numbers: list[float]) -> "Spread":
        """The spread of at least one number."""
        return cls(statistics.median(numbers), min(numbers), max(numbers))


@dataclass(frozen=True)
class Times:
    """Seconds of every program in every round."""

    seconds: dict[str, list[float]]

    @property
    def rounds(self) -> int:
        """How many rounds were timed."""
        return len(next(iter(self.seconds.values())))

    def milliseconds(self, name: str) -> Spread:
        """The spread of one program's times."""
        return Spread.of([1000 * s for s in self.seconds[name]])

    def ratio(self, slow: str, fast: str) -> Spread:
        """How many times longer `slow` takes than `fast`, round by round."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return Spread.of([a / b for a, b in pairs])

    def per_second(self, name: str, count: int) -> Spread:
        """How many of what a program does `count` of it does in a second."""
        return Spread.of([count / s for s in self.seconds[name]])


def interleave(
    programs: Mapping[str, Callable[[], object]],
    repeats: int,
    seconds: float,
    prepare: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Times `repeats` rounds; after `seconds` no further one begins, once there are three.

    One round before them is not counted. `prepare` runs before a program of its name, off the clock.
    """
    check_rounds(repeats, seconds)
    prepare, order = prepare or {}, list(programs)
    times: dict[str, list[float]] = {name: [] for name in programs}
    begun = clock()
    for number in range(-1, repeats):
        if number == 0:
            begun = clock()
        if number >= LEAST_ROUNDS and clock() - begun > seconds:
            break
        for name in order if number % 2 == 0 else order[::-1]:
            if name in prepare:
                prepare[name]()
            before = clock()
            programs[name]()
            if number >= 0:
                times[name].append(clock() - before)
    return Times(times)


def check_rounds(repeats: int, seconds: float) -> None:
    """Raises `UserError` for fewer than one round, or no time."""
    if repeats < 1:
        raise UserError(f"repeats is {repeats}, expected at least 1 round; write --repeats 3 or more")
    if not seconds > 0:
        raise UserError(f"seconds is {seconds}, expected more than 0; write --seconds 60 or so")
