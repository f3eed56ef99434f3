"""The objective: named terms, each a scalar, and a weight for each that may follow a schedule.

``loss = sum_i weight_i(step) * term_i(sae, forward)``. Terms are logged unweighted under their names. A term whose
weight is the number 0 is left out of the compiled step.
"""

import abc
from collections.abc import Mapping
from typing import Annotated, ClassVar, Generic, TypeVar

import equinox as eqx
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float, Int

from jhsae.errors import UserError, nearest
from jhsae.ranges import Ranged
from jhsae.sae import AbstractSAE, Forward, require
from jhsae.schedule import AbstractSchedule, Constant, as_schedule

S = TypeVar("S", bound=AbstractSAE)
F = TypeVar("F", bound=Forward)
SAMPLED = {"mean_log10_frequency", "below_1e-5", "below_1e-6"}
UNDEFINED = SAMPLED | {"explained_variance"}  # may be NaN in a sound run, and are not logged then
COLUMNS = {"step", "stage", "loss", "l0", "explained_variance", "dead", "learning_rate", "grad_norm"} | SAMPLED


class AbstractTerm(Ranged, eqx.Module, Generic[S, F]):
    """``term(sae, forward) -> scalar``, unweighted.

    Attributes:
        accepts: the class of SAE that it is for; `Objective` refuses another.
        instead: what the message for another SAE says to write.
        reads_dead: whether it is about dead features.
    """

    accepts: ClassVar[type] = AbstractSAE
    instead: ClassVar[str] = "drop the term"
    reads_dead: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, sae: S, forward: F) -> Float[Array, ""]:
        """The value of the term.

        Args:
            sae: an SAE of the class `accepts`.
            forward: its forward pass on a batch.

        Returns:
            A scalar, the mean over the batch.
        """


class Objective(Ranged, eqx.Module):
    """The weighted sum of named terms.

    Args:
        terms: the terms by name, under which each is logged.
        weights: the weight of each term, a number or a schedule; 1 for a term without one.

    Raises:
        UserError: a weight that names no term, or a term named as another column of the metrics.
    """

    terms: dict[str, AbstractTerm]
    weights: dict[str, Annotated[AbstractSchedule, Ge(0)]]

    def __init__(
        self,
        terms: Mapping[str, AbstractTerm],
        weights: Mapping[str, Annotated[AbstractSchedule | float, Ge(0)]] | None = None,
    ):
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
        """The loss of a batch.

        Args:
            sae: the SAE.
            forward: its forward pass.
            step: the number of the step, for the weights.

        Returns:
            The loss and every term's unweighted value.

        Raises:
            UserError: a term that is not for such an SAE.
        """
        self.check(sae)
        values = {name: term(sae, forward) for name, term in self.terms.items()}
        total = sum((self.weights[name](step) * value for name, value in values.items()), jnp.zeros(()))
        return total, values

    def check(self, sae: AbstractSAE) -> None:
        """Raises `UserError` for a term that is not for such an SAE."""
        for name, term in self.terms.items():
            require(sae, term.accepts, f"the term '{name}', {type(term).__name__},", term.instead)
