"""Watchdog: fails fast when a peer process dies instead of hanging in a collective.

Every process writes a heartbeat (a counter) into the coordinator's key-value store and reads the others'. A heartbeat
that has not changed for `JHSAE_TIMEOUT` seconds belongs to a process that died; a process that fails writes why before
it exits. A process whose own training loop has made no progress for `PATIENCE` times as long exits too: a collective is
deadlocked. JAX's own heartbeat ends the processes as well, but later and without a message that says what to do.
"""

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

import jax

from jhsae.errors import outcome
from jhsae.parallel.distributed import coordinator, is_main, several, timeout

logger = logging.getLogger(__name__)
LOST = 75  # the exit code of what may be tried again (EX_TEMPFAIL in sysexits.h)
PATIENCE = 15
PREFIX = "jhsae/peers/"
DONE, FAILED = "done", "failed: "
AGAIN = "every finished checkpoint is intact; start all processes again and the run continues from the newest"


class Watchdog:
    """Watches the other processes while its block runs; in a run of one process it does nothing.

    Where a peer is lost, the process exits with `LOST`. Where its own block raises, the peers are told why and the
    process exits with the code of the error: its exit handlers would block on peers.
    """

    def __init__(self, end: Callable[[int], None] = os._exit):
        """`end` exits the process with a code, without running exit handlers."""
        self._end, self._stop = end, threading.Event()
        self._thread: threading.Thread | None = None
        self._last_progress: float | None = None

    def __enter__(self) -> "Watchdog":
        if several():
            self._silence = timeout()
            self._thread = threading.Thread(target=self._watch, name="jhsae peers", daemon=True)
            self._thread.start()
        return self

    def progress(self) -> None:
        """To be called after each finished step; after the first call, a loop that no longer calls it is an error."""
        self._last_progress = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        if error is None or isinstance(error, SystemExit):
            _publish(DONE)
            return
        expected = outcome(error)
        message, code = expected or (" ".join(str(error).split()) or type(error).__name__, 1)
        if expected is not None:
            _log(message)
        else:
            traceback.print_exception(error)
            _log(f"{type(error).__name__}: {message}; if another process has ended, {AGAIN}")
        _publish(FAILED + message)
        if is_main():  # it runs the key-value store from which the others read why
            time.sleep(2 * self._interval())
        self._end(code)

    def _interval(self) -> float:
        return self._silence / 12

    def _watch(self) -> None:
        last: dict[str, tuple[str, float]] = {}  # value of each heartbeat, and when it changed
        beat = 0
        while not self._stop.wait(self._interval()):
            beat += 1
            try:
                _publish(str(beat))
                found = dict(coordinator().key_value_dir_get(PREFIX))
            except jax.errors.JaxRuntimeError as error:
                self._lost(f"process 0 cannot be reached any more ({' '.join(str(error).split())})")
                return
            now = time.monotonic()
            for key, value in found.items():
                if value != last.get(key, (None, 0.0))[0]:
                    last[key] = value, now
                self._check(key.removeprefix(PREFIX), value, now - last[key][1])
            if self._last_progress is not None and now - self._last_progress > PATIENCE * self._silence:
                self._lost(f"no step has finished for {PATIENCE * self._silence} seconds")

    def _check(self, process: str, value: str, silent: float) -> None:
        if value.startswith(FAILED):
            self._lost(f"process {process} failed ({value.removeprefix(FAILED)})")
        if value != DONE and silent > self._silence:
            self._lost(f"process {process} has given no sign of life for {self._silence} seconds")

    def _lost(self, reason: str) -> None:
        _log(f"{reason}; {AGAIN}")
        self._end(LOST)


def _publish(value: str) -> None:
    coordinator().key_value_set(f"{PREFIX}{jax.process_index()}", value, allow_overwrite=True)


def _log(message: str) -> None:
    logger.error(f"jhsae: error in process {jax.process_index()}: {message}")
