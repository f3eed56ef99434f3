"""The one training loop: stages of jitted steps over batches, metrics read one step late.

While the device computes step n + 1 the host reads the metrics of step n; every read is explicit (`jax.device_get`),
so that ``jax.transfer_guard`` finds one that is not. A loss that is not finite stops the run and
names the step.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool
from tqdm import tqdm

from jhsae.errors import DIVERGED
from jhsae.losses.base import UNDEFINED
from jhsae.parallel.distributed import is_main
from jhsae.parallel.mesh import shard_batch
from jhsae.training.step import Metrics, StageModules, TrainState


@runtime_checkable
class Log(Protocol):
    """Where a row of metrics goes."""

    def write(self, step: int, stage: str, metrics: dict[str, float], tokens_per_step: int) -> None:
        """One row of metrics after `step` updates."""


class DivergedError(RuntimeError):
    """The loss is not finite, or a parameter; `step` is the update after which that was seen."""

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


def run_stages(
    state: TrainState,
    stages: list[Stage],
    batches: Iterator[np.ndarray | Array],
    mesh: Mesh,
    log: Log,
    log_every: int = 10,
    checkpoint_every: int | None = None,
    save: Callable[[TrainState], None] = lambda state: None,
    label: str = "train",
    stop: Callable[[int], bool] = lambda step: False,
    moved: Callable[[], None] = lambda: None,
) -> TrainState:
    """Runs the updates that `state.step` has not done yet and returns the last state.

    `save` is called every `checkpoint_every` updates and after the last one, when every earlier row is logged. `stop`
    is asked after every update whether to save and return early; `moved` hears of every one that the device finished.
    The bar is drawn by the main process.
    """
    total = sum(stage.steps for stage in stages)
    done = int(jax.device_get(state.step))
    kept = "; the last checkpoint is intact" if checkpoint_every else ""
    reader = _Reader(log, log_every, total, moved, kept)
    silent = None if is_main() else True
    with tqdm(total=total, initial=done, desc=label, unit="step", dynamic_ncols=True, disable=silent) as bar:
        end, stopped = 0, False
        for stage in stages:
            end += stage.steps
            step = None
            while done < end and not stopped:
                inputs = stage.modules, shard_batch(next(batches), mesh)
                step = step or _compiled(stage.step, inputs, state)
                state, metrics = step(inputs, state)
                done += 1
                reader.push(done, stage.name, metrics, inputs[1].shape[0], bar)
                stopped = stop(done)
                if stopped or done == total or (checkpoint_every and done % checkpoint_every == 0):
                    reader.flush(bar)
                    _check_finite(state, done, stage.name, kept)
                    save(state)
        reader.flush(bar)
    return state


@runtime_checkable
class _Jitted(Protocol):
    """What `eqx.filter_jit` makes of a function."""

    def lower(self, *arguments: Any) -> Any:
        """Its program for these arguments."""


def _compiled(step: Step, inputs: tuple[StageModules, jax.Array], state: TrainState) -> Step:
    """The step compiled for these arguments.

    After every call `eqx.filter_jit` waits for the device, in case the program raised; what it compiles ahead of time
    does not.
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


class _Reader:
    """Holds the newest metrics on the device and brings the previous ones to the host."""

    def __init__(self, log: Log, every: int, total: int, moved: Callable[[], None], kept: str):
        self._log, self._every, self._total, self._moved, self._kept = log, every, total, moved, kept
        self._pending: tuple[int, str, Metrics, int] | None = None

    def push(self, step: int, stage: str, metrics: Metrics, tokens: int, bar: tqdm) -> None:
        self.flush(bar)
        self._pending = (step, stage, metrics, tokens)

    def flush(self, bar: tqdm) -> None:
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
        self._moved()
        if step % self._every == 0 or step in (1, self._total):
            row = {name: float(value) for name, value in jax.device_get(metrics).items()}
            row = {k: v for k, v in row.items() if k not in UNDEFINED or math.isfinite(v)}
            self._log.write(step, stage, row, tokens)
            explained = row.get("explained_variance", math.nan)
            bar.set_postfix(loss=f"{row['loss']:.4g}", EV=f"{explained:.3f}", L0=f"{row['l0']:.1f}")
        bar.update()
