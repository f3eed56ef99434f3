"""The stages of a run, built: one code path from a `Recipe` to compiled steps, for ``jhsae train`` and for `fit`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optax
from jax.sharding import Mesh

from jhsae import config as cfg
from jhsae.constraint import AbstractConstraint
from jhsae.data import AbstractNormalizer
from jhsae.leaf import matching
from jhsae.losses import AbstractTerm, Objective
from jhsae.ops import Precision
from jhsae.resampling import AbstractRevival
from jhsae.sae import AbstractSAE
from jhsae.schedule import AbstractSchedule, as_schedule
from jhsae.training.config import Stage
from jhsae.training.loop import Phase
from jhsae.training.step import Parts, make_step


@dataclass(frozen=True)
class Recipe:
    """What the steps of a run compute with: the keys of a training config that decide it, their slots built.

    A schedule in `weights` or in a stage may still be a slot. `dead_window` and `sampling_window` count steps.
    """

    stages: Sequence[Stage]
    terms: Mapping[str, AbstractTerm]
    weights: Mapping[str, Any]
    constraint: AbstractConstraint
    normalizer: AbstractNormalizer
    revival: AbstractRevival
    direction: optax.GradientTransformation
    dead_window: int
    sampling_window: int
    precision: Precision

    @property
    def steps(self) -> int:
        """Updates of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def parts(self, stage: Stage) -> Parts:
        """What one stage computes with. `UserError` for a weight that belongs to no term."""
        weights = {name: _schedule(value) for name, value in {**self.weights, **stage.weights}.items()}
        objective = Objective(self.terms, weights)
        rate = _schedule(stage.learning_rate)
        return Parts(objective, rate, self.constraint, self.normalizer, self.revival)

    def phase(self, stage: Stage, sae: AbstractSAE, mesh: Mesh) -> Phase:
        """One stage, ready to be compiled for `sae`, or for its shapes.

        Raises `UserError` for a pattern in ``freeze`` that matches no parameter.
        """
        frozen = matching(sae, stage.freeze) if stage.freeze else None
        windows = (self.dead_window, self.sampling_window)
        step = make_step(self.direction, frozen, stage.clip, *windows, mesh, self.precision)
        return Phase(stage.name, stage.steps, step, self.parts(stage))


def dead_steps(dead_window: int, dead_tokens: int | None, batch: int) -> int:
    """After how many steps of `batch` tokens a feature is dead; `dead_tokens` counts, where it is given."""
    return dead_window if dead_tokens is None else -(-dead_tokens // batch)


def _schedule(value: Any) -> AbstractSchedule:
    return cfg.build(value, AbstractSchedule) if isinstance(value, dict) else as_schedule(value)
