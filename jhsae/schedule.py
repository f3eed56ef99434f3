"""Schedules: a step number in, a value out. Steps count from 0 over the whole run, across its stages."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Scalar = Float[Array, ""] | float


class AbstractSchedule(eqx.Module):
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
    """From `start` at step 0 to `end` at step `steps`, then `end`."""

    start: float = eqx.field(static=True)
    end: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Linear: steps is {self.steps}, expected at least 1; for no ramp write the number")

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        t = jnp.clip(jnp.asarray(step, jnp.float32) / self.steps, 0.0, 1.0)
        return self.start + (self.end - self.start) * t


class WarmupCosine(AbstractSchedule):
    """Linear from `start` to `peak` over `warmup` steps, then a cosine to `peak * final` at step `steps`.

    With ``warmup=0`` the cosine begins at `peak` (the original began at `start`: an optax trap).
    """

    peak: float = eqx.field(static=True)
    warmup: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    start: float = eqx.field(static=True, default=0.0)
    final: float = eqx.field(static=True, default=0.1)

    def __check_init__(self) -> None:
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"WarmupCosine: warmup is {self.warmup} and steps is {self.steps}; write warmup smaller than steps"
            )

    def __call__(self, step: Int[Array, ""] | int) -> Scalar:
        t = jnp.asarray(step, jnp.float32)
        up = self.start + (self.peak - self.start) * t / max(self.warmup, 1)
        done = jnp.clip((t - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        down = self.peak * ((1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * done)) + self.final)
        return jnp.where(t < self.warmup, up, down)


def as_schedule(value: AbstractSchedule | float) -> AbstractSchedule:
    """Wraps a plain number as a constant schedule."""
    return value if isinstance(value, AbstractSchedule) else Constant(float(value))
