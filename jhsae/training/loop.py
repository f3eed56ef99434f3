"""The one training loop: stages of jitted steps over batches, metrics read one step late.

While the device computes step n + 1 the host reads the metrics of step n; every read is explicit (`jax.device_get`),
so that ``jax.transfer_guard`` finds one that is not. A loss that is not finite stops the run and names the step. The
loop is a generator, `updates`, so that several runs can take turns; `run_stages` runs one to its end.
"""

import logging
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from jhsae.errors import DIVERGED, UserError
from jhsae.losses.base import UNDEFINED
from jhsae.parallel.mesh import shard_batch
from jhsae.parallel.progress import Progress
from jhsae.training.profile import StepProfiler
from jhsae.training.step import Metrics, StageModules, TrainState

logger = logging.getLogger(__name__)


@runtime_checkable
class Log(Protocol):
    """Where a row of metrics goes."""

    def write(self, step: int, stage: str, metrics: dict[str, float], tokens_per_step: int) -> None:
        """One row of metrics after `step` updates."""


class DivergedError(RuntimeError):
    """The loss or a parameter is NaN or infinite; `step` is the update after which that was seen."""

    exit_code = DIVERGED

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


Step = Callable[[tuple[StageModules, jax.Array], TrainState], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run: `steps` updates of the compiled `step` with `modules`."""

    name: str
    steps: int
    step: Step
    modules: StageModules


def _ignore(*_: object) -> None:
    """Does nothing."""


def _never(step: int) -> bool:
    return False


P = ParamSpec("P")
T = TypeVar("T")


def drained(updates: Callable[P, Generator[int, None, T]]) -> Callable[P, T]:
    """The function that runs the generator of `updates` to its end and returns what that returns."""

    @wraps(updates)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        steps = updates(*arguments, **named)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    return run


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What `run_stages` calls; each does nothing unless given.

    Args:
        save: Called with the state every `checkpoint_every` updates and after the last one, when every earlier row is
            logged and the parameters are known to be finite.
        due: Called with the number of finished updates after each; True asks the loop to save and return early.
        on_step: Called after each step that the device has completed.
    """

    save: Callable[[TrainState], None] = _ignore
    due: Callable[[int], bool] = _never
    on_step: Callable[[], None] = _ignore


def updates(
    state: TrainState,
    stages: list[Stage],
    batches: Iterator[np.ndarray | Array],
    mesh: Mesh,
    log: Log,
    *,
    log_every: int = 10,
    checkpoint_every: int | None = None,
    label: str = "train",
    profiler: StepProfiler | None = None,
    hooks: Hooks = Hooks(),
    shown: Callable[[str, int, int], Progress] = Progress,
) -> Generator[int, None, TrainState]:
    """Runs the updates that `state.step` does not count yet; as a generator, one each time it is resumed.

    Args:
        state: Where to start; its arrays are donated.
        stages: In order; a resumed run skips what is done.
        batches: This process's rows of each batch, [rows, embed], or global arrays [batch, embed].
        mesh: Devices that share the batch.
        log: Gets every `log_every`-th row of metrics, and the first and the last.
        log_every: In updates.
        checkpoint_every: Updates between two calls of ``hooks.save``; None for one call after the last.
        label: Name of the progress bar, which process 0 draws.
        profiler: Traces some of the steps.
        hooks: What to call besides.
        shown: Makes the progress bar of a label, all updates and those that are done.

    Yields:
        The number of finished updates, before each update.

    Returns:
        The state after the last update, or after the one at which ``hooks.due`` was True.

    Raises:
        DivergedError: The loss or, before a save, a parameter is not finite.
        UserError: Before a save, a running threshold has collapsed (`AbstractRule.starved`).
    """
    total = sum(stage.steps for stage in stages)
    done, end, stopped = int(jax.device_get(state.step)), 0, False
    kept = "; the last checkpoint is intact" if checkpoint_every else ""
    with shown(label, total, done) as progress, profiler or StepProfiler() as profiler:
        reader = _Reader(log, log_every, total, hooks.on_step, kept, progress)
        for stage in stages:
            end += stage.steps
            step = None
            while done < end and not stopped:
                yield done
                inputs = stage.modules, shard_batch(next(batches), mesh)
                step = step or _compiled(stage.step, inputs, state)
                done += 1
                profiler.before(done)
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    state, metrics = step(inputs, state)
                profiler.after(done, metrics)
                reader.push(done, stage.name, metrics, inputs[1].shape[0])
                stopped = hooks.due(done)
                if stopped or done == total or (checkpoint_every and done % checkpoint_every == 0):
                    reader.flush()
                    _check_finite(state, done, stage.name, kept)
                    _check_thresholds(state, inputs, done, reader.l0, kept)
                    hooks.save(state)
        reader.flush()
    if done == total and reader.l0 is not None:
        for note in filter(None, (part.unmet(reader.l0) for part in state.sae.sparsifiers)):
            logger.warning(f"{label}: {note}")
    return state


run_stages = drained(updates)


@runtime_checkable
class _Jitted(Protocol):
    """What `eqx.filter_jit` returns."""

    def lower(self, *arguments: Any) -> Any:
        """Lowers it for these arguments."""


def _compiled(step: Step, inputs: tuple[StageModules, jax.Array], state: TrainState) -> Step:
    """The step compiled for these arguments.

    `eqx.filter_jit` blocks on the device after every call, in case the program raised an error; a step compiled ahead
    of time does not.
    """
    return step.lower(inputs, state).compile() if isinstance(step, _Jitted) else step


@jax.jit
def _all_finite(leaves: list[Array]) -> Bool[Array, ""]:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()


def _check_finite(state: TrainState, step: int, stage: str, kept: str) -> None:
    """A gradient may be NaN where the loss is not; such a state must not replace a good checkpoint."""
    parameters = jax.tree.leaves(eqx.filter(state.sae, eqx.is_inexact_array))
    if not jax.device_get(_all_finite(parameters)):
        raise DivergedError(
            f"a parameter is not finite after step {step} (stage '{stage}'), though the loss was; lower the learning "
            f"rate, or look for a term whose gradient is infinite{kept}",
            step,
        )


@eqx.filter_jit
def _distance(modules: StageModules, batch: Array) -> Float[Array, ""]:
    """The root mean squared distance of the inputs of the SAE from their mean."""
    x, _ = modules.normalizer(batch.astype(jnp.float32))
    return jnp.sqrt(jnp.mean(jnp.sum((x - jnp.mean(x, axis=0)) ** 2, axis=-1)))


def _check_thresholds(
    state: TrainState, inputs: tuple[StageModules, Array], step: int, l0: float | None, kept: str
) -> None:
    """A threshold that has collapsed selects every candidate; such a run must not go on."""
    if l0 is None:
        return
    distance: Callable[[], float] = lambda: float(jax.device_get(_distance(*inputs)))  # noqa: E731
    for part, running in zip(state.sae.sparsifiers, state.usage.thresholds, strict=True):
        threshold = float(jax.device_get(part.corrected(running, step)))
        if (note := part.starved(threshold, l0, step, distance)) is not None:
            raise UserError(f"{note}{kept}")


class _Reader:
    """Holds the newest metrics on the device and brings the previous ones to the host."""

    def __init__(self, log: Log, every: int, total: int, on_step: Callable[[], None], kept: str, progress: Progress):
        self._log, self._every, self._total, self._kept = log, every, total, kept
        self._on_step, self._progress = on_step, progress
        self._pending: tuple[int, str, Metrics, int] | None = None
        self.l0: float | None = None  # of the newest row

    def push(self, step: int, stage: str, metrics: Metrics, tokens: int) -> None:
        self.flush()
        self._pending = (step, stage, metrics, tokens)

    def flush(self) -> None:
        if self._pending is None:
            return
        step, stage, metrics, tokens = self._pending
        self._pending = None
        if not math.isfinite(jax.device_get(metrics["loss"])):
            terms = ", ".join(f"{k} {float(v):.4g}" for k, v in jax.device_get(metrics).items())
            raise DivergedError(
                f"the loss is not finite at step {step} (stage '{stage}'): {terms}; lower the learning rate or the "
                f"weights, or look at the data{self._kept}",
                step,
            )
        self._on_step()
        if step % self._every == 0 or step in (1, self._total):
            row = {name: float(value) for name, value in jax.device_get(metrics).items()}
            row = {k: v for k, v in row.items() if k not in UNDEFINED or math.isfinite(v)}
            self._log.write(step, stage, row, tokens)
            self.l0 = row.get("l0")
            shown = {"ev": "explained_variance", "l0": "l0"}
            self._progress.show(**{name: row[key] for name, key in shown.items() if key in row})
        self._progress.update(tokens=tokens)
