"""A profiler trace of some training steps, for TensorBoard or Perfetto."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jhsae.files.folders import Folder, make_folder


class StepProfiler:
    """Records the steps `first` to `last` of a run and writes the trace into a folder; without steps it does nothing.

    Use it as a context manager, so that a trace ends with the run when that ends early.
    """

    def __init__(self, folder: Folder | None = None, steps: Sequence[int] | None = None):
        """Records nothing yet.

        Args:
            folder: Where the files of the trace go, as ``plugins/profile/TIME/HOST.xplane.pb``; may be in a bucket.
            steps: The first and the last step to record, counted from 1 over the whole run.
        """
        self._folder = folder
        self._first, self._last = steps or (0, -1)
        self._trace: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Call it before step number `step` is dispatched."""
        if self._trace is None and self._folder is not None and self._first <= step <= self._last:
            self._trace = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._trace.name)

    def after(self, step: int, outputs: Any) -> None:
        """Call it when step number `step` is dispatched; waits for `outputs` where the trace ends with them."""
        if self._trace is not None and step >= self._last:
            jax.block_until_ready(outputs)
            self._stop()

    def _stop(self) -> None:
        if self._trace is None or self._folder is None:
            return
        jax.profiler.stop_trace()
        with self._trace as written:  # the profiler writes local files alone
            for file in sorted(path for path in Path(written).rglob("*") if path.is_file()):
                copy = self._folder / file.relative_to(written).as_posix()
                make_folder(copy.parent)
                copy.write_bytes(file.read_bytes())
        self._trace = None
