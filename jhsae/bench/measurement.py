"""Times, memory and environment of a benchmark.

Programs are timed in one process, interleaved: A B, B A, A B, ... Load changes over time, so programs are
compared round by round: a disturbance affects neighbours alike, and the ratio of two times of one round means more than
that of two averages. Every round runs every program once; rounds alternate between the given order and its reverse. A
program returns only when its work is done.

Memory is what the compiler reports for one device: arguments + outputs + temporaries - aliases. An alias is an output
that reuses the buffer of a donated argument.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jax.stages import Compiled

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.folders import write_whole

LEAST_ROUNDS = 3  # a median of fewer is not meaningful


@dataclass(frozen=True)
class MedianRange:
    """Median, minimum and maximum."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: list[float]) -> "MedianRange":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Timings:
    """Seconds of every program in every round."""

    seconds: dict[str, list[float]]

    @property
    def rounds(self) -> int:
        """Timed rounds."""
        return len(next(iter(self.seconds.values())))

    def milliseconds(self, name: str) -> MedianRange:
        """Time of one program per round."""
        return MedianRange.of([1000 * s for s in self.seconds[name]])

    def ratio(self, slow: str, fast: str) -> MedianRange:
        """Time of `slow` over that of `fast`, round by round."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return MedianRange.of([a / b for a, b in pairs])

    def per_second(self, name: str, count: int) -> MedianRange:
        """Items per second of a program that processes `count` items a round."""
        return MedianRange.of([count / s for s in self.seconds[name]])


def interleave(
    programs: Mapping[str, Callable[[], object]],
    repeats: int,
    seconds: float,
    prepare: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Times programs round by round, after one warm-up round.

    Args:
        programs: Blocking functions by name.
        repeats: Rounds at most.
        seconds: No further round starts after so long, once there are `LEAST_ROUNDS`.
        prepare: Called before the program of the same name, outside its time.
        clock: Seconds, monotonic.

    Raises:
        UserError: `repeats` or `seconds` is not positive.
    """
    check_rounds(repeats, seconds)
    prepare, order = prepare or {}, list(programs)
    times: dict[str, list[float]] = {name: [] for name in programs}
    started = clock()
    for index in range(-1, repeats):
        if index == 0:
            started = clock()
        if index >= LEAST_ROUNDS and clock() - started > seconds:
            break
        for name in order if index % 2 == 0 else order[::-1]:
            if name in prepare:
                prepare[name]()
            before = clock()
            programs[name]()
            if index >= 0:
                times[name].append(clock() - before)
    return Timings(times)


def check_rounds(repeats: int, seconds: float) -> None:
    """Raises `UserError` for fewer than one round, or no time."""
    if repeats < 1:
        raise UserError(f"repeats is {repeats}, expected at least 1 round; write --repeats 3 or more")
    if not seconds > 0:
        raise UserError(f"seconds is {seconds}, expected more than 0; write --seconds 60 or so")


@dataclass(frozen=True)
class Memory:
    """Bytes of one compiled program."""

    argument: int
    output: int
    temp: int
    alias: int

    @classmethod
    def of(cls, compiled: Compiled) -> "Memory":
        """The memory of a program compiled by ``jax.jit(f).lower(...).compile()``."""
        stats = compiled.memory_analysis()
        if stats is None:
            raise UserError(f"the compiler for {jax.default_backend()} does not report the memory of a program")
        return cls(
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.alias_size_in_bytes,
        )

    @property
    def total(self) -> int:
        return self.argument + self.output + self.temp - self.alias

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON, with the total."""
        return asdict(self) | {"total": self.total}


def load_average() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; above the number of processors timings are disturbed."""
    return [round(load, 2) for load in os.getloadavg()]


def environment() -> dict[str, Any]:
    """Processors, commit, versions and devices."""
    return {"cpu_count": os.cpu_count(), **cfg.provenance()}


def check_writable(path: Path | None) -> None:
    """Raises `UserError`, before any measurement, where the result could not be written."""
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--json is {path}, but there is no folder {path.parent}; make it, or write another path")
    if path is not None and path.is_dir():
        raise UserError(f"--json is {path}, which is a folder; write the path of a file in it")


def write(result: dict[str, Any], path: Path | None) -> None:
    """Writes a result as JSON where a path is given."""
    if path is not None:
        write_whole(path, to_json(result, indent=2) + "\n")
