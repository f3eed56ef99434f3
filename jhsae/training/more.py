"""More steps for a finished run: ``jhsae train CONFIG out=RUN more=STEPS``.

They are one more stage of its config: the last stage again, at a constant learning rate, `more_rate` or the last one of
the run. So the config of the continued run says what was done, its hash is that of a run with these stages, and its
numbers are those of such a run that was never interrupted. The SAE of before stays beside it as ``sae-STEPS``.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.files.folders import Folder, is_bucket, local_copy, rename_synced, write_whole
from jhsae.schedule import AbstractSchedule
from jhsae.training.checkpoint import Checkpoints
from jhsae.training.config import Train

NAME = "more"
USEFUL = 1e-3  # of the peak: a smaller last rate would change next to nothing
SAMPLES = 1000


def extended(config: Train) -> Train:
    """The config whose last stage is `more`; `config` itself where that is 0.

    Raises:
        UserError: `more_rate` without `more`, or no `more_rate` for a run that has decayed to next to nothing.
    """
    if not config.more:
        if config.more_rate is not None:
            raise UserError("more_rate is the learning rate of further steps, but more is 0; write more=STEPS too")
        return config
    rate = _last_rate(config) if config.more_rate is None else config.more_rate
    names = {stage.name for stage in config.stages}
    name = next(n for n in (NAME, *(f"{NAME} {i}" for i in range(2, len(names) + 3))) if n not in names)
    stage = replace(config.stages[-1], name=name, steps=config.more, learning_rate=rate)
    return replace(config, stages=[*config.stages, stage], more=0, more_rate=None)


def reopen(folder: Folder, base: Train, config: Train) -> None:
    """Makes a finished run of `base` one of `config`, its extension, that is not finished; one of `config` stays.

    The folder must be owned. Killed in between it is done again by the same command.

    Raises:
        UserError: There is no finished run of `base`, or not its last checkpoint.
    """
    without = f"write the config of a finished run, or leave more={base.more} out"
    if not (folder / "config.yaml").exists():
        raise UserError(f"more={base.more} continues a finished run, but {folder} holds none; {without}")
    if is_bucket(folder):
        raise UserError(f"{folder} is in a bucket, where a finished run cannot be continued; copy it to a local folder")
    with local_copy(folder / "config.yaml") as file:
        there = replace(cfg.read(Train, file, cfg.packages(config)), mesh=config.mesh)
    if cfg.config_hash(there) == cfg.config_hash(config):
        return
    before = _shorter(there, base, config)
    if before is None:
        found = cfg.diff(there, replace(base, more=0, more_rate=None))
        raise UserError(
            f"{folder} holds a run of another config ({'; '.join(found[:4]) or 'it has more steps'}); {without}"
        )
    steps = sum(stage.steps for stage in before.stages)
    with Checkpoints(folder / "checkpoints", None) as checkpoints:
        latest = checkpoints.latest()
    if latest != steps:
        is_at = "has no checkpoint" if latest is None else f"is at step {latest:,} of {steps:,}"
        raise UserError(
            f"{folder} {is_at}, so that it cannot be continued; finish it first, by the command without more"
        )
    if (folder / "sae").exists():
        rename_synced(Path(folder / "sae"), Path(folder / f"sae-{steps}"))
    write_whole(folder / "config.yaml", cfg.to_yaml(config))


def _shorter(there: Train, base: Train, config: Train) -> Train | None:
    """The config in the folder, where it is `base`, or `config` with fewer steps in its last stage; else None."""
    last = config.stages[-1]
    fewer = [replace(last, steps=there.stages[-1].steps)] if there.stages[-1].steps < last.steps else []
    known = [list(base.stages), *([*base.stages, stage] for stage in fewer)]
    found = any(cfg.config_hash(there) == cfg.config_hash(replace(config, stages=stages)) for stages in known)
    return there if found else None


def _last_rate(config: Train) -> float:
    """The learning rate of the last step. `UserError`: it is next to nothing beside the peak of its stage."""
    stage, total = config.stages[-1], sum(stage.steps for stage in config.stages)
    if not isinstance(stage.learning_rate, dict):
        return float(stage.learning_rate)
    schedule = cfg.build(stage.learning_rate, AbstractSchedule)
    first = total - stage.steps
    steps = np.unique(np.linspace(first, total - 1, min(SAMPLES, stage.steps)).astype(int)).tolist()
    last, peak = float(schedule(total - 1)), max(float(schedule(step)) for step in steps)
    if last <= USEFUL * peak:
        raise UserError(
            f"the learning rate has fallen from {peak:.3g} to {last:.3g} at the last step, at which further steps "
            f"would change nothing; write more_rate={peak / 10:.2g} or so"
        )
    return last
