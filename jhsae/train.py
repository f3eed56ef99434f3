"""``jhsae train``: one loop for every SAE, from an activation store to a run folder.

The run folder holds config.yaml, run.json (commit, versions), metrics.jsonl, timing.jsonl, checkpoints/ and, when it
is finished, sae/. Running the same config again resumes it exactly or, when finished, leaves it alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Key

from jhsae import config as cfg
from jhsae.checkpoint import Checkpoints, save_sae
from jhsae.config import Slot, Supplied
from jhsae.constraint import AbstractConstraint, ProjectAndRenormalize
from jhsae.data import AbstractNormalizer, Identity, Store, make_loader
from jhsae.errors import UserError
from jhsae.leaf import matching
from jhsae.logs import NoLog, RunLog, Sink
from jhsae.loop import Phase, run_phases
from jhsae.losses import AbstractTerm, Objective, ParentsOnly, SquaredError
from jhsae.mesh import MeshShape, check_batch, make_mesh, shard_state
from jhsae.optimizer import adam
from jhsae.sae import AbstractSAE, HierarchicalSAE
from jhsae.schedule import AbstractSchedule, WarmupCosine, as_schedule
from jhsae.step import Parts, TrainState, make_step


@dataclass(frozen=True)
class Data:
    """What is trained on."""

    store: Annotated[str, "folder of an activation store (jhsae harvest)"]
    batch: Annotated[int, "tokens per step, over all devices"]
    normalize: Annotated[Slot, "input normaliser"] = field(
        default_factory=lambda: {"_target_": "jhsae.data.Identity"}
    )
    seed: Annotated[int, "order of the rows"] = 0


@dataclass(frozen=True)
class Stage:
    """A part of the run with its own learning rate, frozen parameters and weights."""

    name: Annotated[str, "appears in metrics.jsonl"]
    steps: Annotated[int, "number of updates"]
    learning_rate: Annotated[Slot | float, "a number or a schedule of the step of the whole run"]
    freeze: Annotated[list[str], "paths or globs of parameters that stay"] = field(default_factory=list)
    weights: Annotated[dict[str, Slot | float], "term weights that differ in this stage"] = field(
        default_factory=dict
    )
    clip: Annotated[float | None, "bound on the global gradient norm; null for none"] = 1.0


@dataclass(frozen=True)
class Train:
    """The config of one run: every row of the README's table of slots is a key here."""

    UNHASHED: ClassVar[frozenset[str]] = frozenset(
        {"out", "loggers", "log_every", "checkpoint_every", "keep"}
    )

    out: Annotated[str, "the run folder"]
    data: Annotated[Data, "store, batch, normaliser"]
    sae: Annotated[Slot, "the SAE and the parts in its slots", Supplied("key")]
    objective: Annotated[dict[str, Slot], "loss terms by name"]
    stages: Annotated[list[Stage], "one or more stages, run in order"]
    weights: Annotated[dict[str, Slot | float], "weight (number or schedule) per term; 1 if absent"] = field(
        default_factory=dict
    )
    init: Annotated[list[Slot], "initialisers, applied in order"] = field(default_factory=list)
    metric: Annotated[Slot, "refer to it as ${metric}"] = field(
        default_factory=lambda: {"_target_": "jhsae.metric.Euclidean"}
    )
    constraint: Annotated[Slot, "how decoder rows keep unit norm"] = field(
        default_factory=lambda: {"_target_": "jhsae.constraint.ProjectAndRenormalize"}
    )
    optimizer: Annotated[Slot, "the direction of the update"] = field(
        default_factory=lambda: {"_target_": "jhsae.optimizer.adam"}
    )
    seed: Annotated[int, "initial parameters and routing noise"] = 0
    mesh: Annotated[MeshShape, "devices for data and experts"] = field(default_factory=MeshShape)
    dead_window: Annotated[int, "a feature is dead after this many steps without firing"] = 1000
    log_every: Annotated[int, "steps between rows of metrics.jsonl"] = 10
    checkpoint_every: Annotated[int, "steps between checkpoints"] = 1000
    keep: Annotated[int | None, "newest checkpoints to keep; null keeps all"] = 2
    loggers: Annotated[list[Sink], "tensorboard, wandb"] = field(default_factory=list)


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
    sae = build_sae(config, init_key)
    _check_sizes(config, sae, store)
    normalizer = cfg.build(config.data.normalize).fit(store.manifest)
    direction = cfg.build(config.optimizer)
    phases = [_phase(config, stage, sae, normalizer, direction, mesh) for stage in config.stages]
    state = shard_state(TrainState.init(sae, direction, train_key), mesh)
    folder.mkdir(parents=True, exist_ok=True)
    cfg.write(config, folder / "config.yaml")
    about = {"config_hash": cfg.config_hash(config), **cfg.provenance(), "store": config.data.store}
    (folder / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    loader = make_loader(
        store,
        config.data.batch // jax.process_count(),
        config.data.seed,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    with Checkpoints(folder / "checkpoints", config.keep) as checkpoints:
        if (latest := checkpoints.latest()) is not None:
            state, position = checkpoints.restore(state, latest)
            loader.set_state(position)
        log = RunLog(folder, tuple(config.loggers), int(state.step), cfg.to_dict(config))
        state = run_phases(
            state,
            phases,
            loader,
            mesh,
            log,
            config.log_every,
            config.checkpoint_every,
            save=lambda state: checkpoints.save(state, loader.get_state()),
            label=folder.name,
        )
    statistics = {"manifest": store.manifest.statistics()}
    save_sae(folder / "sae", state.sae, config.sae, config.data.normalize, about | statistics)
    return folder


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
        raise UserError(
            f"{folder} exists and is not a run folder (no config.yaml in it); write another out=..."
        )
    there = cfg.load(Train, folder / "config.yaml")
    if cfg.config_hash(there) != cfg.config_hash(config):
        differences = "; ".join(cfg.diff(there, config))
        raise UserError(f"{folder} holds a run of another config ({differences}); write another out=...")


def fit(
    sae: AbstractSAE,
    x: Float[np.ndarray, "rows embed"] | Float[Array, "rows embed"],
    *,
    steps: int,
    batch: int = 1024,
    learning_rate: AbstractSchedule | float | None = None,
    objective: Objective | None = None,
    constraint: AbstractConstraint | None = None,
    normalizer: AbstractNormalizer | None = None,
    clip: float | None = 1.0,
    seed: int = 0,
) -> tuple[AbstractSAE, list[dict[str, Any]]]:
    """Trains `sae` on the rows of an array with the same loop, for scripts; returns it and the logged metrics.

    Defaults: squared error (plus 0.1 parents-only for a hierarchical SAE), warmup-cosine to 1e-3, unit decoder rows
    by projection and renormalisation.
    """
    rows = np.asarray(x)
    if rows.ndim != 2 or rows.shape[1] != sae.embed:
        raise UserError(f"x has shape {rows.shape}, expected (rows, {sae.embed}) to fit this SAE")
    batch = min(batch, len(rows))
    if learning_rate is None:
        learning_rate = WarmupCosine(1e-3, warmup=steps // 20, steps=steps)
    parts = Parts(
        objective or default_objective(sae),
        as_schedule(learning_rate),
        constraint or ProjectAndRenormalize(),
        normalizer or Identity(),
    )
    direction = adam()
    mesh = make_mesh(MeshShape(data=1), devices=1)
    log = NoLog()
    phase = Phase("fit", steps, make_step(direction, clip=clip), parts)
    state = TrainState.init(sae, direction, jax.random.key(seed))
    state = run_phases(
        state, [phase], _shuffled(rows, batch, seed), mesh, log, log_every=max(1, steps // 20), label="fit"
    )
    return state.sae, log.rows


def default_objective(sae: AbstractSAE) -> Objective:
    """Squared error, and parents-only reconstruction at 0.1 for a hierarchical SAE."""
    terms: dict[str, AbstractTerm] = {"reconstruction": SquaredError()}
    if isinstance(sae, HierarchicalSAE):
        return Objective(terms | {"parents_only": ParentsOnly()}, {"parents_only": 0.1})
    return Objective(terms)


def _shuffled(rows: np.ndarray, batch: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - batch + 1, batch):
            yield rows[order[start : start + batch]]


def _phase(
    config: Train, stage: Stage, sae: AbstractSAE, normalizer: AbstractNormalizer, direction: Any, mesh: Any
) -> Phase:
    terms = {name: cfg.build(slot) for name, slot in config.objective.items()}
    parts = Parts(
        Objective(terms, _weights(config.weights | stage.weights)),
        _schedule(stage.learning_rate),
        cfg.build(config.constraint),
        normalizer,
    )
    frozen = matching(eqx.filter(sae, eqx.is_inexact_array), stage.freeze) if stage.freeze else None
    place = (lambda state: shard_state(state, mesh)) if mesh.size > 1 else (lambda state: state)
    step = make_step(direction, frozen, stage.clip, config.dead_window, place)
    return Phase(stage.name, stage.steps, step, parts)


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
