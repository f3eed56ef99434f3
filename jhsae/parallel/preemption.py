"""Preemption: on SIGTERM or SIGINT (Ctrl-C) the loop finishes its step, saves a checkpoint and the process exits.

A single process sets a flag that is read after each step. With several, JAX's preemption sync manager agrees on one
step after which all of them stop: `jax.experimental.multihost_utils.reached_preemption_sync_point`.
"""

import signal
import threading
from types import FrameType
from typing import Any

from jax.experimental.multihost_utils import reached_preemption_sync_point

from jhsae.parallel.distributed import several


class StopRequest:
    """Handles the signals while its block runs; `signal` is the one received, a second one has its default effect."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._together = several()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers there alone
            # with several processes JAX handles SIGTERM, and a Ctrl-C is forwarded to it
            kinds = [signal.SIGINT] if self._together else [signal.SIGINT, signal.SIGTERM]
            self._before = {kind: signal.signal(kind, self._handle) for kind in kinds}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def due(self, step: int) -> bool:
        """True after the step at which to stop; to be called after every step, on every process."""
        if self._together and reached_preemption_sync_point(step):
            self.signal = self.signal or signal.SIGTERM
            return True
        return not self._together and self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        if self._together:
            signal.raise_signal(signal.SIGTERM)

    def _restore(self) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
        self._before = {}
