"""``jhsae train``: one loop for every SAE, from an activation store to a run folder.

The run folder holds config.yaml, run.json (commit, versions), metrics.jsonl, timing.jsonl, checkpoints/ and, when it
is finished, sae/. Running the same config again resumes it exactly or, when finished, leaves it alone. With several
processes each reads its share of every batch and the main one writes; the folder must be one that all of them see.
"""

import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from grain import DatasetIterator
from jax.sharding import Mesh

from jhsae import config as cfg
from jhsae.data import AbstractNormalizer, Batches, ModelName, Store, make_loader, same_model
from jhsae.data.source import AbstractBatches, AbstractSource
from jhsae.errors import UserError
from jhsae.files.folders import Folder, open_folder
from jhsae.files.lock import owned
from jhsae.parallel.distributed import barrier, is_main, share_of
from jhsae.parallel.memory import check_state
from jhsae.parallel.mesh import check_batch, make_mesh
from jhsae.parallel.preemption import StopRequest
from jhsae.parallel.watchdog import Watchdog
from jhsae.sae import AbstractSAE
from jhsae.teacher import Teacher
from jhsae.training.checkpoint import Checkpoints, save_sae
from jhsae.training.checks import check_run
from jhsae.training.config import Train
from jhsae.training.logs import NoLog, RunLog, check_sinks, open_sinks
from jhsae.training.loop import DivergedError, Stage, run_stages
from jhsae.training.recipe import Recipe, build_sae
from jhsae.training.run_folder import check_owner as check_owner
from jhsae.training.run_folder import finished, write_metadata
from jhsae.training.sharding import abstract_state, init_sharded, replicate
from jhsae.training.step import TrainState

EXPORT_SECONDS = 3600


class Checked(NamedTuple):
    """What `checked` has built; `notes` are sentences about settings that do less than they seem to."""

    mesh: Mesh
    store: Store | AbstractSource
    normalizer: AbstractNormalizer
    recipe: Recipe
    notes: list[str]
    stages: list[Stage]


def run(config: Train) -> Folder:
    """Trains, or resumes, and returns the run folder. Raises `UserError` before any compute for bad input.

    Asked to stop by SIGTERM or Ctrl-C, it saves and raises `SystemExit` with 128 + the signal's number.
    """
    with Watchdog() as peers:
        return _run(config, peers)


def _run(config: Train, peers: Watchdog) -> Folder:
    folder = open_folder(config.out)
    check_owner(folder, config)
    with owned(folder, "train") if is_main() and not finished(folder) else nullcontext():
        check_owner(folder, config)  # again: what was there may have been somebody's who has just ended
        if finished(folder):
            _say(f"{folder} is finished; nothing to do")
            return folder
        return _finish(config, folder, peers)


def _finish(config: Train, folder: Folder, peers: Watchdog) -> Folder:
    """Trains what is not done yet."""
    mesh, store, normalizer, what, notes, stages = checked(config)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    stages = [replace(stage, modules=replicate(stage.modules, mesh)) for stage in stages]
    loader = _loader(config, store, mesh)
    check_sinks(config.loggers if is_main() else [])

    def start() -> TrainState:
        return TrainState.init(build_sae(config, init_key), what.optimizer, train_key)

    check_state(abstract_state(start, mesh), mesh)
    about = write_metadata(folder, config, store, notes)
    for note in notes:
        _say(f"{folder}: {note}", note=True)
    sinks = open_sinks(folder, config.loggers, cfg.to_dict(config)) if is_main() else []

    with StopRequest() as stop, Checkpoints(folder / "checkpoints", config.max_to_keep) as checkpoints:
        if (resumed := checkpoints.resume(abstract_state(start, mesh))) is not None:
            state, position = resumed
            loader.set_state(position)
        else:
            state = init_sharded(start, mesh)
        log = RunLog(folder, sinks, int(jax.device_get(state.step))) if is_main() else NoLog()

        def save(state: TrainState) -> None:
            log.flush()
            checkpoints.save(state, loader.get_state())

        try:
            state = run_stages(
                state,
                stages,
                loader,
                mesh,
                log,
                config.log_every,
                config.checkpoint_every,
                save,
                folder.name,
                stop.due,
                peers.progress,
            )
        except DivergedError as error:
            raise DivergedError(f"{error}{_bad_rows(config, store, error.step)}", error.step) from error
    if stop.signal is not None and (step := int(jax.device_get(state.step))) < sum(s.steps for s in config.stages):
        _say(f"{folder}: stopped by {stop.signal.name} after step {step}, which is saved; the same command continues")
        raise SystemExit(128 + stop.signal)
    about |= {"reads": ModelName.recorded(store.manifest).reads(store.manifest.layer)}
    for_inference = state.sae.for_inference(state.sae.corrected(state.usage, int(jax.device_get(state.step))))
    save_sae(folder / "sae", for_inference, config.sae, config.data.normalize, normalizer, about)
    barrier("sae written", EXPORT_SECONDS)  # until then the main process serves the others
    return folder


