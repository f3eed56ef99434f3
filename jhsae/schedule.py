"""Schedules: a step number in, a value out. Steps count from 0 over the whole run, across its stages.

SAELens counts its warmup from 1: a warmup of w steps has the values peak/w, 2 peak/w, ..., peak. `Warmup`,
`WarmupDecay`, `CosineAnnealing` and `CosineRestarts` do the same, step for step. `WarmupCosine` (optax) and
`Trapezoid` (dictionary_learning) begin at 0, or at `start`, and reach the peak one step later.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.errors import UserError
from jhsae.ranges import Count, Fraction, Natural, Ranged

Scalar = Float[Array, ""] | float


class AbstractSchedule(Ranged, eqx.Module):
    """``schedule(step) -> value``, traceable by JAX."""

    @abc.abstractmethod
    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        """The value at `step`."""


class Constant(AbstractSchedule):
    """Always `value`."""

    value: float = eqx.field(static=True)

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        return self.value


class Linear(AbstractSchedule):
    """From `start` at step 0 to `end` at step `steps`, then `end`.

    Args:
        start: the value at step 0.
        end: the value from step `steps` on.
        steps: the step at which `end` is reached.
    """

    start: float = eqx.field(static=True)
    end: float = eqx.field(static=True)
    steps: Count = eqx.field(static=True)

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        t = jnp.clip(jnp.asarray(step, jnp.float32) / self.steps, 0.0, 1.0)
        return self.start + (self.end - self.start) * t


class WarmupCosine(AbstractSchedule):
    """Linear from `start` to `peak` over `warmup` steps, then a cosine to `peak * final` at step `steps`.

    With ``warmup=0`` the cosine begins at `peak` (the original began at `start`: an optax trap).

    Args:
        peak: the value at step `warmup`.
        warmup: steps of the rise; 0 for none.
        steps: the step at which the cosine ends, counted from step 0.
        start: the value at step 0.
        final: the last value, as a fraction of `peak`.

    Raises:
        UserError: `warmup` is not below `steps`.
    """

    peak: float = eqx.field(static=True)
    warmup: Natural = eqx.field(static=True)
    steps: Count = eqx.field(static=True)
    start: float = eqx.field(static=True, default=0.0)
    final: Fraction = eqx.field(static=True, default=0.1)

    def __check_init__(self) -> None:
        if self.warmup >= self.steps:
            raise UserError(
                f"WarmupCosine: warmup is {self.warmup} and steps is {self.steps}; write warmup smaller than steps"
            )

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        t = jnp.asarray(step, jnp.float32)
        up = self.start + (self.peak - self.start) * t / max(self.warmup, 1)
        done = jnp.clip((t - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        down = self.peak * ((1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * done)) + self.final)
        return jnp.where(t < self.warmup, up, down)


class Warmup(AbstractSchedule):
    """``value min((step + 1) / steps, 1)``: a coefficient that grows to `value`, as SAELens warms up sparsity.

    Args:
        value: the value from step ``steps - 1`` on.
        steps: steps of the rise.
    """

    value: float = eqx.field(static=True)
    steps: Count = eqx.field(static=True)

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        return self.value * jnp.minimum((jnp.asarray(step, jnp.float32) + 1) / self.steps, 1.0)


class WarmupDecay(AbstractSchedule):
    """Linear to `peak` over `warmup` steps, constant, then linear to 0 over the last `decay` of `steps` steps.

    SAELens: lr_scheduler_name "constant" with lr_warm_up_steps and lr_decay_steps. With a decay it ends at 0.

    Args:
        peak: the value between warmup and decay.
        steps: the length of the schedule, warmup and decay included.
        warmup: steps of the rise; 0 for none.
        decay: steps of the fall to 0; 0 for none.

    Raises:
        UserError: `warmup` and `decay` together exceed `steps`.
    """

    peak: float = eqx.field(static=True)
    steps: Count = eqx.field(static=True)
    warmup: Natural = eqx.field(static=True, default=0)
    decay: Natural = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        _check_ends(self, self.steps, self.warmup, self.decay, between=0)

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        t = jnp.asarray(step, jnp.float32)
        return self.peak * _between(t, self.steps, self.warmup, self.decay, jnp.ones_like(t), last=1.0)


class CosineAnnealing(AbstractSchedule):
    """Linear to `peak` over `warmup` steps, a cosine to `peak * final`, linear to 0 over the last `decay` steps.

    SAELens: "cosineannealing", whose lr_end is ``peak * final``.

    Args:
        peak: the value after the warmup.
        steps: the length of the schedule, warmup and decay included.
        warmup: steps of the rise; 0 for none.
        decay: steps of the fall to 0; 0 for none.
        final: the last value of the cosine, as a fraction of `peak`.

    Raises:
        UserError: `warmup` and `decay` leave no step between them, or `final` is 0 with a decay.
    """

    peak: float = eqx.field(static=True)
    steps: Count = eqx.field(static=True)
    warmup: Natural = eqx.field(static=True, default=0)
    decay: Natural = eqx.field(static=True, default=0)
    final: Fraction = eqx.field(static=True, default=0.1)

    def __check_init__(self) -> None:
        _check_ends(self, self.steps, self.warmup, self.decay, between=1)
        _check_final(self, self.final, self.decay)

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        t = jnp.asarray(step, jnp.float32)
        done = jnp.clip((t - self.warmup) / (self.steps - self.warmup - self.decay), 0.0, 1.0)
        wave = _cosine(done, self.final)
        return self.peak * _between(t, self.steps, self.warmup, self.decay, wave, self.final)


class CosineRestarts(AbstractSchedule):
    """As `CosineAnnealing`, but the cosine begins again at the peak, `cycles` times (arXiv 1608.03983).

    SAELens: "cosineannealingwarmrestarts". A cycle is ``(steps - warmup - decay) // cycles`` steps long; the steps
    that remain begin one more, as there.

    Args:
        peak: the value at the start of each cycle.
        steps: the length of the schedule, warmup and decay included.
        cycles: the number of cosines.
        warmup: steps of the rise; 0 for none.
        decay: steps of the fall to 0; 0 for none.
        final: the lowest value of a cosine, as a fraction of `peak`.

    Raises:
        UserError: `warmup` and `decay` leave fewer than `cycles` steps between them, or `final` is 0 with a decay.
    """

    peak: float = eqx.field(static=True)
    steps: Count = eqx.field(static=True)
    cycles: Count = eqx.field(static=True)
    warmup: Natural = eqx.field(static=True, default=0)
    decay: Natural = eqx.field(static=True, default=0)
    final: Fraction = eqx.field(static=True, default=0.1)

    def __check_init__(self) -> None:
        _check_ends(self, self.steps, self.warmup, self.decay, between=self.cycles)
        _check_final(self, self.final, self.decay)

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        t = jnp.asarray(step, jnp.float32)
        length = (self.steps - self.warmup - self.decay) // self.cycles
        wave = _cosine(jnp.mod(t - self.warmup, length) / length, self.final)
        return self.peak * _between(t, self.steps, self.warmup, self.decay, wave, self.final)


class Trapezoid(AbstractSchedule):
    """Linear from 0 at step 0 to `peak` at step `warmup`, constant, then linear to 0 at step `steps`.

    dictionary_learning, whose decay_start is ``steps - decay``. The first update of all is one of size 0.

    Args:
        peak: the value between warmup and decay.
        steps: the length of the schedule, warmup and decay included.
        warmup: steps of the rise; 0 for none.
        decay: steps of the fall to 0; 0 for none.

    Raises:
        UserError: `warmup` and `decay` together exceed `steps`.
    """

    peak: float = eqx.field(static=True)
    steps: Count = eqx.field(static=True)
    warmup: Natural = eqx.field(static=True, default=0)
    decay: Natural = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        _check_ends(self, self.steps, self.warmup, self.decay, between=0)

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        t = jnp.asarray(step, jnp.float32)
        return self.peak * _between(t, self.steps, self.warmup, self.decay, jnp.ones_like(t), last=1.0, counts_from=0)


def _between(
    t: Float[Array, ""],
    steps: int,
    warmup: int,
    decay: int,
    middle: Float[Array, ""],
    last: float,
    counts_from: int = 1,
) -> Float[Array, ""]:
    """`middle`, with a linear rise to 1 before it and a linear fall from `last` to 0 after it."""
    value = jnp.where(t < warmup, (t + counts_from) / max(warmup, 1), middle)
    fall = last * jnp.clip((steps - t) / max(decay, 1), 0.0, 1.0)
    return jnp.where((t >= steps - decay) & (decay > 0), fall, value)


def _cosine(done: Float[Array, ""], final: float) -> Float[Array, ""]:
    """From 1 to `final` as `done` goes from 0 to 1."""
    return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def _check_ends(schedule: AbstractSchedule, steps: int, warmup: int, decay: int, between: int) -> None:
    if steps < max(warmup + decay + between, 1):
        raise UserError(
            f"{type(schedule).__name__}: steps is {steps}, warmup {warmup} and decay {decay}, which leaves "
            f"{steps - warmup - decay} steps between them, expected at least {between}; write a longer run, or a "
            "shorter warmup or decay"
        )


def _check_final(schedule: AbstractSchedule, final: float, decay: int) -> None:
    if decay and final == 0:
        raise UserError(
            f"{type(schedule).__name__}: final is 0, so that the last {decay} steps would fall from 0 to 0; write "
            "decay=0, or a final above 0"
        )


def as_schedule(value: AbstractSchedule | float) -> AbstractSchedule:
    """Wraps a plain number as a constant schedule."""
    return value if isinstance(value, AbstractSchedule) else Constant(float(value))
