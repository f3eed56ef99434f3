"""The stages of a run, built: one code path from a `Recipe` to compiled steps, for ``jhsae train`` and for `fit`."""

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
    """What the steps of a run compute with: the keys of a training config that decide it, their slots built.

    A schedule in `weights` or in a stage may still be a slot. `dead_window` and `feature_sampling_window` count steps.
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
        """What the steps of a config compute with."""
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
        """What one stage computes with. `UserError` for a weight that belongs to no term."""
        weights = {name: _schedule(value) for name, value in {**self.weights, **stage.weights}.items()}
        objective = Objective(self.terms, weights)
        rate = _schedule(stage.learning_rate)
        return StageModules(objective, rate, self.constraint, self.normalizer, self.resampling)

    def stage(self, stage: StageConfig, sae: AbstractSAE, mesh: Mesh) -> Stage:
        """One stage, ready to be compiled for `sae`, or for its shapes.

        Raises `UserError` for a pattern in ``freeze`` that matches no parameter.
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
    """After how many steps of `batch` tokens a feature is dead; `dead_tokens` counts, where it is given."""
    return dead_window if dead_tokens is None else -(-dead_tokens // batch)


def _schedule(value: Any) -> AbstractSchedule:
    return cfg.build(value, AbstractSchedule) if isinstance(value, dict) else as_schedule(value)
