"""The objective: named terms, each a scalar, and a weight for each that may follow a schedule.

``loss = sum_i weight_i(step) * term_i(sae, forward)``. Terms are logged unweighted under their names. A term whose
weight is the number 0 is left out of the compiled step.
"""

import abc
from collections.abc import Mapping
from typing import Annotated, ClassVar

import equinox as eqx
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float, Int

from jhsae.errors import UserError, nearest
from jhsae.ranges import Ranged
from jhsae.sae import AbstractSAE, Forward
from jhsae.schedule import AbstractSchedule, Constant, as_schedule

SAMPLED = {"mean_log10_frequency", "below_1e-5", "below_1e-6"}
UNDEFINED = SAMPLED | {"explained_variance"}  # may be NaN in a sound run, and are not logged then
COLUMNS = {"step", "stage", "loss", "l0", "explained_variance", "dead", "learning_rate", "grad_norm"} | SAMPLED


class AbstractTerm(Ranged, eqx.Module):
    """``term(sae, forward) -> scalar``, unweighted. `reads_dead` says whether it is about dead features."""

    reads_dead: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        """The value of the term."""


class Objective(Ranged, eqx.Module):
    """The weighted sum of named terms. A term without a weight has weight 1."""

    terms: dict[str, AbstractTerm]
    weights: dict[str, Annotated[AbstractSchedule, Ge(0)]]

    def __init__(
        self,
        terms: Mapping[str, AbstractTerm],
        weights: Mapping[str, Annotated[AbstractSchedule | float, Ge(0)]] | None = None,
    ):
        """Raises `UserError` for a weight that names no term, or a term named as another column of the metrics."""
        weights = weights or {}
        for name in COLUMNS & terms.keys():
            raise UserError(f"a term may not be called '{name}': metrics.jsonl has that column; write another name")
        for name in weights:
            if name not in terms:
                raise UserError(f"weight '{name}' belongs to no term of the objective{nearest(name, terms)}")
        schedules = {name: as_schedule(weights.get(name, 1.0)) for name in terms}
        live = [name for name, s in schedules.items() if not (isinstance(s, Constant) and s.value == 0.0)]
        self.terms = {name: terms[name] for name in live}
        self.weights = {name: schedules[name] for name in live}

    def __call__(
        self, sae: AbstractSAE, forward: Forward, step: Int[Array, ""] | int
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss and every term's unweighted value."""
        values = {name: term(sae, forward) for name, term in self.terms.items()}
        total = sum((self.weights[name](step) * value for name, value in values.items()), jnp.zeros(()))
        return total, values
