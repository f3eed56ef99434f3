"""Options, settings, stores, the teacher, runs and rows of results that the four experiments share."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import jax
from annotated_types import MinLen

from jhsae import config as cfg
from jhsae.commands import harvest, teach
from jhsae.data import Store
from jhsae.evals import parameters
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.folders import append_line
from jhsae.ranges import Count, Seed, Words, ranged
from jhsae.sae import AbstractSAE
from jhsae.teacher import Teacher
from jhsae.training.config import Train
from jhsae.training.run import train

HERE = Path(__file__).parent


@ranged
@dataclass(frozen=True)
class Settings:
    """What decides the numbers; embedded.yaml holds them for the embedded language model."""

    lm: Annotated[Words, "language model: a folder, a hub name, or 'embedded'"]
    harvest: Annotated[Words, "config of jhsae harvest for the training store"]
    heldout: Annotated[Words, "config of jhsae harvest for the held-out store"]
    teach: Annotated[Words, "config of jhsae teach"]
    start: Annotated[list[str], "overrides of it for the teacher that SAEs start from"]
    hierarchical: Annotated[Words, "config of jhsae train: an H-SAE from a teacher, in two stages"]
    flat: Annotated[Words, "config of jhsae train: a flat SAE"]
    rows: Annotated[Count, "training activations"]
    heldout_rows: Annotated[Count, "held-out activations"]
    sequences: Annotated[Count, "held-out sequences for the cross-entropy"]
    seeds: Annotated[list[Seed], MinLen(1), "one run per variant and seed"]
    steps: Annotated[list[Count], MinLen(2), "steps of the two stages; a flat SAE takes their sum"]
    batch: Annotated[Count, "tokens per step"]
    classes: Annotated[Count, "concepts with most words, on which absorption and steering are measured"]
    prompts: Annotated[Count, "prompts that are steered"]


TINY = ["rows=2000", "heldout_rows=3000", "sequences=2", "seeds=[0,1]", "steps=[2,4]", "batch=64"]
TINY += ["classes=3", "prompts=2"]


@dataclass(frozen=True)
class Place:
    """The settings, the folder of everything that is made, and the file of the rows."""

    settings: Settings
    out: Path
    results: Path

    @cached_property
    def store(self) -> Path:
        """The training store; made where it is not there."""
        return self._harvested("train", self.settings.harvest, self.settings.rows)

    @cached_property
    def heldout(self) -> Path:
        """The held-out store."""
        return self._harvested("heldout", self.settings.heldout, self.settings.heldout_rows)

    @cached_property
    def teacher(self) -> Path:
        """The teacher that SAEs start from, which has not seen a part of the words."""
        return teach.teach(self.teach_config([f"out={self.out / 'teacher'}", *self.settings.start]))

    def teach_config(self, words: list[str]) -> teach.Teach:
        """The config of a teacher of this language model."""
        path = cfg.find(self.settings.teach)
        return cfg.load(teach.Teach, path, [f"lm.path={self.settings.lm}", "out=none", *words])

    def run_config(self, variant: str, changes: list[str], seed: int, flat: bool = False) -> Train:
        """The config of one run; the sizes of an H-SAE are those of the store and the teacher."""
        s, words = self.settings, [f"data.store={self.store}", f"data.batch={self.settings.batch}"]
        words += [f"seed={seed}", f"data.seed={seed}", f"out={self.out / 'runs' / f'{variant}-{seed}'}"]
        words += [f"sae.embed={Store.open(self.store).embed}", "dead_window=100", "checkpoint_every=100000"]
        if flat:
            words += [f"sae.features={self._features()}"]
            words += [f"stages.0.steps={sum(s.steps)}", f"stages.0.learning_rate.steps={sum(s.steps)}"]
            words += [f"stages.0.learning_rate.warmup={max(1, sum(s.steps) // 10)}"]
            return cfg.load(Train, cfg.find(s.flat), [*words, *changes])
        parents, sub, _ = Teacher.load(self.teacher).up.shape
        words += [f"teacher={self.teacher}", f"sae.experts={parents}", f"sae.sub={sub}"]
        words += [f"stages.{i}.steps={steps}" for i, steps in enumerate(s.steps)]
        words += [f"sae.route.temperature.steps={sum(s.steps)}"]
        return cfg.load(Train, cfg.find(s.hierarchical), [*words, *changes])

    def _features(self) -> int:
        """Features of a flat SAE with as many parameters as the H-SAE."""
        slot = self.run_config("sizes", [], 0).sae
        sae = cfg.build(slot, AbstractSAE, key=jax.random.key(0))
        return (parameters(sae) - sae.embed) // (2 * sae.embed + 1)

    def rows(self, experiment: str) -> list[dict[str, Any]]:
        """The rows of an experiment in the order in which they were made."""
        found = read_lines(self.results) if self.results.exists() else []
        return [row for row in found if row["experiment"] == experiment]

    def record(
        self, experiment: str, variant: str, seed: Any, config_hash: str, measure: Callable[[], dict[str, Any]]
    ) -> None:
        """Appends the row of a measurement, unless the file has it already.

        A row has the hash of its own config and that of the settings, the commit and the versions.
        """
        key = {"experiment": experiment, "variant": variant, "seed": seed, "config_hash": config_hash}
        key["settings"] = cfg.config_hash(self.settings)
        if any(all(row[name] == value for name, value in key.items()) for row in self.rows(experiment)):
            return
        append_line(self.results, to_json(key | cfg.provenance() | measure()))
        print(f"{experiment}: {variant}, seed {seed}", flush=True)

    def _harvested(self, name: str, path: str, rows: int) -> Path:
        out = self.out / "store" / name
        words = [f"lm.path={self.settings.lm}", f"rows={rows}", f"out={out}"]
        harvest.harvest(cfg.load(harvest.Harvest, cfg.find(path), words))
        return out


def options(about: str | None) -> Place:
    """The options of a script."""
    top = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--config", type=Path, default=HERE / "embedded.yaml", help="settings, for another model")
    top.add_argument("--quick", action="store_true", help="a few steps on few rows: does it work?")
    top.add_argument("--out", type=Path, default=Path("runs/phases"), help="folder of stores and runs, reused")
    top.add_argument("--results", type=Path, default=HERE / "results.jsonl", help="file of the rows")
    top.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="overrides of the settings, such as lm=FOLDER")
    chosen = top.parse_args()
    settings = cfg.load(Settings, chosen.config, [*(TINY if chosen.quick else []), *chosen.changes])
    return Place(settings, chosen.out, chosen.results)


def trained(config: Train) -> Path:
    """The folder of a run, trained where it is not there."""
    return train(config)
