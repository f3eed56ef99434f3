"""The next runs of a study, as a function of the rows that there are: any process that reads them finds the same.

Every arm goes through up to three steps: its size, where L0 is matched by trained pilots; its learning rate; its seeds
on test rows. Rates and sizes are chosen at the first seed, on validation rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jhsae import config as cfg
from jhsae.commands.ablation import rates, sizes
from jhsae.commands.ablation.arms import Arm, Designs, arms_of, shapes_of, where
from jhsae.commands.ablation.config import Ablate
from jhsae.commands.ablation.heldout import Kind
from jhsae.errors import UserError
from jhsae.training.config import Train

Rows = Mapping[tuple[str, str], dict[str, Any]]  # (config hash, kind) -> row
DIVERGED = "diverged"  # key of a row whose training ended without a finite loss: the message


class Run(NamedTuple):
    """One row that is wanted: an arm at a size, a peak of the learning rate and a seed, measured on rows of a kind."""

    arm: Arm
    size: tuple[str, ...]
    rate: float | None
    seed: int
    kind: Kind


class Step(NamedTuple):
    """Where an arm stands.

    Args:
        runs: those that are wanted now.
        left: how many it needs from now on, estimated.
        size: overrides that were chosen for it.
        rate: the peak that was chosen; None for that of its config, or where it is not known yet.
        failure: why it has no result; None where it has one, or may get one.
    """

    runs: list[Run]
    left: int
    size: tuple[str, ...] = ()
    rate: float | None = None
    failure: str | None = None


class _WantedError(Exception):
    """Rows that a choice waits for."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs


