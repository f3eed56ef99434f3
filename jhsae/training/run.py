"""Trains the run of a config: from an activation store to a run folder.

The run folder holds config.yaml, run.json (commit, versions), metrics.jsonl, timing.jsonl, checkpoints/ and, when it
is finished, sae/. Running the same config again resumes it exactly or, when finished, leaves it alone. With several
processes each reads its rows of every batch and process 0 writes; the folder must be visible to all of them.
"""

import logging
import signal
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
from grain import DatasetIterator
from jax.sharding import Mesh

from jhsae import config as cfg
from jhsae.data import AbstractNormalizer, ModelName, Store, make_loader
from jhsae.data.source import AbstractBatches, AbstractSource
from jhsae.files.folders import Folder, open_folder
from jhsae.files.lock import owned
from jhsae.parallel.distributed import barrier, is_main, share_of
from jhsae.parallel.memory import check_state
from jhsae.parallel.mesh import check_batch, make_mesh
from jhsae.parallel.preemption import StopRequest
from jhsae.parallel.progress import Progress
from jhsae.parallel.watchdog import Watchdog
from jhsae.training.checkpoint import Checkpoints, save_sae
from jhsae.training.checks import bad_rows, check_run, check_sizes, check_teacher
from jhsae.training.config import Train
from jhsae.training.logs import NoLog, RunLog, check_sinks, open_sinks
from jhsae.training.loop import DivergedError, Hooks, Stage, drained, updates
from jhsae.training.profile import StepProfiler
from jhsae.training.recipe import Recipe, build_sae
from jhsae.training.run_folder import check_owner, finished, write_metadata
from jhsae.training.sharding import abstract_state, init_sharded, replicate
from jhsae.training.step import TrainState
from jhsae.training.timing import TimedBatches

logger = logging.getLogger(__name__)
EXPORT_SECONDS = 3600
Loader: TypeAlias = DatasetIterator | AbstractBatches


class Prepared(NamedTuple):
    """What `prepare` has built; `notes` are sentences about settings that have no effect."""

    mesh: Mesh
    store: Store | AbstractSource
    recipe: Recipe
    stages: list[Stage]
    notes: list[str]


def train(config: Train) -> Folder:
    """Trains, or resumes, the run of a config.

    Args:
        config: What to train; ``config.out`` is the run folder.

    Returns:
        The run folder.

    Raises:
        UserError: Input that does not fit together; before any compute.
        DivergedError: The loss or a parameter is not finite.
        SystemExit: SIGTERM or Ctrl-C, after the state is saved; the code is 128 + the number of the signal.
    """
    with Watchdog() as watchdog:
        folder = open_folder(config.out)
        check_owner(folder, config)
        with owned(folder, "train") if is_main() and not finished(folder) else nullcontext():
            check_owner(folder, config)  # again: another process may have written to it until it released the lock
            if finished(folder):
                logger.info(f"{folder} is finished; nothing to do")
            else:
                _train(config, folder, watchdog)
        return folder


def prepare(config: Train, mesh: Mesh | None = None, store: Store | AbstractSource | None = None) -> Prepared:
    """Builds everything that a run needs but its arrays, and checks that it fits together. Writes nothing.

    Args:
        config: What is trained.
        mesh: The devices, where they are made already.
        store: What ``config.data`` names, where it is open already.

    Raises:
        UserError: Parts that do not fit each other, the store, the teacher or the devices.
    """
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    check_batch(config.data.batch, mesh)
    store = open_source(config, mesh) if store is None else store
    init_key, _ = jax.random.split(jax.random.key(config.seed))
    shapes = eqx.filter_eval_shape(build_sae, config, init_key)
    check_sizes(config, shapes, store)
    check_teacher(config, store)
    recipe = Recipe.of(config, cfg.build(config.data.normalize, AbstractNormalizer).fit(store))
    notes = check_run(recipe, shapes, config.data.batch)
    return Prepared(mesh, store, recipe, [recipe.stage(stage, shapes, mesh) for stage in config.stages], notes)


