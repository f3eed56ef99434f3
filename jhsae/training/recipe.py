"""Builds the stages of a run: one code path from a `Recipe` to jitted steps, for ``jhsae train`` and `fit`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jhsae import config as cfg
from jhsae.constraint import AbstractConstraint
from jhsae.data import AbstractNormalizer
from jhsae.init import AbstractInit
from jhsae.leaf import matching
from jhsae.losses import AbstractTerm, Objective
from jhsae.ops import Precision
from jhsae.resampling import AbstractResampling
from jhsae.sae import AbstractSAE
from jhsae.schedule import AbstractSchedule, as_schedule
from jhsae.training.config import OPTIMIZER, StageConfig, Train
from jhsae.training.loop import Stage
from jhsae.training.step import StageModules, make_step


@dataclass(frozen=True)
class Recipe:
    """The parts of a training config that its steps compute with, built from their slots.

    Args:
        stages: Stages in order; a schedule in one may still be a slot.
        terms: Loss terms by name.
        weights: Weights of terms: numbers, schedules or slots of schedules.
        constraint: How decoder rows keep unit norm.
        normalizer: The fitted input normaliser.
        resampling: How dead features are resampled.
        optimizer: The optax transformation before the learning rate.
        dead_window: Steps without firing after which a feature is dead.
        feature_sampling_window: Steps over which firing frequencies are measured.
        precision: Of the hot matrix products.
    """

    stages: Sequence[StageConfig]
    terms: Mapping[str, AbstractTerm]
    weights: Mapping[str, Any]
    constraint: AbstractConstraint
    normalizer: AbstractNormalizer
    resampling: AbstractResampling
    optimizer: optax.GradientTransformation
    dead_window: int
    feature_sampling_window: int
    precision: Precision

    @classmethod
    def of(cls, config: Train, normalizer: AbstractNormalizer) -> "Recipe":
        """Builds the parts of a config; `normalizer` is fitted already."""
        return cls(
            stages=config.stages,
            terms={name: cfg.build(slot, AbstractTerm) for name, slot in config.objective.items()},
            weights=config.weights,
            constraint=cfg.build(config.constraint, AbstractConstraint),
            normalizer=normalizer,
            resampling=cfg.build(config.resampling, AbstractResampling),
            optimizer=cfg.build(config.optimizer, OPTIMIZER),
            dead_window=dead_steps(config.dead_window, config.dead_tokens, config.data.batch),
            feature_sampling_window=config.feature_sampling_window,
            precision=config.precision,
        )

    @property
    def steps(self) -> int:
        """Updates of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def modules(self, stage: StageConfig) -> StageModules:
        """The modules of one stage. `UserError` for a weight that belongs to no term."""
        weights = {name: _schedule(value) for name, value in {**self.weights, **stage.weights}.items()}
        objective = Objective(self.terms, weights)
        rate = _schedule(stage.learning_rate)
        return StageModules(objective, rate, self.constraint, self.normalizer, self.resampling)

    def stage(self, stage: StageConfig, sae: AbstractSAE, mesh: Mesh) -> Stage:
        """One stage, ready to run.

        Args:
            stage: One of `stages`.
            sae: The SAE, or its shapes alone.
            mesh: Devices over which the step is split.

        Raises:
            UserError: A pattern in ``freeze`` that matches no parameter.
        """
        frozen = matching(sae, stage.freeze) if stage.freeze else None
        windows = (self.dead_window, self.feature_sampling_window)
        step = make_step(self.optimizer, frozen, stage.clip, *windows, mesh, self.precision)
        return Stage(stage.name, stage.steps, step, self.modules(stage))


def build_sae(config: Train, key: Key[Array, ""]) -> AbstractSAE:
    """The SAE of a config with its initialisers applied."""
    sae = cfg.build(config.sae, AbstractSAE, key=key)
    for i, slot in enumerate(config.init):
        sae = cfg.build(slot, AbstractInit)(sae, jax.random.fold_in(key, i + 1))
    return sae


def dead_steps(dead_window: int, dead_tokens: int | None, batch: int) -> int:
    """Steps of `batch` tokens without firing after which a feature is dead; `dead_tokens` has precedence."""
    return dead_window if dead_tokens is None else -(-dead_tokens // batch)


def _schedule(value: Any) -> AbstractSchedule:
    return cfg.build(value, AbstractSchedule) if isinstance(value, dict) else as_schedule(value)
