"""Notices that another process of the run is gone, and ends this one with a sentence instead of waiting for ever.

Every process writes a counter into the coordinator's key-value store and reads the others'. A counter that stands still
for `JHSAE_TIMEOUT` seconds belongs to a process that died; one that fails says why before it ends. A process whose own
training loop stands still for `PATIENCE` times as long ends itself: some collective operation waits in vain.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

import jax

from jhsae.errors import outcome
from jhsae.parallel.distributed import coordinator, is_main, several, timeout

LOST = 75  # the exit code of what may be tried again (EX_TEMPFAIL of sysexits.h)
PATIENCE = 15
PREFIX = "jhsae/peers/"
DONE, FAILED = "done", "failed: "
AGAIN = "every finished checkpoint is intact; start all processes again and the run continues from the newest"


class Watchdog:
    """Watches the other processes while its block runs; alone it does nothing. A block that fails ends the process."""

    def __init__(self, end: Callable[[int], None] = os._exit):
        """`end` ends the process at once: its exit handlers would wait for processes that never come."""
        self._end, self._stop = end, threading.Event()
        self._thread: threading.Thread | None = None
        self._moved: float | None = None

    def __enter__(self) -> "Watchdog":
        if several():
            self._silence = timeout()
            self._thread = threading.Thread(target=self._watch, name="jhsae peers", daemon=True)
            self._thread.start()
        return self

    def progress(self) -> None:
        """The training loop has moved on; from the first call on it has to."""
        self._moved = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        if error is None or isinstance(error, SystemExit):
            _tell(DONE)
            return
        expected = outcome(error)
        said, code = expected or (" ".join(str(error).split()) or type(error).__name__, 1)
        if expected is not None:
            _say(said)
        else:
            traceback.print_exception(error)
            _say(f"{type(error).__name__}: {said}; if another process has ended, {AGAIN}")
        _tell(FAILED + said)
        if is_main():  # it serves what the others read
            time.sleep(2 * self._interval())
        self._end(code)

    def _interval(self) -> float:
        return self._silence / 12

    def _watch(self) -> None:
        heard: dict[str, tuple[str, float]] = {}
        beat = 0
        while not self._stop.wait(self._interval()):
            beat += 1
            try:
                _tell(str(beat))
                found = dict(coordinator().key_value_dir_get(PREFIX))
            except jax.errors.JaxRuntimeError as error:
                self._lost(f"process 0 cannot be reached any more ({' '.join(str(error).split())})")
                return
            now = time.monotonic()
            for key, value in found.items():
                if value != heard.get(key, (None, 0.0))[0]:
                    heard[key] = value, now
                self._check(key.removeprefix(PREFIX), value, now - heard[key][1])
            if self._moved is not None and now - self._moved > PATIENCE * self._silence:
                self._lost(f"no step has finished for {PATIENCE * self._silence} seconds")

    def _check(self, process: str, value: str, silent: float) -> None:
        if value.startswith(FAILED):
            self._lost(f"process {process} failed ({value.removeprefix(FAILED)})")
        if value != DONE and silent > self._silence:
            self._lost(f"process {process} has given no sign of life for {self._silence} seconds")

    def _lost(self, what: str) -> None:
        _say(f"{what}; {AGAIN}")
        self._end(LOST)


def _tell(value: str) -> None:
    coordinator().key_value_set(f"{PREFIX}{jax.process_index()}", value, allow_overwrite=True)


def _say(sentence: str) -> None:
    print(f"jhsae: error in process {jax.process_index()}: {sentence}", file=sys.stderr, flush=True)
