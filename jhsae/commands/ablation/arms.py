"""The arms of a study: the poles, one-factor flips, full grids and random search; and which values apply to which pole.

A value that makes no difference to a pole is the pole's own, one that its axis excludes does not apply: both are listed
with their reason, and no arm has them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


class Designs:
    """The configs of a study's arms, each loaded once."""

    def __init__(self, config: Ablate) -> None:
        self.config = config
        self._loaded: dict[tuple[Arm, tuple[str, ...]], Train] = {}

    def train(self, arm: Arm, words: tuple[str, ...] = ()) -> Train:
        """The config of an arm, with the seeds and the folder of its pole.

        Args:
            arm: one of the study's.
            words: further overrides, the last of all.

        Raises:
            UserError: it cannot be loaded; names the pole, the axes and the values.
        """
        if (arm, words) not in self._loaded:
            self._loaded[arm, words] = self._load(arm, words)
        return self._loaded[arm, words]

    def _load(self, arm: Arm, words: tuple[str, ...]) -> Train:
        pole = self.config.poles[arm.pole]
        overrides = [*pole.overrides, *self.config.overrides]
        for axis, name in arm.picks:
            value = as_value(self.config.axes[axis][name])
            overrides += value.at.get(arm.pole, value.set)
        try:
            return cfg.load(Train, cfg.find(pole.train), [*overrides, *words])
        except UserError as error:
            raise UserError(f"{where(arm)}: {error}") from error


def where(arm: Arm) -> str:
    """The keys of an arm's values, for a message: ``axes.route.gumbel at pole scale``."""
    keys = [f"axes.{axis}.{name}" for axis, name in arm.picks]
    return f"{' with '.join(keys)} at pole {arm.pole}" if keys else f"poles.{arm.pole}"


def shapes_of(config: Train) -> AbstractSAE:
    """The SAE of a config as shapes: nothing is drawn or allocated."""
    return eqx.filter_eval_shape(build_sae, config, jax.random.key(0))


def check_builds(designs: Designs, arm: Arm) -> None:
    """Raises `UserError` where an arm cannot be built: its SAE, the parts in its slots, and its loss on shapes."""
    train = designs.train(arm)
    try:
        recipe = Recipe.of(train, cfg.build(train.data.normalize, AbstractNormalizer))
        check_run(recipe, shapes_of(train), train.data.batch)
    except UserError as error:
        raise UserError(f"{where(arm)} does not build: {error}") from error


def arms_of(designs: Designs) -> tuple[list[Arm], list[LeftOut]]:
    """All arms, the poles first, none twice; and the values that no arm of a pole has.

    Combinations of a grid or a search that do not build are among the latter.

    Raises:
        UserError: a pole, or a single value at a pole, that does not build.
    """
    config, left = designs.config, list[LeftOut]()
    flipped = list(config.axes) if config.flips is None else config.flips
    searched = (config.search.axes or list(config.axes)) if config.search else []
    used = [axis for axis in config.axes if axis in {*flipped, *config.grid, *searched}]
    poles = [Arm(pole) for pole in config.poles]
    for arm in poles:
        check_builds(designs, arm)
    options = {pole: _options(designs, pole, used, left) for pole in config.poles}
    singles = [Arm(pole, ((axis, name),)) for pole in config.poles for axis in flipped for name in options[pole][axis]]
    for arm in singles:
        check_builds(designs, arm)
    kept = dict.fromkeys([*poles, *singles])
    for arm in dict.fromkeys([*_grid(config, options), *_drawn(config, searched, options)]):
        if arm in kept:
            continue
        try:
            check_builds(designs, arm)
            kept[arm] = None
        except UserError as error:
            left.append(LeftOut(arm.pole, arm.change, str(error)))
    return list(kept), left


def _options(designs: Designs, pole: str, used: list[str], left: list[LeftOut]) -> dict[str, list[str]]:
    """The values of the used axes that a pole can take and has not; the others are added to `left`."""
    found: dict[str, list[str]] = {axis: [] for axis in used}
    for axis in used:
        for name, short in designs.config.axes[axis].items():
            value = as_value(short)
            reason = value.not_for.get(pole, value.not_for.get(ALL))
            if reason is None and not value.at.get(pole, value.set):
                raise UserError(
                    f"axes.{axis}.{name} has no overrides at pole {pole}; write set, at.{pole}, or not_for.{pole} with "
                    "the reason why it does not apply"
                )
            if reason is None and _is_own(designs.train(Arm(pole)), designs.train(Arm(pole, ((axis, name),)))):
                reason = OWN
            if reason is None:
                found[axis].append(name)
            else:
                left.append(LeftOut(pole, f"{axis}={name}", reason))
    return found


def _is_own(pole: Train, flipped: Train) -> bool:
    """Whether a value changes nothing: no key, or keys of the SAE alone that say what its parts do by default."""
    if cfg.config_hash(pole) == cfg.config_hash(flipped):
        return True
    if cfg.config_hash(replace(flipped, sae=pole.sae)) != cfg.config_hash(pole):
        return False
    try:
        own, other = shapes_of(pole), shapes_of(flipped)
    except UserError:  # which `check_builds` tells
        return False
    return bool(eqx.tree_equal(own, other))


Options = dict[str, dict[str, list[str]]]  # pole -> axis -> values


def _grid(config: Ablate, options: Options) -> Iterator[Arm]:
    """Every combination of the values of the axes of `grid`, the pole's own among them."""
    for pole in config.poles if config.grid else ():
        for names in itertools.product(*([None, *options[pole][axis]] for axis in config.grid)):
            yield _arm(pole, config.grid, names)


def _drawn(config: Ablate, axes: list[str], options: Options) -> Iterator[Arm]:
    """Different arms of a random search, in the order in which they were drawn."""
    for place, pole in enumerate(config.poles) if config.search else ():
        assert config.search is not None
        rng, seen = np.random.default_rng([config.search.seed, place]), {Arm(pole)}
        for _ in range(DRAWS * config.search.count):
            levels: list[list[Any]] = [[None, *options[pole][axis]] for axis in axes]
            arm = _arm(pole, axes, [level[rng.integers(len(level))] for level in levels])
            if arm not in seen and len(seen) <= config.search.count:
                seen.add(arm)
                yield arm


def _arm(pole: str, axes: list[str], names: Any) -> Arm:
    return Arm(pole, tuple((axis, name) for axis, name in zip(axes, names, strict=True) if name is not None))
