"""The arms of a study: the poles, one-factor flips, full grids and random search; and which values apply to which pole.

A value that makes no difference to a pole is the pole's own, one that its axis excludes does not apply: both are listed
with their reason, and no arm has them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from jhsae import config as cfg
from jhsae.commands.ablation.config import ALL, Ablate, as_value
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.sae import AbstractSAE
from jhsae.training.checks import check_run
from jhsae.training.config import Train
from jhsae.training.recipe import Recipe, build_sae

OWN = "the pole's own"
DRAWS = 50  # per arm of a random search, so that one whose arms are fewer than asked for ends


@dataclass(frozen=True)
class Arm:
    """A pole, and the values of axes that differ from it: none for the pole itself."""

    pole: str
    picks: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """``pole`` or ``pole: axis=value, axis=value``."""
        return f"{self.pole}: {self.change}" if self.picks else self.pole

    @property
    def change(self) -> str:
        """``axis=value, axis=value``; empty for the pole itself."""
        return ", ".join(f"{axis}={value}" for axis, value in self.picks)


class LeftOut(NamedTuple):
    """A value, or a combination of values, that no arm of a pole has, and why."""

    pole: str
    change: str
    reason: str


def train_config(config: Ablate, arm: Arm, words: list[str] | None = None) -> Train:
    """The config of an arm, without folder and seed.

    Args:
        config: of the study.
        arm: one of its arms.
        words: further overrides, the last of all.

    Raises:
        UserError: it cannot be loaded; names the pole, the axes and the values.
    """
    pole = config.poles[arm.pole]
    overrides = [*pole.overrides, *config.overrides]
    for axis, name in arm.picks:
        overrides += as_value(config.axes[axis][name]).set
    try:
        return cfg.load(Train, cfg.find(pole.train), [*overrides, *(words or [])])
    except UserError as error:
        raise UserError(f"{where(arm)}: {error}") from error


def where(arm: Arm) -> str:
    """The keys of an arm's values, for a message: ``axes.route.gumbel at pole scale``."""
    keys = [f"axes.{axis}.{name}" for axis, name in arm.picks]
    return f"{' with '.join(keys)} at pole {arm.pole}" if keys else f"poles.{arm.pole}"


def shapes_of(config: Train) -> AbstractSAE:
    """The SAE of a config as shapes: nothing is drawn or allocated."""
    return eqx.filter_eval_shape(build_sae, config, jax.random.key(0))


def check_builds(config: Ablate, arm: Arm) -> None:
    """Raises `UserError` where an arm cannot be built: its SAE, the parts in its slots, and its loss on shapes."""
    train = train_config(config, arm)
    try:
        recipe = Recipe.of(train, cfg.build(train.data.normalize, AbstractNormalizer))
        check_run(recipe, shapes_of(train), train.data.batch)
    except UserError as error:
        raise UserError(f"{where(arm)} does not build: {error}") from error


def arms_of(config: Ablate) -> tuple[list[Arm], list[LeftOut]]:
    """All arms, the poles first, none twice; and the values that no arm of a pole has.

    Combinations of a grid or a search that do not build are among the latter.

    Raises:
        UserError: a pole, or a single value at a pole, that does not build.
    """
    found, left = [Arm(pole) for pole in config.poles], list[LeftOut]()
    for arm in found:
        check_builds(config, arm)
    options = {pole: _options(config, pole, left) for pole in config.poles}
    flipped = config.axes if config.flips is None else config.flips
    singles = [Arm(pole, ((axis, name),)) for pole in config.poles for axis in flipped for name in options[pole][axis]]
    for arm in singles:
        check_builds(config, arm)
    several = dict.fromkeys([*_grid(config, options), *_drawn(config, options)])
    kept = dict.fromkeys([*found, *singles])
    for arm in several:
        if arm in kept:
            continue
        try:
            check_builds(config, arm)
            kept[arm] = None
        except UserError as error:
            left.append(LeftOut(arm.pole, arm.change, str(error)))
    return list(kept), left


def _options(config: Ablate, pole: str, left: list[LeftOut]) -> dict[str, list[str]]:
    """The values of every axis that a pole can take and has not; the others are added to `left`."""
    own = cfg.config_hash(train_config(config, Arm(pole)))
    found: dict[str, list[str]] = {}
    for axis, values in config.axes.items():
        found[axis] = []
        for name, value in values.items():
            excluded = as_value(value).not_for
            reason = excluded.get(pole, excluded.get(ALL))
            if reason is None and cfg.config_hash(train_config(config, Arm(pole, ((axis, name),)))) == own:
                reason = OWN
            if reason is None:
                found[axis].append(name)
            else:
                left.append(LeftOut(pole, f"{axis}={name}", reason))
    return found


def _grid(config: Ablate, options: dict[str, dict[str, list[str]]]) -> Iterator[Arm]:
    """Every combination of the values of the axes of `grid`, the pole's own among them."""
    for pole in config.poles if config.grid else ():
        for names in itertools.product(*([None, *options[pole][axis]] for axis in config.grid)):
            yield _arm(pole, config.grid, names)


def _drawn(config: Ablate, options: dict[str, dict[str, list[str]]]) -> Iterator[Arm]:
    """Different arms of a random search, in the order in which they were drawn."""
    if config.search is None:
        return
    axes = config.search.axes or list(config.axes)
    for place, pole in enumerate(config.poles):
        rng, seen = np.random.default_rng([config.search.seed, place]), {Arm(pole)}
        for _ in range(DRAWS * config.search.count):
            levels: list[list[Any]] = [[None, *options[pole][axis]] for axis in axes]
            arm = _arm(pole, axes, [level[rng.integers(len(level))] for level in levels])
            if arm not in seen and len(seen) <= config.search.count:
                seen.add(arm)
                yield arm


def _arm(pole: str, axes: list[str], names: Any) -> Arm:
    return Arm(pole, tuple((axis, name) for axis, name in zip(axes, names, strict=True) if name is not None))