class Run:
    """A run that is prepared: `begin` writes its metadata, `updates` trains, `export` writes the trained SAE."""

    def __init__(self, config: Train, folder: Folder, prepared: Prepared, loader: Loader):
        """Writes nothing. `UserError`: a logger that is not installed."""
        self.config, self.folder, self.loader = config, folder, loader
        self.mesh, self.store, self.recipe, stages, self.notes = prepared
        self.stages = [replace(stage, modules=replicate(stage.modules, self.mesh)) for stage in stages]
        check_sinks(config.loggers if is_main() else [])

    def start(self) -> TrainState:
        """The state before the first update."""
        init_key, train_key = jax.random.split(jax.random.key(self.config.seed))
        return TrainState.init(build_sae(self.config, init_key), self.recipe.optimizer, train_key)

    def begin(self) -> None:
        """Writes config.yaml and run.json and opens the loggers."""
        self._about = write_metadata(self.folder, self.config, self.store, self.notes)
        for note in self.notes if is_main() else ():
            logger.warning(f"{self.folder}: {note}")
        self._sinks = open_sinks(self.folder, self.config.loggers, cfg.to_dict(self.config)) if is_main() else []

    def updates(
        self,
        due: Callable[[int], bool],
        on_step: Callable[[], None],
        shown: Callable[[str, int, int], Progress] = Progress,
        beside: int = 0,
    ) -> Generator[int, None, TrainState]:
        """The updates that are not done yet, as `jhsae.training.loop.updates`, from the newest checkpoint on.

        Args:
            due: As of `Hooks`.
            on_step: As of `Hooks`.
            shown: Makes the progress bar.
            beside: The number of other runs that take turns with this one.
        """
        config, folder, loader = self.config, self.folder, self.loader
        profiler = StepProfiler(folder / "profile", config.profile_steps) if is_main() else None
        with Checkpoints(folder / "checkpoints", config.max_to_keep) as checkpoints:
            state = _resumed(checkpoints, self.start, self.mesh, loader)
            done = int(jax.device_get(state.step))
            batches = TimedBatches(loader)
            waited = lambda: batches.seconds  # noqa: E731
            log = RunLog(folder, self._sinks, done, waited=waited, beside=beside) if is_main() else NoLog()
            logger.info(f"{folder}: {done:,} of {self.recipe.steps:,} steps are done")

            def save(state: TrainState) -> None:
                log.flush()
                checkpoints.save(state, loader.get_state())

            try:
                return (
                    yield from updates(
                        state,
                        self.stages,
                        batches,
                        self.mesh,
                        log,
                        log_every=config.log_every,
                        checkpoint_every=config.checkpoint_every,
                        label=folder.name,
                        profiler=profiler,
                        hooks=Hooks(save=save, due=due, on_step=on_step),
                        shown=shown,
                    )
                )
            except DivergedError as error:
                raise DivergedError(f"{error}{bad_rows(config, self.store, error.step)}", error.step) from error

    def is_complete(self, state: TrainState) -> bool:
        """Whether `state` is that after the last update."""
        return int(jax.device_get(state.step)) >= self.recipe.steps

    def export(self, state: TrainState) -> None:
        """Writes the trained SAE."""
        about = self._about | {"reads": ModelName.recorded(self.store.manifest).reads(self.store.manifest.layer)}
        for_inference = state.sae.for_inference(state.sae.corrected(state.usage, self.recipe.steps))
        slots = self.config.sae, self.config.data.normalize
        save_sae(self.folder / "sae", for_inference, *slots, self.recipe.normalizer, about)
        barrier(f"sae written {self.folder}", EXPORT_SECONDS)  # until then process 0 serves the others


def _train(config: Train, folder: Folder, watchdog: Watchdog) -> None:
    """The updates that are not done yet, then the export of the trained SAE."""
    prepared = prepare(config)
    run = Run(config, folder, prepared, open_loader(config, prepared.store, prepared.mesh))
    check_state(abstract_state(run.start, run.mesh), run.mesh)
    run.begin()
    with StopRequest() as stop:
        state = drained(run.updates)(stop.due, watchdog.progress)
    if not run.is_complete(state) and stop.signal is not None:
        logger.info(stopped(folder, stop.signal, int(jax.device_get(state.step))))
        raise SystemExit(128 + stop.signal)
    run.export(state)


def stopped(folder: Folder, signal: signal.Signals, step: int) -> str:
    """The sentence about a run that a signal has stopped after `step`."""
    return f"{folder}: stopped by {signal.name} after step {step}, which is saved; the same command continues"


def _resumed(checkpoints: Checkpoints, start: Callable[[], TrainState], mesh: Mesh, loader: Loader) -> TrainState:
    """The newest checkpoint, with the loader at its position, or the initial state where there is none."""
    resumed = checkpoints.resume(abstract_state(start, mesh))
    if resumed is None:
        return init_sharded(start, mesh)
    state, position = resumed
    loader.set_state(position)
    return state


def open_source(config: Train, mesh: Mesh) -> Store | AbstractSource:
    """The store, or the language model that stands in for one."""
    if config.data.live is not None:
        return cfg.build(config.data.live, AbstractSource, mesh=mesh)
    assert config.data.store is not None  # one of the two is there
    return Store.open(config.data.store)


def open_loader(config: Train, store: Store | AbstractSource, mesh: Mesh) -> Loader:
    """This process's rows of every batch."""
    share, data = share_of(mesh), config.data
    if isinstance(store, AbstractSource):
        return store.batches(data.batch, data.seed)
    if data.streams < share.count:
        logger.info(
            f"data.streams is {data.streams} for {share.count} processes: each reads more rows than it trains on"
        )
    return make_loader(store, data.batch, data.seed, share.index, share.count, data.streams)
