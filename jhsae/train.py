"""``jhsae train``: one loop for every SAE, from an activation store to a run folder.

The run folder holds config.yaml, run.json (commit, versions), metrics.jsonl, timing.jsonl, checkpoints/ and, when it
is finished, sae/. Running the same config again resumes it exactly or, when finished, leaves it alone.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from grain import DatasetIterator
from jaxtyping import Array, Key

from jhsae import config as cfg
from jhsae.checkpoint import Checkpoints, save_sae
from jhsae.data import AbstractNormalizer, Store, make_loader
from jhsae.errors import UserError
from jhsae.leaf import matching
from jhsae.logs import RunLog
from jhsae.loop import Phase, run_phases
from jhsae.losses import Objective
from jhsae.mesh import check_batch, make_mesh, shard_state
from jhsae.run_config import Stage, Train
from jhsae.sae import AbstractSAE
from jhsae.schedule import AbstractSchedule, as_schedule
from jhsae.step import Parts, TrainState, make_step
from jhsae.teacher import Teacher
from jhsae.usage import Context


def run(config: Train) -> Path:
    """Trains, or resumes, and returns the run folder. Raises `UserError` before any compute for bad input."""
    folder = Path(config.out)
    claim(folder, config)
    if (folder / "sae" / "sae.json").exists():
        print(f"{folder} is finished; nothing to do")
        return folder
    store = Store.open(config.data.store)
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch, mesh)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    shapes = eqx.filter_eval_shape(build_sae, config, init_key)
    _check_sizes(config, shapes, store)
    _check_teacher(config, store)
    normalizer = cfg.build(config.data.normalize).fit(store)
    direction = cfg.build(config.optimizer)
    phases = [_phase(config, stage, shapes, normalizer, direction, mesh) for stage in config.stages]
    for phase in phases:
        eqx.filter_eval_shape(_trial, phase.parts.objective, shapes)
    loader = _loader(config, store)
    about = _begin(folder, config, store)
    state = shard_state(TrainState.init(build_sae(config, init_key), direction, train_key), mesh)
    with Checkpoints(folder / "checkpoints", config.keep) as checkpoints:
        if (latest := checkpoints.latest()) is not None:
            state, position = checkpoints.restore(state, latest)
            loader.set_state(position)
        state = run_phases(
            state,
            phases,
            loader,
            mesh,
            RunLog(folder, tuple(config.loggers), int(state.step), cfg.to_dict(config)),
            config.log_every,
            config.checkpoint_every,
            save=lambda state: checkpoints.save(state, loader.get_state()),
            label=folder.name,
        )
    about |= {"reads": {"model": store.manifest.model, "layer": store.manifest.layer}}
    settled = state.sae.settled(state.usage)
    save_sae(folder / "sae", settled, config.sae, config.data.normalize, normalizer, about)
    return folder


def _trial(objective: Objective, sae: AbstractSAE) -> Any:
    """One evaluation of the objective, for its shapes alone: a term that does not fit the SAE raises `UserError`."""
    forward = sae.forward(jnp.zeros((1, sae.embed)), Context(jax.random.key(0)))
    return objective(sae, forward, 0)


def _loader(config: Train, store: Store) -> DatasetIterator:
    hosts = jax.process_count()
    return make_loader(store, config.data.batch // hosts, config.data.seed, host=jax.process_index(), hosts=hosts)


def _begin(folder: Path, config: Train, store: Store) -> dict[str, Any]:
    """Writes config.yaml and run.json, or checks that a run to be resumed began with this very store."""
    files = json.dumps(store.manifest.files, sort_keys=True)
    identity = {"path": config.data.store, "sha256": sha256(files.encode()).hexdigest()}
    about = {"name": folder.name, "config_hash": cfg.config_hash(config), **cfg.provenance(), "store": identity}
    path = folder / "run.json"
    if path.exists() and (before := json.loads(path.read_text()))["store"]["sha256"] != identity["sha256"]:
        raise UserError(
            f"the store {config.data.store} has changed since {folder} began ({before['store']['sha256'][:12]} then, "
            f"{identity['sha256'][:12]} now); bring the old store back, or write another out=..."
        )
    folder.mkdir(parents=True, exist_ok=True)
    cfg.write(config, folder / "config.yaml")
    path.write_text(json.dumps(about, indent=2) + "\n")
    return about


def build_sae(config: Train, key: Key[Array, ""]) -> AbstractSAE:
    """The SAE of a config with its initialisers applied."""
    sae = cfg.build(config.sae, key=key)
    for i, slot in enumerate(config.init):
        sae = cfg.build(slot)(sae, jax.random.fold_in(key, i + 1))
    return sae


def claim(folder: Path, config: Train) -> None:
    """Raises `UserError` when `folder` holds a run of another config, or something that is not a run."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} exists and is not a run folder (no config.yaml in it); write another out=...")
    there = cfg.load(Train, folder / "config.yaml")
    if cfg.config_hash(there) != cfg.config_hash(config):
        found = cfg.diff(there, config)
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(f"{folder} holds a run of another config ({'; '.join(found[:4])}{more}); write another out=...")


def _phase(
    config: Train, stage: Stage, sae: AbstractSAE, normalizer: AbstractNormalizer, direction: Any, mesh: Any
) -> Phase:
    terms = {name: cfg.build(slot) for name, slot in config.objective.items()}
    parts = Parts(
        Objective(terms, _weights(config.weights | stage.weights)),
        _schedule(stage.learning_rate),
        cfg.build(config.constraint),
        normalizer,
        cfg.build(config.revival),
    )
    frozen = matching(sae, stage.freeze) if stage.freeze else None
    windows = (_dead_window(config), config.sampling_window)
    step = make_step(direction, frozen, stage.clip, *windows, mesh, config.precision)
    return Phase(stage.name, stage.steps, step, parts)


def _dead_window(config: Train) -> int:
    return config.dead_window if config.dead_tokens is None else -(-config.dead_tokens // config.data.batch)


def _schedule(value: Any) -> AbstractSchedule:
    return cfg.build(value) if isinstance(value, dict) else as_schedule(value)


def _weights(values: Mapping[str, Any]) -> dict[str, AbstractSchedule]:
    return {name: _schedule(value) for name, value in values.items()}


def _check_sizes(config: Train, sae: AbstractSAE, store: Store) -> None:
    manifest = store.manifest
    if sae.embed != manifest.embed:
        raise UserError(
            f"sae.embed is {sae.embed}, but the store {config.data.store} holds vectors of {manifest.embed} "
            f"({manifest.model}, layer {manifest.layer}); write sae.embed={manifest.embed}"
        )
    if config.data.batch > manifest.rows:
        raise UserError(
            f"data.batch is {config.data.batch}, but the store {config.data.store} has {manifest.rows} rows; "
            f"write data.batch of at most {manifest.rows}"
        )


def _check_teacher(config: Train, store: Store) -> None:
    if config.teacher is None:
        return
    taught = Teacher.load(config.teacher).provenance["model"]
    if taught != store.manifest.model:
        raise UserError(
            f"the teacher {config.teacher} was made from {taught}, but the store {config.data.store} from "
            f"{store.manifest.model}; make a teacher from the same model (jhsae teach ... lm.path=...)"
        )
