"""`fit` trains an SAE on the rows of an array or a store, for scripts and notebooks, as ``jhsae train`` does."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from os import PathLike
from typing import Annotated, Any, TypeVar, cast

import jax
import numpy as np
import optax
from annotated_types import Ge, MinLen
from jaxtyping import Array, Float

from jhsae import config as cfg
from jhsae.constraint import AbstractConstraint, ProjectAndRenormalize
from jhsae.data import AbstractNormalizer, Identity, Store
from jhsae.errors import UserError
from jhsae.files.bounded import read_lines
from jhsae.files.folders import open_folder
from jhsae.losses import AbstractTerm, Objective, ParentsOnly, Prefix, SquaredError
from jhsae.ops import Precision
from jhsae.ops.inputs import host_rows
from jhsae.parallel.mesh import MeshShape, check_batch, make_mesh
from jhsae.ranges import Count, Positive, Seed, Words, ranged
from jhsae.resampling import AbstractResampling, NoResampling
from jhsae.sae import AbstractSAE
from jhsae.schedule import AbstractSchedule, WarmupCosine
from jhsae.training.checkpoint import load_sae
from jhsae.training.checks import check_run, check_width
from jhsae.training.config import OPTIMIZER, Data, StageConfig, Train
from jhsae.training.given import GivenRows, described
from jhsae.training.logs import NoLog, Sink
from jhsae.training.loop import run_stages
from jhsae.training.recipe import Recipe, dead_steps
from jhsae.training.run import Prepared, batches_of, train_in_folder
from jhsae.training.sharding import shard_state
from jhsae.training.step import TrainState

Schedule = Annotated[AbstractSchedule | float, Ge(0)]
Terms = Annotated[Mapping[str, AbstractTerm], MinLen(1)]
ADAM = {"_target_": "jhsae.optimizer.adam"}
DEAD_WINDOW, SAMPLING_WINDOW = 1000, 2000  # those of `jhsae train`


F = TypeVar("F", bound=Callable[..., Any])


def _renamed(function: F) -> F:
    """Takes the arguments that were renamed like keys of ``jhsae train`` by their old names too."""

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        for old, new in Train.RENAMED.items():
            if old in named and new not in named:
                warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
                named[new] = named.pop(old)
        return function(*arguments, **named)

    return cast(F, call)


@_renamed
@ranged
def fit(
    sae: AbstractSAE,
    x: Float[np.ndarray, "rows embed"] | Float[Array, "rows embed"] | Any,
    *,
    steps: Count | None = None,
    batch: Count = 1024,
    learning_rate: Schedule | None = None,
    objective: Objective | Terms | None = None,
    weights: Mapping[str, Schedule] | None = None,
    constraint: AbstractConstraint | None = None,
    normalizer: AbstractNormalizer | None = None,
    optimizer: optax.GradientTransformation | Mapping[str, Any] | None = None,
    resampling: AbstractResampling | None = None,
    freeze: Sequence[Words] = (),
    clip: Positive | None = 1.0,
    stages: Annotated[Sequence[StageConfig], MinLen(1)] | None = None,
    dead_window: Count | None = None,
    dead_tokens: Count | None = None,
    feature_sampling_window: Count = SAMPLING_WINDOW,
    precision: Precision = "float32",
    log_every: Count | None = None,
    seed: Seed = 0,
    mesh: MeshShape | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool = True,
    loggers: Sequence[Sink] = (),
    checkpoint_every: Count = 1000,
    max_to_keep: Count | None = 2,
) -> tuple[AbstractSAE, list[dict[str, Any]]]:
    """Trains `sae` on the rows of an array or a store.

    Every key of ``jhsae train`` is an argument of the same name; initialisers are applied to `sae` before. With `out`
    the run folder is that of ``jhsae train``, for `load_sae`, ``jhsae evaluate``, browse, report and export, and the
    same call resumes it; the numbers are those without it.

    Args:
        sae: The initialised SAE; it is copied.
        x: The rows, [rows, embed]: a list, or a NumPy, JAX or torch array; or a `Store`, which is read as it goes.
        steps: Number of updates.
        batch: Rows per update; all rows where there are fewer.
        learning_rate: A number or a schedule of the step; by default linear warmup over a twentieth of the steps, then
            cosine, with a peak of 1e-3.
        objective: Loss terms by name; by default squared error, plus 0.1 parents-only for a hierarchical SAE and
            0.1 prefix for a forest of a pursuit.
        weights: Weights of terms, a number or a schedule each; they replace those of `objective`.
        constraint: How decoder rows keep unit norm; by default projection of the gradient and renormalisation.
        normalizer: The fitted input normaliser; by default none.
        optimizer: The optax transformation before the learning rate, or its slot, which a run folder needs; by default
            that of ``jhsae train``.
        resampling: How dead features are resampled; by default not at all.
        freeze: Paths or globs of parameters that do not change.
        clip: Bound on the global gradient norm; None for none.
        stages: ``jhsae.training.config.StageConfig(name, steps, learning_rate, freeze, weights, clip)`` for each, run
            in order; instead of `steps`, `learning_rate`, `freeze` and `clip`.
        dead_window: Steps without firing after which a feature is dead. By default a tenth of the run, at most 1000 (in
            ``jhsae train`` 1000), so that terms about dead features act in a short run too.
        dead_tokens: The same in tokens; replaces `dead_window`.
        feature_sampling_window: Steps over which firing frequencies are measured.
        precision: Of the hot matrix products; all else is float32.
        log_every: Steps between rows of the metrics; by default a twentieth of the run.
        seed: Order of the rows, routing noise and resampling.
        mesh: Devices; by default one. ``MeshShape()`` splits the batch over all devices, ``MeshShape(2, 4)`` over 2
            groups of 4 devices, each of which splits the experts.
        out: The run folder to write; by default nothing is written.
        resume: Continue a run in `out`, or return what a finished one holds; False refuses a folder that exists.
        loggers: "tensorboard", "wandb", beside metrics.jsonl; they need `out`.
        checkpoint_every: Steps between checkpoints in `out`.
        max_to_keep: Newest checkpoints to keep; None for all.

    Returns:
        The trained SAE for inference (`AbstractSAE.for_inference`) and the rows of metrics.

    Raises:
        UserError: Rows of another width or that are not finite, and all that ``jhsae train`` refuses.
        DivergedError: The loss or a parameter is not finite.
    """
    source = x if isinstance(x, Store) else _source(x, sae.embed)
    batch = min(batch, source.rows)
    stages = _stages(steps, learning_rate, freeze, clip, stages)
    total = sum(stage.steps for stage in stages)
    objective = default_objective(sae) if objective is None else objective
    whole = objective if isinstance(objective, Objective) else Objective(objective)
    window = min(DEAD_WINDOW, max(1, total // 10)) if dead_window is None else dead_window
    slot = ADAM if optimizer is None else optimizer
    recipe = Recipe(
        stages,
        whole.terms,
        {**whole.weights, **(weights or {})},
        constraint or ProjectAndRenormalize(),
        normalizer or Identity(),
        resampling or NoResampling(),
        cfg.build(dict(slot), OPTIMIZER) if isinstance(slot, Mapping) else slot,
        dead_steps(window, dead_tokens, batch),
        feature_sampling_window,
        precision,
    )
    prepared = _prepared(sae, source, recipe, batch, seed, mesh)
    for note in prepared.notes:
        warnings.warn(note, stacklevel=4)  # attributed to the caller of `fit`, past the wrapper that checks arguments
    every = log_every or max(1, total // 20)
    if out is None:
        if loggers:
            raise UserError(f"loggers is {list(loggers)}, which write into the run folder; write out=... too")
        return _in_memory(prepared, batch, seed, every)
    files = {"loggers": list(loggers), "checkpoint_every": checkpoint_every, "max_to_keep": max_to_keep}
    options = {"dead_window": window, "dead_tokens": dead_tokens, "seed": seed, "log_every": every} | files
    config = described(prepared, sae, slot, str(out), batch, mesh or MeshShape(data=1), **options)
    return _in_folder(prepared, config, resume)


def _prepared(
    sae: AbstractSAE, source: Store | GivenRows, recipe: Recipe, batch: int, seed: int, mesh: MeshShape | None
) -> Prepared:
    """What is trained, checked."""
    devices = make_mesh(MeshShape(data=1), devices=1) if mesh is None else make_mesh(mesh)
    check_batch(batch, devices)
    check_width(sae, source)
    notes = check_run(recipe, sae, batch)
    ready = [recipe.stage(stage, sae, devices) for stage in recipe.stages]

    def start() -> TrainState:
        return TrainState.init(sae, recipe.optimizer, jax.random.key(seed))

    return Prepared(devices, source, recipe, ready, notes, start)


def _in_folder(prepared: Prepared, config: Train, resume: bool) -> tuple[AbstractSAE, list[dict[str, Any]]]:
    """The trained SAE and its metrics, in a run folder."""
    folder = open_folder(config.out)
    if not resume and folder.exists():
        raise UserError(f"{folder} exists already and is never overwritten; write another out=..., or resume=True")
    train_in_folder(config, lambda: prepared)
    return load_sae(folder, trust=cfg.packages(config))[0], read_lines(folder / "metrics.jsonl")


def _source(x: Any, embed: int) -> GivenRows:
    rows = host_rows(x, embed)
    if not len(rows):
        raise UserError("x has no rows, expected at least 1")
    return GivenRows(len(rows), embed, x=rows)


def _in_memory(prepared: Prepared, batch: int, seed: int, log_every: int) -> tuple[AbstractSAE, list[dict[str, Any]]]:
    """The trained SAE and its metrics; nothing is written."""
    log, total = NoLog(), prepared.recipe.steps
    batches = batches_of(Data(batch, "in memory", seed=seed), prepared.store, prepared.mesh)
    state = shard_state(prepared.start(), prepared.mesh)
    state = run_stages(state, prepared.stages, batches, prepared.mesh, log, log_every=log_every, label="fit")
    return state.sae.for_inference(state.sae.corrected(state.usage, total)), log.rows


def default_objective(sae: AbstractSAE) -> Objective:
    """Squared error, and for a hierarchical SAE at 0.1 that of its upper levels alone."""
    upper: dict[str, AbstractTerm] = {"parents_only": ParentsOnly(), "prefix": Prefix()}
    fitting = {name: term for name, term in upper.items() if sae.tree is not None and isinstance(sae, term.accepts)}
    return Objective({"reconstruction": SquaredError()} | fitting, dict.fromkeys(fitting, 0.1))


def _stages(
    steps: int | None,
    learning_rate: AbstractSchedule | float | None,
    freeze: Sequence[str],
    clip: float | None,
    stages: Sequence[StageConfig] | None,
) -> list[StageConfig]:
    """The stages as they were given, or the one that the other arguments describe."""
    if stages is not None:
        passed = {"steps": steps is not None, "learning_rate": learning_rate is not None, "freeze": len(freeze) > 0}
        passed["clip"] = clip != 1.0
        if clashes := [name for name, is_passed in passed.items() if is_passed]:
            raise UserError(f"fit was given stages and {', '.join(clashes)}; write them inside of the stages")
        return list(stages)
    if steps is None:
        raise UserError("fit was given neither steps nor stages; write steps=1000 or so")
    rate: Any = WarmupCosine(1e-3, warmup=steps // 20, steps=steps) if learning_rate is None else learning_rate
    return [StageConfig("fit", steps, rate, list(freeze), {}, clip)]
