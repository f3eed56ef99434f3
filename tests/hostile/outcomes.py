"""One case: a call that must end well or with one sentence, within its memory and its time, and leave no trace.

``right``: it ended. ``sentence``: one line on stderr and exit code 2. Anything else is a fault.
"""

import contextlib
import faulthandler
import io
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jhsae.errors import UserError, sentence

MEMORY, SECONDS = 2**30, 20.0


class Outcome(NamedTuple):
    """What became of a case: `word` is right, sentence or a fault; `detail` is the sentence or where it failed."""

    word: str
    detail: str = ""
    megabytes: int = 0

    @property
    def fine(self) -> bool:
        return self.word in ("right", "sentence")


class TooLongError(BaseException):
    """Raised by the alarm; no ``except Exception`` catches it."""


def judged(call: Callable[[], Any], watched: Path, out: Path) -> Outcome:
    """Runs `call`, which returns an exit code (None is 0), and looks at what it wrote, said, took and left.

    Nothing inside of the folder `watched` may have changed afterwards, but for what is in `out` and beside it under
    names that begin with its own (a folder that is not complete yet).
    """
    before, said = _listing(watched, out), io.StringIO()
    peak = _Peak()
    try:
        with (
            _at_most(SECONDS),
            _never_beyond(3 * MEMORY),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            code = call()
    except TooLongError:
        return Outcome("too long", _place())
    except SystemExit as error:
        return Outcome("exit", f"SystemExit({error.code})")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "/jhsae/" in f.filename]
        place = f"{Path((ours or [frame])[-1].filename).name}:{(ours or [frame])[-1].lineno}"
        return Outcome("traceback", f"{place}: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
    megabytes = peak.grown() // 2**20
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    if changed := sorted(_listing(watched, out) ^ before):
        return Outcome("left something", str(changed[0]), megabytes)
    if megabytes > MEMORY // 2**20:
        return Outcome("too large", f"{megabytes} MiB", megabytes)
    if code in (0, None):
        return Outcome("right", "", megabytes)
    if code == 2 and len(lines) == 1 and lines[0].startswith("jhsae: error: ") and len(lines[0]) < 1200:
        return Outcome("sentence", lines[0].removeprefix("jhsae: error: "), megabytes)
    return Outcome("no sentence", f"code {code}, {len(lines)} lines: {' '.join(lines)[:160]}", megabytes)


def as_command(call: Callable[[], Any]) -> Callable[[], int]:
    """A Python call with the exit code and the line that the command line would give it."""

    def run() -> int:
        try:
            call()
        except UserError as error:
            print(f"jhsae: error: {sentence(error)}", file=sys.stderr)
            return 2
        return 0

    return run


def _listing(folder: Path, out: Path) -> set[tuple[str, int]]:
    """Names and sizes of everything in `folder`, links not followed, `out` left aside."""
    found = set()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not os.path.join(place, name).startswith(str(out))]
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if not path.startswith(str(out)):
                found.add((os.path.relpath(path, folder), os.lstat(path).st_size if name in files else 0))
    return found


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("an alarm rings in the main thread alone")

    def ring(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)  # a wait in C++ hears no alarm
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _never_beyond(more: int) -> Iterator[None]:
    """The process gets no more address space than that, so that a fault does not take the machine with it."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    try:
        now = 1024 * _kilobytes("VmSize")
    except OSError:  # no Linux
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (now + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _place() -> str:
    return f"longer than {SECONDS:.0f} s"


class _Peak:
    """By how much the process has grown, at its peak. Linux resets the peak on request; elsewhere nothing is said."""

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _kilobytes("VmRSS")
        except OSError:
            self._before = -1

    def grown(self) -> int:
        """Bytes."""
        return 0 if self._before < 0 else 1024 * (_kilobytes("VmHWM") - self._before)


def _kilobytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"no {name} in /proc/self/status")