def checked(config: Train) -> Checked:
    """Everything that a run is made of, built and found to fit together. `UserError` for whatever does not.

    Shapes alone are computed, and nothing is written.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch, mesh)
    store = _source(config, mesh)
    init_key, _ = jax.random.split(jax.random.key(config.seed))
    shapes = eqx.filter_eval_shape(build_sae, config, init_key)
    _check_sizes(config, shapes, store)
    _check_teacher(config, store)
    normalizer = cfg.build(config.data.normalize, AbstractNormalizer).fit(store)
    what = Recipe.of(config, normalizer)
    notes = check_run(what, shapes, config.data.batch)
    stages = [what.stage(stage, shapes, mesh) for stage in config.stages]
    return Checked(mesh, store, normalizer, what, notes, stages)


def _say(sentence: str, note: bool = False) -> None:
    """Prints, on standard error where it is a `note`. The main process alone does."""
    if is_main():
        print(sentence, file=sys.stderr if note else sys.stdout)


def _bad_rows(config: Train, store: Store | AbstractSource, step: int) -> str:
    """Which rows of the store that step `step` was made of are not numbers, as the end of a sentence."""
    if isinstance(store, AbstractSource):
        return ""
    batches, at = Batches(store, config.data.batch, config.data.seed, streams=config.data.streams), step - 1
    bad = batches.places(at)[~np.isfinite(batches[at]).all(axis=1)].tolist()
    named = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    return f"; rows {named} of {store.path}, which this step read, are not finite: harvest them again" if bad else ""


def _source(config: Train, mesh: Mesh) -> Store | AbstractSource:
    """The store, or the language model that stands in for one."""
    if config.data.live is not None:
        return cfg.build(config.data.live, AbstractSource, mesh=mesh)
    assert config.data.store is not None  # one of the two is there
    return Store.open(config.data.store)


def _loader(config: Train, store: Store | AbstractSource, mesh: Mesh) -> DatasetIterator | AbstractBatches:
    share, data = share_of(mesh), config.data
    if isinstance(store, AbstractSource):
        return store.batches(data.batch, data.seed)
    if data.streams < share.count:
        _say(f"data.streams is {data.streams} for {share.count} readers: each reads more than its share of the store")
    return make_loader(store, data.batch, data.seed, share.index, share.count, data.streams)


def _check_sizes(config: Train, sae: AbstractSAE, store: Store | AbstractSource) -> None:
    manifest = store.manifest
    if sae.embed != manifest.embed:
        raise UserError(
            f"sae.embed is {sae.embed}, but the store {store.path} holds vectors of {manifest.embed} "
            f"({manifest.model}, layer {manifest.layer}); write sae.embed={manifest.embed}"
        )
    if config.data.batch > manifest.rows:
        raise UserError(
            f"data.batch is {config.data.batch}, but the store {store.path} has {manifest.rows} rows; "
            f"write data.batch of at most {manifest.rows}"
        )


def _check_teacher(config: Train, store: Store | AbstractSource) -> None:
    if config.teacher is None:
        return
    provenance = Teacher.load(config.teacher).provenance
    taught = ModelName(provenance["model"], provenance.get("model_sha256"))
    if not same_model(taught, ModelName.recorded(store.manifest), store.path):
        raise UserError(
            f"the teacher {config.teacher} was made from {taught.name}, but the store {store.path} from "
            f"{store.manifest.model}; make a teacher from the same model (jhsae teach ... lm.path=...)"
        )
