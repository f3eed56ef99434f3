"""Trains the run of a config: from an activation store to a run folder.

The run folder holds config.yaml, run.json (commit, versions), metrics.jsonl, timing.jsonl, checkpoints/ and, when it
is finished, sae/. Running the same config again resumes it exactly or, when finished, leaves it alone. With several
processes each reads its rows of every batch and process 0 writes; the folder must be visible to all of them.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

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
from jhsae.parallel.watchdog import Watchdog
from jhsae.training.checkpoint import Checkpoints, save_sae
from jhsae.training.checks import bad_rows, check_run, check_sizes, check_teacher
from jhsae.training.config import Data, Train
from jhsae.training.logs import NoLog, RunLog, check_sinks, open_sinks
from jhsae.training.loop import DivergedError, Hooks, Stage, run_stages
from jhsae.training.more import extended, reopen
from jhsae.training.profile import StepProfiler
from jhsae.training.recipe import Recipe, build_sae
from jhsae.training.run_folder import check_owner, finished, write_metadata
from jhsae.training.sharding import abstract_state, init_sharded, replicate
from jhsae.training.step import TrainState
from jhsae.training.timing import TimedBatches

logger = logging.getLogger(__name__)
EXPORT_SECONDS = 3600


class Prepared(NamedTuple):
    """What `prepare` has built; `notes` are sentences about settings that have no effect, `start` makes the state."""

    mesh: Mesh
    store: Store | AbstractSource
    recipe: Recipe
    stages: list[Stage]
    notes: list[str]
    start: Callable[[], TrainState]


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
    base, config = config, extended(config)
    if config is not base:
        folder = open_folder(config.out)
        with Watchdog(), owned(folder, "train") if is_main() else nullcontext():
            if is_main():
                reopen(folder, base, config)
            barrier("reopened", EXPORT_SECONDS)
    return train_in_folder(config, lambda: prepare(config))


def train_in_folder(config: Train, prepared: Callable[[], Prepared]) -> Folder:
    """Trains, or resumes, what `prepared` builds, in the run folder of its config; errors are those of `train`."""
    with Watchdog() as watchdog:
        folder = open_folder(config.out)
        check_owner(folder, config)
        with owned(folder, "train") if is_main() and not finished(folder) else nullcontext():
            check_owner(folder, config)  # again: another process may have written to it until it released the lock
            if finished(folder):
                logger.info(f"{folder} is finished; nothing to do")
            else:
                _train(config, folder, watchdog, prepared())
        return folder


def prepare(config: Train) -> Prepared:
    """Builds everything that a run needs but its arrays, and checks that it fits together. Writes nothing.

    Raises:
        UserError: Parts that do not fit each other, the store, the teacher or the devices.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch, mesh)
    store = _source(config, mesh)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    shapes = eqx.filter_eval_shape(build_sae, config, init_key)
    check_sizes(config, shapes, store)
    check_teacher(config, store)
    recipe = Recipe.of(config, cfg.build(config.data.normalize, AbstractNormalizer).fit(store))
    notes = check_run(recipe, shapes, config.data.batch)

    def start() -> TrainState:
        return TrainState.init(build_sae(config, init_key), recipe.optimizer, train_key)

    return Prepared(mesh, store, recipe, [recipe.stage(stage, shapes, mesh) for stage in config.stages], notes, start)


def _train(config: Train, folder: Folder, watchdog: Watchdog, prepared: Prepared) -> None:
    """The updates that are not done yet, then the export of the trained SAE."""
    mesh, store, recipe, stages, notes, start = prepared
    stages = [replace(stage, modules=replicate(stage.modules, mesh)) for stage in stages]
    loader = batches_of(config.data, store, mesh)
    check_sinks(config.loggers if is_main() else [])
    check_state(abstract_state(start, mesh), mesh)
    about = write_metadata(folder, config, store, notes)
    for note in notes if is_main() else ():
        logger.warning(f"{folder}: {note}")
    sinks = open_sinks(folder, config.loggers, cfg.to_dict(config)) if is_main() else []
    profiler = StepProfiler(folder / "profile", config.profile_steps) if is_main() else None

    with StopRequest() as stop, Checkpoints(folder / "checkpoints", config.max_to_keep) as checkpoints:
        state = _resumed(checkpoints, start, mesh, loader)
        done = int(jax.device_get(state.step))
        batches = TimedBatches(loader)
        log = RunLog(folder, sinks, done, waited=lambda: batches.seconds) if is_main() else NoLog()
        logger.info(f"{folder}: {done:,} of {recipe.steps:,} steps are done")

        def save(state: TrainState) -> None:
            log.flush()
            checkpoints.save(state, loader.get_state())

        hooks = Hooks(save=save, due=stop.due, on_step=watchdog.progress)
        try:
            state = run_stages(
                state,
                stages,
                batches,
                mesh,
                log,
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every,
                label=folder.name,
                profiler=profiler,
                hooks=hooks,
            )
        except DivergedError as error:
            raise DivergedError(f"{error}{bad_rows(config, store, error.step)}", error.step) from error
    _check_complete(folder, stop, state, recipe.steps)
    about |= {"reads": ModelName.recorded(store.manifest).reads(store.manifest.layer)}
    for_inference = state.sae.for_inference(state.sae.corrected(state.usage, recipe.steps))
    save_sae(folder / "sae", for_inference, config.sae, config.data.normalize, recipe.normalizer, about)
    barrier("sae written", EXPORT_SECONDS)  # until then process 0 serves the others


def _resumed(
    checkpoints: Checkpoints, start: Callable[[], TrainState], mesh: Mesh, loader: DatasetIterator | AbstractBatches
) -> TrainState:
    """The newest checkpoint, with the loader at its position, or the initial state where there is none."""
    resumed = checkpoints.resume(abstract_state(start, mesh))
    if resumed is None:
        return init_sharded(start, mesh)
    state, position = resumed
    loader.set_state(position)
    return state


def _check_complete(folder: Folder, stop: StopRequest, state: TrainState, steps: int) -> None:
    """Raises `SystemExit` where a signal stopped the run before its last step."""
    if stop.signal is not None and (step := int(jax.device_get(state.step))) < steps:
        logger.info(
            f"{folder}: stopped by {stop.signal.name} after step {step}, which is saved; the same command continues"
        )
        raise SystemExit(128 + stop.signal)


def _source(config: Train, mesh: Mesh) -> Store | AbstractSource:
    """The store, or the language model that stands in for one."""
    if config.data.live is not None:
        return cfg.build(config.data.live, AbstractSource, mesh=mesh)
    assert config.data.store is not None  # one of the two is there
    return Store.open(config.data.store)


def batches_of(data: Data, store: Store | AbstractSource, mesh: Mesh) -> DatasetIterator | AbstractBatches:
    """This process's rows of every batch."""
    share = share_of(mesh)
    if isinstance(store, AbstractSource):
        return store.batches(data.batch, data.seed)
    if data.streams < share.count:
        logger.info(
            f"data.streams is {data.streams} for {share.count} processes: each reads more rows than it trains on"
        )
    return make_loader(store, data.batch, data.seed, share.index, share.count, data.streams)
