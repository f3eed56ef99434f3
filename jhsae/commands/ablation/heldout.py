"""Held-out rows, split into validation and test by whole sequences, and what a run is measured by on each.

Rates and sizes are chosen on the validation rows; everything that is reported is of the test rows. Of a world, both
are draws of their own, and blocks of rows stand for sequences.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jhsae import evals, lm
from jhsae.commands.ablation.config import Ablate
from jhsae.data import AbstractNormalizer, Store, special_ids
from jhsae.errors import UserError
from jhsae.evals.splice import Replace
from jhsae.evals.truth import truth
from jhsae.evals.world import NUMBERS, ROWS, draws
from jhsae.features.origin import check_origin, language_model
from jhsae.sae import AbstractSAE
from jhsae.training.checkpoint import load_sae
from jhsae.worlds import World, load_world
from jhsae.worlds.source import identity as world_identity

Kind = Literal["validation", "test"]
BATCH = 4096
BLOCK = 256  # rows of a world that stand for a sequence
DRAWS = {"test": 0, "validation": 1}  # seeds; that of the test rows is the default of jhsae evaluate
PARTS = ("levels", "roots", "tree", "edges", "absorption")  # of `truth`, kept whole in a row


class HeldOut(ABC):
    """Rows of both kinds, and an SAE's numbers on them."""

    def measure(self, folder: Path, kind: Kind, trust: tuple[str, ...]) -> dict[str, Any]:
        """The metrics of a run, and for test rows the explained variance of every unit.

        Args:
            folder: of the finished run.
            kind: which rows.
            trust: packages whose parts the run may name.
        """
        sae, normalizer, about = load_sae(folder, trust=[*trust])
        self.check(sae, about, folder)
        return self.numbers(sae, normalizer, kind)

    def numbers(self, sae: AbstractSAE, normalizer: AbstractNormalizer, kind: Kind) -> dict[str, Any]:
        """What `measure` gives, of an SAE in memory."""
        metrics, _ = evals.fidelity(sae, normalizer, self.batches(kind), self.mean(kind))
        metrics.pop("density")
        if kind == "validation":
            return {"metrics": metrics}
        metrics["sibling_cosine"] = evals.likeness(sae)["sibling_cosine"]
        parts, more = self.more(sae, normalizer)
        units = evals.explained_by_unit(sae, normalizer, self.batches(kind), self.units(kind), self.mean(kind))
        return {"metrics": metrics | more, **parts, "units": {"ev_r2": units}}

    @abstractmethod
    def check(self, sae: AbstractSAE, about: dict[str, Any], folder: Path) -> None:
        """Raises `UserError` where a run was trained on something else."""

    @abstractmethod
    def batches(self, kind: Kind) -> Iterator[np.ndarray]:
        """The rows of a kind, [rows, embed] each."""

    @abstractmethod
    def units(self, kind: Kind) -> np.ndarray:
        """The sequence, or block, of every row."""

    @abstractmethod
    def mean(self, kind: Kind) -> np.ndarray:
        """The mean that explained variance is centred on, [embed]."""

    @abstractmethod
    def more(self, sae: AbstractSAE, normalizer: AbstractNormalizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """Further parts of a row, and further metrics, on the test rows."""

    @abstractmethod
    def identity(self) -> str:
        """What the rows are, for the hash of an evaluation."""


class StoredRows(HeldOut):
    """The rows of a held-out store, with a language model or without; the last sequences are for validation."""

    def __init__(self, config: Ablate, path: str) -> None:
        self.config, self.store = config, Store.open(path)
        rows = min(config.rows or self.store.rows, self.store.rows)
        self.sequence = self.store.index(0, rows)[:, 0]
        known = np.unique(self.sequence)
        kept = len(known) - round(config.validation * len(known))
        if not 0 < kept < len(known):
            raise UserError(
                f"{path} has {len(known)} sequences in {rows:,} rows, of which validation={config.validation:g} leaves "
                f"{kept} for the test; write another validation, or a larger store"
            )
        self.first = int(known[kept])  # sequence of the validation rows

    @cached_property
    def model(self) -> lm.LanguageModel | None:
        return None if self.config.lm is None else language_model(self.config.lm, self.store)

    @cached_property
    def of_kind(self) -> dict[str, np.ndarray]:
        x, late = self.store.read(0, len(self.sequence)), self.sequence >= self.first
        return {"validation": x[late], "test": x[~late]}

    def check(self, sae: AbstractSAE, about: dict[str, Any], folder: Path) -> None:
        check_origin(sae, about, self.store, str(folder))

    def batches(self, kind: Kind) -> Iterator[np.ndarray]:
        x = self.of_kind[kind]
        return (x[start : start + BATCH] for start in range(0, len(x), BATCH))

    def units(self, kind: Kind) -> np.ndarray:
        return self.sequence[(self.sequence >= self.first) == (kind == "validation")]

    def mean(self, kind: Kind) -> np.ndarray:
        return self.store.manifest.mean

    def more(self, sae: AbstractSAE, normalizer: AbstractNormalizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """CE recovered on the first test sequences."""
        if self.model is None:
            return {}, {}
        tokens = self.store.tokens()[: self.first][: self.config.sequences].astype(np.int64)
        replaced: dict[str, Replace] = {"sae": evals.Spliced(sae, normalizer)}
        special = list(special_ids(self.model.tokenizer))
        results = evals.splice(self.model.model, self.store.manifest.layer, replaced, tokens, special)
        return {}, evals.recovered(results, "sae")

    def identity(self) -> str:
        return self.store.identity()


class DrawnRows(HeldOut):
    """Draws of a world, of another seed for each kind; its truth is compared with on the test rows."""

    def __init__(self, config: Ablate, path: str) -> None:
        self.config, self.path, self.world = config, path, load_world(path)
        total = config.rows or ROWS
        share = round(config.validation * total)
        self.rows: dict[str, int] = {"validation": max(1, share), "test": max(1, total - share)}

    @cached_property
    def of_kind(self) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        return {
            kind: [(np.asarray(x), np.asarray(codes)) for x, codes in draws(self.world, rows, DRAWS[kind])]
            for kind, rows in self.rows.items()
        }

    def check(self, sae: AbstractSAE, about: dict[str, Any], folder: Path) -> None:
        evals.check_world(about, self.world, self.path, str(folder))

    def batches(self, kind: Kind) -> Iterator[np.ndarray]:
        return (x for x, _ in self.of_kind[kind])

    def units(self, kind: Kind) -> np.ndarray:
        return np.arange(self.rows[kind]) // BLOCK

    def mean(self, kind: Kind) -> np.ndarray:
        return sum(x.sum(axis=0, dtype=np.float64) for x in self.batches(kind)) / self.rows[kind]

    def more(self, sae: AbstractSAE, normalizer: AbstractNormalizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """What of the world was recovered."""
        world: World = self.world
        found = truth(sae, normalizer, world.features, world.hierarchy, self.of_kind["test"])
        return {"truth": {name: found[name] for name in PARTS}}, {name: found[name] for name in NUMBERS}

    def identity(self) -> str:
        return world_identity(self.world)


def held_out(config: Ablate) -> HeldOut:
    """The held-out rows of a study."""
    if config.store is not None:
        return StoredRows(config, config.store)
    assert config.truth is not None  # one of the two is there
    return DrawnRows(config, config.truth)
