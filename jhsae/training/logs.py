"""Metric sinks: ``metrics.jsonl`` always, TensorBoard and Weights & Biases on request.

``metrics.jsonl`` holds no wall-clock time, so that two runs of one config can be compared byte for byte; times go to
``timing.jsonl``. Only the main process of a run writes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

from jhsae.errors import UserError
from jhsae.files.bounded import JSON_BYTES, as_object, parse_json, read_bytes, to_json
from jhsae.files.folders import Folder, is_bucket, write_synced, write_whole, writing

LINES_BYTES = 16 * JSON_BYTES
Sink = Literal["tensorboard", "wandb"]
Write = Callable[[int, Mapping[str, float]], None]


class JsonLines:
    """Appends one JSON object per line; every line reaches the disk before `write` returns.

    Nothing can be appended to a file in a bucket: there lines wait for `flush`, which writes the whole file.
    """

    def __init__(self, path: Folder, keep_to_step: int):
        """Rows beyond `keep_to_step` (written after the checkpoint that is resumed) are dropped, as is a torn line."""
        self._path = path
        lines = _lines(path)
        rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
        kept = [(line, row) for line, row in zip(lines, rows, strict=True) if row["step"] <= keep_to_step]
        self._kept = [to_json(row) + "\n" if "NaN" in line or "Infinity" in line else line for line, row in kept]
        write_whole(path, "".join(self._kept))
        self.last: dict[str, Any] | None = kept[-1][1] if kept else None

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends `row`; numbers that are not finite become null. `UserError`: the disk is full."""
        line = to_json(row) + "\n"
        if is_bucket(self._path):
            self._kept.append(line)
            return
        with writing(self._path):
            write_synced(self._path, line.encode(), "ab")

    def flush(self) -> None:
        """Every line written so far is stored, wherever that is."""
        if is_bucket(self._path):
            write_whole(self._path, "".join(self._kept))


def last_row(path: Folder) -> dict[str, Any]:
    """The last row of a log; empty where there is none. `UserError`: that line is damaged."""
    lines = _lines(path)
    return _row(lines[-1], f"{path}, line {len(lines)}") if lines else {}


def _lines(path: Folder) -> list[str]:
    """The lines of a file that are complete; none where it does not exist."""
    text = read_bytes(path, LINES_BYTES) if path.exists() else b""
    return text[: text.rfind(b"\n") + 1].decode(errors="replace").splitlines(keepends=True)


def _row(line: str, where: str) -> dict[str, Any]:
    """A row of a log. `UserError`: the line is damaged."""
    row = as_object(parse_json(line, where, nan=True), where)
    if type(row.get("step")) is not int:
        raise UserError(f"{where} names no step; bring the file back, or write another out=... to start again")
    return row


class RunLog:
    """The logs of one run folder."""

    def __init__(
        self,
        folder: Folder,
        sinks: Sequence[Sink | Write] = (),
        step: int = 0,
        about: Mapping[str, Any] | None = None,
        waited: Callable[[], float] | None = None,
        beside: int = 0,
    ):
        """Continues after `step` finished updates. A sink is named, or is what `open_sinks` gives.

        `waited` gives the seconds spent waiting for batches so far; timing.jsonl then has them by row. `beside` is the
        number of other runs that this process trains in turns with this one: the times are those of all.
        """
        self._metrics = JsonLines(folder / "metrics.jsonl", step)
        self._timing = JsonLines(folder / "timing.jsonl", step)
        self._sinks = [_SINKS[sink](folder, dict(about or {})) if isinstance(sink, str) else sink for sink in sinks]
        seconds = (self._timing.last or {}).get("seconds")
        before = seconds if isinstance(seconds, int | float) else 0.0
        self._waited, self._waited_before = waited, 0.0
        self._beside = {"beside": beside} if beside else {}
        self._started, self._last = time.perf_counter() - before, (step, time.perf_counter())

    def write(self, step: int, stage: str, metrics: Mapping[str, float], tokens_per_step: int) -> None:
        """One row of metrics after `step` updates, and the time it took to get there."""
        now = time.perf_counter()
        rate = (step - self._last[0]) * tokens_per_step / (now - self._last[1])
        self._last = (step, now)
        self._metrics.write({"step": step, "stage": stage, **metrics})
        row = {"step": step, "seconds": now - self._started, "tokens_per_second": rate, **self._beside}
        if self._waited is not None:
            waited = self._waited()
            row["input_seconds"], self._waited_before = waited - self._waited_before, waited
        self._timing.write(row)
        for sink in self._sinks:
            sink(step, metrics)

    def flush(self) -> None:
        """Every row so far is stored: before a checkpoint that covers it."""
        self._metrics.flush()
        self._timing.flush()


class NoLog:
    """Keeps the rows in memory: for `fit`, and in processes that do not write."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, step: int, stage: str, metrics: Mapping[str, float], tokens_per_step: int) -> None:
        """One row of metrics after `step` updates."""
        self.rows.append({"step": step, "stage": stage, **metrics})

    def flush(self) -> None:
        """Nothing is stored."""


def _tensorboard(folder: Folder, about: dict[str, Any]) -> Write:
    writer = _optional("tensorboardX").SummaryWriter(str(folder / "tensorboard"))

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _wandb(folder: Folder, about: dict[str, Any]) -> Write:
    wandb = _optional("wandb")
    try:
        run = wandb.init(dir=str(folder), name=folder.name, id=folder.name, resume="allow", config=about)
    except (wandb.errors.Error, OSError, ValueError) as error:  # not logged in, no network, an id it does not take
        raise UserError(f"wandb cannot begin ({' '.join(str(error).split())[:300]}); {_WITHOUT_WANDB}") from error
    return lambda step, metrics: run.log(dict(metrics), step=step)


def check_sinks(sinks: Sequence[Sink]) -> None:
    """Raises `UserError` for a logger that is not installed."""
    for name in sinks:
        _optional(_MODULES[name])


def open_sinks(folder: Folder, sinks: Sequence[Sink], about: Mapping[str, Any]) -> list[Write]:
    """The loggers, ready to write. `UserError` for wandb without a login or a network."""
    return [_SINKS[name](folder, dict(about)) for name in sinks]


def _optional(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{module} is not installed; pip install 'jhsae[log]', or write loggers=[]") from error


_WITHOUT_WANDB = "run `wandb login`, set WANDB_MODE=offline, or write loggers=[]"
_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
_SINKS = {"tensorboard": _tensorboard, "wandb": _wandb}