class Study:
    """A config, its arms, and where they stand.

    Args:
        config: with poles.
        arms: those of the config, where another process has found them; None to find and check them.

    Raises:
        UserError: an axis, a value or a size that cannot be.
    """

    def __init__(self, config: Ablate, arms: list[Arm] | None = None) -> None:
        self.config, self.designs = config, Designs(config)
        self.arms, self.left_out = arms_of(self.designs) if arms is None else (arms, [])
        self.rates = [float(rate) for rate in config.rates]
        for arm in self.arms if arms is None else ():
            self.solved(arm)
            if self.rates:
                rates.peak_of(self.designs.train(arm))

    def reference(self, arm: Arm) -> Arm:
        """The pole whose budget `arm` gets."""
        return Arm(self.config.reference or arm.pole)

    @cache  # noqa: B019  (a study lives as long as its process)
    def settings(self, arm: Arm, size: tuple[str, ...], rate: float | None, seed: int) -> Train:
        """The config of a run, in a folder that its hash names."""
        found = self.designs.train(arm, size)
        stages = found.stages if rate is None else rates.at_peak(found, rate)
        found = replace(found, seed=seed, data=replace(found.data, seed=seed), stages=stages)
        return replace(found, out=str(Path(self.config.out) / "runs" / cfg.config_hash(found)))

    def key(self, run: Run) -> tuple[str, str]:
        """What the row of a run is found by: the config hash, and the kind of rows."""
        return Path(self.settings(*run[:4]).out).name, run.kind

    @cache  # noqa: B019
    def solved(self, arm: Arm) -> tuple[str, ...]:
        """The overrides that give an arm the parameters, encoder MACs or tokens of its reference.

        Raises:
            UserError: no size does.
        """
        match, reference, seed = self.config.match, self.reference(arm), self.config.seeds[0]
        if match is None or match == "l0" or arm == reference:
            return ()
        target = sizes.budgets(self.settings(reference, (), None, seed))[match]
        found = self.settings(arm, (), None, seed)
        if match == "tokens":
            return tuple(sizes.scaled_steps(found, target))
        key = sizes.key_of(found, self.config.solve, where(arm))

        def cost(size: int) -> float | None:
            try:
                return sizes.budgets(self.designs.train(arm, (f"{key}={size}",)))[match]
            except UserError:  # larger than what it is a part of
                return None

        start = sizes.value_at(cfg.to_dict(found), key)
        assert start is not None  # which is why key_of gave it
        what = f"{where(arm)}: {key}"
        return (f"{key}={sizes.solved(cost, int(start), target, self.config.off_l0, what)}",)

    def steps(self, rows: Rows) -> Iterator[tuple[Arm, Step]]:
        """Where every arm stands."""
        for arm in self.arms:
            yield arm, self.step(arm, rows)

    def step(self, arm: Arm, rows: Rows) -> Step:
        """Where one arm stands."""
        seeds = self.config.seeds
        try:
            target = self._l0_of_reference(arm, rows)
            size = self.solved(arm) if target is None else self._size(arm, target, rows)
            rate = self._rate(arm, size, target, rows)
        except _WantedError as wanted:
            return Step(wanted.runs, max(len(wanted.runs), len(self.rates)) + len(seeds))
        except UserError as error:
            return Step([], 0, failure=str(error))
        runs = [Run(arm, size, rate, seed, "test") for seed in seeds]
        missing = [run for run in runs if self.key(run) not in rows]
        diverged = [row[DIVERGED] for run in runs if DIVERGED in (row := rows.get(self.key(run), {}))]
        return Step(missing, len(missing), size, rate, f"training diverged: {diverged[0]}" if diverged else None)

    def _l0_of_reference(self, arm: Arm, rows: Rows) -> float | None:
        """The L0 that an arm is to have; None where it is not matched, and for the reference itself."""
        reference = self.reference(arm)
        if self.config.match != "l0" or arm == reference:
            return None
        rate = self._rate(reference, (), None, rows)
        found = self._measured(Run(reference, (), rate, self.config.seeds[0], "validation"), rows)
        if found is None:
            raise UserError(f"{where(reference)}, whose L0 it is to have, diverged in training")
        return found[1]

    def _size(self, arm: Arm, target: float, rows: Rows) -> tuple[str, ...]:
        """The override that gives an arm the L0 `target`, found by pilots at the middle rate."""
        seed, peaks = self.config.seeds[0], sorted(self.rates)
        rate = peaks[len(peaks) // 2] if peaks else None
        settings = self.settings(arm, (), None, seed)
        key = sizes.key_of(settings, self.config.solve, where(arm))
        start = sizes.value_at(cfg.to_dict(settings), key)
        assert start is not None  # which is why key_of gave it
        tried: list[sizes.Trial] = []
        while not any(abs(l0 / target - 1) <= self.config.off_l0 for _, l0 in tried):
            size = sizes.next_size(tried, start, target, key)
            if size is None or not self._builds(arm, f"{key}={size:g}"):
                best, l0 = sizes.nearest(tried, target)
                raise UserError(
                    f"{where(arm)}: {key} has no size with an L0 of {target:.3g} (the nearest is {l0:.3g}, at "
                    f"{best:g}); name another key in solve, or write a larger off_l0"
                )
            found = self._measured(Run(arm, (f"{key}={size:g}",), rate, seed, "validation"), rows)
            if found is None:
                raise UserError(f"{where(arm)}: training diverged at {key}={size:g}")
            tried.append((size, found[1]))
        return (f"{key}={sizes.nearest(tried, target)[0]:g}",)

    def _builds(self, arm: Arm, word: str) -> bool:
        """Whether an arm has an SAE with this override: a size may be more than there is to select from."""
        try:
            shapes_of(self.designs.train(arm, (word,)))
        except UserError:
            return False
        return True

    def _rate(self, arm: Arm, size: tuple[str, ...], target: float | None, rows: Rows) -> float | None:
        """The best peak of the learning rate; None where it is not searched."""
        config, found = self.config, dict[float, tuple[float, float] | None]()
        if not self.rates:
            return None
        while more := rates.next_rates(found, self.rates, config.more_rates, target, config.off_l0):
            runs = [Run(arm, size, rate, config.seeds[0], "validation") for rate in more]
            if missing := [run for run in runs if self.key(run) not in rows]:
                raise _WantedError(missing)
            found |= {rate: self._measured(run, rows) for rate, run in zip(more, runs, strict=True)}
        best = rates.best_rate(found, target, config.off_l0)
        if best is None:
            raise UserError(f"{where(arm)}: training diverged at every learning rate ({sorted(found)})")
        return best

    def _measured(self, run: Run, rows: Rows) -> tuple[float, float] | None:
        """(explained variance, L0) of a run; None where it diverged."""
        row = rows.get(self.key(run))
        if row is None:
            raise _WantedError([run])
        if DIVERGED in row:
            return None
        ev, l0 = (row["metrics"].get(name) for name in ("ev_r2", "l0"))
        if ev is None or l0 is None:
            raise UserError(
                f"{where(run.arm)}: the explained variance of its validation rows is undefined, as where all rows are "
                "equal; write other rows, or rates=[] and no match"
            )
        return ev, l0
