"""Checks of a run before anything is computed: schedules, objective, sizes, windows, teacher; and of bad rows after."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge

from jhsae.data import Batches, Store
from jhsae.data.source import AbstractSource
from jhsae.errors import UserError
from jhsae.losses import Objective
from jhsae.ranges import INT32, bounds, hints_of, outside
from jhsae.sae import AbstractSAE, Context
from jhsae.schedule import AbstractSchedule
from jhsae.teacher import Teacher
from jhsae.training.config import Train
from jhsae.training.recipe import Recipe

SAMPLES = 1000  # steps of a stage at which a schedule is looked at, the first and the last among them
ROUNDING = 1e-6


def check_run(recipe: Recipe, sae: AbstractSAE, batch: int) -> list[str]:
    """Checks that a run can be trained. Each schedule is sampled over the steps in which it is used.

    Args:
        recipe: What the steps compute with.
        sae: The SAE, or its shapes alone.
        batch: Tokens per step.

    Returns:
        Sentences about settings that have no effect.

    Raises:
        UserError: No term to minimise, a term that does not fit the SAE, a schedule out of its bounds, too many steps.
    """
    if recipe.steps > INT32:
        raise UserError(f"stages have {recipe.steps:,} steps in all, expected at most {INT32:,}")
    _check_schedules(sae, "sae", 0, recipe.steps)
    _check_batch_budget(sae, batch, recipe.steps)
    first = 0
    for stage in recipe.stages:
        modules = recipe.modules(stage)
        if not modules.objective.terms:
            raise UserError(
                f"stage '{stage.name}' has an objective without a term whose weight is above 0, so there is nothing to "
                "minimise; write a weight above 0, or a term such as {_target_: jhsae.losses.SquaredError}"
            )
        _check_schedules(modules, f"stage '{stage.name}'", first, first + stage.steps)
        eqx.filter_eval_shape(_trial, modules.objective, sae)
        first += stage.steps
    return list(_unused_dead(recipe))


def schedules(part: Any, path: str) -> Iterator[tuple[str, AbstractSchedule, tuple[Any, ...]]]:
    """Every schedule in the fields of a part and of the parts in it, with its place and the bounds of its values."""
    for name, hint in hints_of(type(part)).items():
        yield from _in_value(getattr(part, name, None), hint, f"{path}.{name}")


def _in_value(value: Any, hint: Any, path: str) -> Iterator[tuple[str, AbstractSchedule, tuple[Any, ...]]]:
    inner = get_args(get_args(hint)[0] if get_origin(hint) is Annotated else hint)
    if isinstance(value, AbstractSchedule):
        yield path, value, bounds(hint)
    elif isinstance(value, eqx.Module):
        yield from schedules(value, path)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _in_value(entry, inner[1] if len(inner) == 2 else Any, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from _in_value(entry, inner[0] if inner else Any, f"{path}.{i}")


def check_sizes(config: Train, sae: AbstractSAE, store: Store | AbstractSource) -> None:
    """Raises `UserError` where the SAE and the store differ in width, or the store is smaller than a batch."""
    check_width(sae, store)
    manifest = store.manifest
    if config.data.batch > manifest.rows:
        raise UserError(
            f"data.batch is {config.data.batch}, but the store {store.path} has {manifest.rows} rows; "
            f"write data.batch of at most {manifest.rows}"
        )


def check_width(sae: AbstractSAE, store: Store | AbstractSource) -> None:
    """Raises `UserError` where the SAE and the store differ in width."""
    manifest = store.manifest
    if sae.embed != manifest.embed:
        raise UserError(
            f"sae.embed is {sae.embed}, but the store {store.path} holds vectors of {manifest.embed} "
            f"({manifest.model}, layer {manifest.layer}); write sae.embed={manifest.embed}"
        )


def check_teacher(config: Train, store: Store | AbstractSource) -> None:
    """Raises `UserError` where the teacher and the store come from different language models."""
    if config.teacher is not None:
        Teacher.load(config.teacher).check_origin(store.manifest, store.path, config.teacher)


def bad_rows(config: Train, store: Store | AbstractSource, step: int) -> str:
    """The rows that step `step` read from the store and that are not finite, as the end of a sentence."""
    if isinstance(store, AbstractSource):
        return ""
    batches, at = Batches(store, config.data.batch, config.data.seed, streams=config.data.streams), step - 1
    bad = batches.places(at)[~np.isfinite(batches[at]).all(axis=1)].tolist()
    named = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    return f"; rows {named} of {store.path}, which this step read, are not finite: harvest them again" if bad else ""


def _check_schedules(part: Any, path: str, first: int, end: int) -> None:
    for where, schedule, limits in schedules(part, path):
        for step, value in zip(*_values(schedule, first, end), strict=True):
            near = any(isinstance(n, Ge) and n.ge == 0 for n in limits) and -ROUNDING <= value < 0  # float32 rounds
            if not near and (expected := outside(value, limits)) is not None:
                at = "" if _is_number(schedule) else f" at step {step}"
                raise UserError(f"{where} is {value:g}{at}, expected {expected}; write a schedule that keeps to it")


def _values(schedule: AbstractSchedule, first: int, end: int) -> tuple[list[int], list[float]]:
    """Steps from `first` to before `end`, and what the schedule is at them; none where its arrays are not there yet."""
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(schedule)):
        return [], []
    steps = np.unique(np.linspace(first, end - 1, min(SAMPLES, end - first)).round().astype(np.int64))
    if _is_number(schedule):
        return [first], [float(schedule(first))]
    values = jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(jnp.asarray(steps, jnp.int32))
    return steps.tolist(), jax.device_get(values).tolist()


def _is_number(schedule: AbstractSchedule) -> bool:
    return isinstance(schedule(0), float)


def _check_batch_budget(sae: AbstractSAE, batch: int, steps: int) -> None:
    for part in sae.sparsifiers:
        least = min(_values(part.batch_k, 0, steps)[1], default=1.0) if part.batch_k is not None else 1.0
        if least * batch < 1:
            raise UserError(
                f"{type(part).__name__}: k is {least:g}, which is no feature at all in a batch of {batch}; write a "
                f"k of at least {1 / batch:g}"
            )


def _trial(objective: Objective, sae: AbstractSAE) -> Any:
    """One evaluation of the objective, for its shapes alone: a term that does not fit the SAE raises `UserError`."""
    forward = sae.forward(jnp.zeros((1, sae.embed)), Context(jax.random.key(0)))
    return objective(sae, forward, 0)


def _unused_dead(recipe: Recipe) -> Iterator[str]:
    readers = [name for name, term in recipe.terms.items() if term.reads_dead]
    readers += [type(recipe.resampling).__name__] if recipe.resampling.reads_dead else []
    if readers and recipe.dead_window >= recipe.steps:
        yield (
            f"no feature can be dead in {recipe.steps} steps with a dead window of {recipe.dead_window}, so that "
            f"{', '.join(readers)} will do nothing; write dead_window={max(1, recipe.steps // 10)} or so"
        )
