"""`fit` trains an SAE on the rows of an array, for scripts and notebooks, with the step and loop of ``jhsae train``."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any, TypeVar, cast

import jax
import numpy as np
import optax
from annotated_types import Ge, MinLen
from jaxtyping import Array, Float

from jhsae.constraint import AbstractConstraint, ProjectAndRenormalize
from jhsae.data import AbstractNormalizer, Between, Identity
from jhsae.errors import UserError
from jhsae.losses import AbstractTerm, Objective, ParentsOnly, Prefix, SquaredError
from jhsae.ops import Precision
from jhsae.ops.inputs import host_rows
from jhsae.optimizer import adam
from jhsae.parallel.mesh import MeshShape, check_batch, make_mesh
from jhsae.ranges import Count, Positive, Seed, Words, ranged
from jhsae.resampling import AbstractResampling, NoResampling
from jhsae.sae import AbstractSAE
from jhsae.schedule import AbstractSchedule, WarmupCosine
from jhsae.training.checks import check_run
from jhsae.training.config import StageConfig, Train
from jhsae.training.logs import NoLog
from jhsae.training.loop import run_stages
from jhsae.training.recipe import Recipe, dead_steps
from jhsae.training.sharding import shard_state
from jhsae.training.step import TrainState

Schedule = Annotated[AbstractSchedule | float, Ge(0)]
Terms = Annotated[Mapping[str, AbstractTerm], MinLen(1)]
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
    optimizer: optax.GradientTransformation | None = None,
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
    target: Float[np.ndarray, "rows output"] | Float[Array, "rows output"] | Any = None,
) -> tuple[AbstractSAE, list[dict[str, Any]]]:
    """Trains `sae` on the rows of an array.

    Every key of ``jhsae train`` that decides the result is an argument of the same name; initialisers are applied to
    `sae` before, and what concerns files (checkpoints, loggers) is left out.

    Args:
        sae: The initialised SAE; it is copied.
        x: The rows, [rows, embed]: a list, or a NumPy, JAX or torch array.
        steps: Number of updates.
        batch: Rows per update; all rows where there are fewer.
        learning_rate: A number or a schedule of the step; by default linear warmup over a twentieth of the steps, then
            cosine, with a peak of 1e-3.
        objective: Loss terms by name; by default squared error, plus 0.1 parents-only for a hierarchical SAE and
            0.1 prefix for a forest of a pursuit.
        weights: Weights of terms, a number or a schedule each; they replace those of `objective`.
        constraint: How decoder rows keep unit norm; by default projection of the gradient and renormalisation.
        normalizer: The fitted input normaliser; by default none.
        optimizer: The optax transformation before the learning rate; by default that of ``jhsae train``.
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
        target: What a transcoder writes, a row for each of `x`; its normaliser is then a `jhsae.data.Between`.

    Returns:
        The trained SAE for inference (`AbstractSAE.for_inference`) and the rows of metrics.

    Raises:
        UserError: Rows of another width or that are not finite, and all that ``jhsae train`` refuses.
        DivergedError: The loss or a parameter is not finite.
    """
    rows = _with_target(sae, host_rows(x, sae.embed), target)
    if not len(rows):
        raise UserError("x has no rows, expected at least 1")
    batch = min(batch, len(rows))
    stages = _stages(steps, learning_rate, freeze, clip, stages)
    total = sum(stage.steps for stage in stages)
    objective = default_objective(sae) if objective is None else objective
    whole = objective if isinstance(objective, Objective) else Objective(objective)
    window = min(DEAD_WINDOW, max(1, total // 10)) if dead_window is None else dead_window
    recipe = Recipe(
        stages,
        whole.terms,
        {**whole.weights, **(weights or {})},
        constraint or ProjectAndRenormalize(),
        normalizer or (Identity() if target is None else Between((sae.embed, sae.output))),
        resampling or NoResampling(),
        optimizer or adam(),
        dead_steps(window, dead_tokens, batch),
        feature_sampling_window,
        precision,
    )
    devices = make_mesh(MeshShape(data=1), devices=1) if mesh is None else make_mesh(mesh)
    check_batch(batch, devices)
    for note in check_run(recipe, sae, batch):
        warnings.warn(note, stacklevel=4)  # attributed to the caller of `fit`, past the wrapper that checks arguments
    ready = [recipe.stage(stage, sae, devices) for stage in recipe.stages]
    state = shard_state(TrainState.init(sae, recipe.optimizer, jax.random.key(seed)), devices)
    log = NoLog()
    every = log_every or max(1, total // 20)
    state = run_stages(state, ready, _shuffled(rows, batch, seed), devices, log, log_every=every, label="fit")
    return state.sae.for_inference(state.sae.corrected(state.usage, total)), log.rows


def default_objective(sae: AbstractSAE) -> Objective:
    """Squared error, and for a hierarchical SAE at 0.1 that of its upper levels alone."""
    upper: dict[str, AbstractTerm] = {"parents_only": ParentsOnly(), "prefix": Prefix()}
    fitting = {name: term for name, term in upper.items() if sae.tree is not None and isinstance(sae, term.accepts)}
    return Objective({"reconstruction": SquaredError()} | fitting, dict.fromkeys(fitting, 0.1))


def _with_target(sae: AbstractSAE, rows: np.ndarray, target: Any) -> np.ndarray:
    """The rows, with those of the target beside them."""
    if sae.writes_input != (target is None):
        kind = f"a {type(sae).__name__}"
        raise UserError(
            f"{kind} writes something else than it reads; write target=..., a row for each of x"
            if target is None
            else f"{kind} reconstructs what it reads, but a target was given; leave it out, or write a Transcoder"
        )
    if target is None:
        return rows
    written = host_rows(target, sae.output)
    if len(written) != len(rows):
        raise UserError(f"x has {len(rows)} rows and target {len(written)}, expected one of the target for each of x")
    return np.concatenate([rows, written], axis=1)


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


def _shuffled(rows: np.ndarray, batch: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - batch + 1, batch):
            yield rows[order[start : start + batch]]
