"""The configs of runs that are trained together: several YAMLs of ``jhsae train``, or one with ``runs:``.

out: runs/layers                 # every run has a folder of its name in it
train: live.yaml                 # the config that the runs start from
overrides: [stages.0.steps=500]  # of every run
runs:
  early: [data.live.layer=1]
  late: [data.live.layer=3, sae.features=2048]
  gated: {train: flat/gated.yaml, overrides: [data.store=stores/x]}
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from jhsae import config as cfg
from jhsae.errors import UserError
from jhsae.ranges import Words, ranged
from jhsae.training.config import Train


@ranged
@dataclass(frozen=True)
class RunOfMany:
    """A run that starts from a config of its own; one that starts from the common one is a list of overrides."""

    train: Annotated[Words, "its config of jhsae train"]
    overrides: Annotated[list[str], "overrides of it"] = field(default_factory=list)


@ranged
@dataclass(frozen=True)
class Many:
    """Several runs in one YAML."""

    out: Annotated[Words, "the folder of the run folders"]
    runs: Annotated[dict[str, list[str] | RunOfMany], MinLen(1), "name -> overrides, or {train: CONFIG, overrides}"]
    train: Annotated[Words | None, "the config of jhsae train that runs start from"] = None
    overrides: Annotated[list[str], "overrides that every run has; its own come after them"] = field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        for name, run in self.runs.items():
            if not name or name in (".", "..") or "/" in name or "\\" in name:
                raise UserError(f"runs has the name {name!r}, expected one that a folder of {self.out} can have")
            if self.train is None and isinstance(run, list):
                raise UserError(
                    f"runs.{name} is a list of overrides, but train names no config that it is of; write train=CONFIG"
                )

    def configs(self, overrides: Sequence[str] = ()) -> list[Train]:
        """The config of every run; `overrides` come after those of the file."""
        found = []
        for name, run in self.runs.items():
            own = run if isinstance(run, RunOfMany) else RunOfMany(self.train or "", run)
            words = [*self.overrides, *own.overrides, *overrides, f"out={self.out.rstrip('/')}/{name}"]
            try:
                found.append(cfg.load(Train, cfg.find(own.train), words))
            except UserError as error:
                raise UserError(f"runs.{name}: {error}") from error
        return found


def load_many(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> list[Train]:
    """The configs of the runs in YAMLs of ``jhsae train``, and in those with ``runs:``.

    Args:
        paths: The YAMLs, or names of configs of this package.
        overrides: Overrides of every run; ``out``, ``train`` and ``overrides`` are those of a YAML with ``runs:``.

    Raises:
        UserError: As of `jhsae.config.load`.
    """
    found = []
    for path in map(cfg.find, map(str, paths)):
        if cfg.has_key(path, "runs"):
            its = [word for word in overrides if re.split(r"[.\[=]", word, maxsplit=1)[0] in Many.__annotations__]
            found += cfg.load(Many, path, its).configs([word for word in overrides if word not in its])
        else:
            found.append(cfg.load(Train, path, overrides))
    return found
