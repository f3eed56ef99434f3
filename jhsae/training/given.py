"""The rows of an array and the starting values of an SAE that a script gives to `fit`, as parts of a run's config.

A config cannot hold them, so it holds their hashes: a run folder that `fit` wrote says what it was trained on, and is
resumed by the same script alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from jhsae import config as cfg
from jhsae.data.source import AbstractBatches, AbstractSource, SourceInfo
from jhsae.data.statistics import Running
from jhsae.errors import UserError
from jhsae.init import AbstractInit
from jhsae.leaf import describe
from jhsae.parallel.mesh import MeshShape
from jhsae.ranges import Count, Words
from jhsae.sae import AbstractSAE
from jhsae.sae.io import described as sae_slot
from jhsae.schedule import AbstractSchedule
from jhsae.training.config import Data, Train
from jhsae.training.run import Prepared

BLOCK = 4096
BY_SCRIPT = "were given by a script to jhsae.fit; run that script again"


class GivenRows(AbstractSource):
    """The rows of an array that a script has in memory.

    Args:
        rows: Their number.
        embed: Their width.
        sha256: Of their bytes; None to compute it when it is asked for.
        x: The rows; None where a config names them, which can do nothing with them.
        mesh: The devices, which share a batch as of any source.
    """

    path = "array"

    def __init__(
        self,
        rows: Count,
        embed: Count,
        sha256: str | None = None,
        x: Float[np.ndarray, "rows embed"] | None = None,
        mesh: Mesh | None = None,
    ):
        if x is None:
            raise UserError(f"the rows of this run {BY_SCRIPT}, or write data.live=null data.store=FOLDER out=...")
        self._x, self._rows, self._embed, self._sha256 = x, rows, embed, sha256

    def slot(self) -> dict[str, Any]:
        """Its slot in a config."""
        found = {"rows": self._rows, "embed": self._embed, "sha256": self.identity()}
        return {"_target_": "jhsae.training.given.GivenRows", **found}

    @property
    def manifest(self) -> SourceInfo:
        running = Running.empty(self._embed)
        for start in range(0, self._rows, BLOCK):
            running = running.merge(Running.of(self._x[start : start + BLOCK]))
        return SourceInfo(**asdict(running.summary()), model="array", layer=0, rows=self._rows)

    @property
    def rows(self) -> int:
        return self._rows

    def read(self, start: int, stop: int) -> Float[np.ndarray, "rows embed"]:
        return self._x[start:stop].astype(np.float32)

    def identity(self) -> str:
        if self._sha256 is None:
            self._sha256 = sha256(np.ascontiguousarray(self._x).view(np.uint8).data).hexdigest()
        return self._sha256

    def batches(self, batch: int, seed: int) -> "GivenBatches":
        return GivenBatches(self._x, batch, seed)


class GivenBatches(AbstractBatches):
    """The rows of an array in random order, again and again; what is left of an epoch below a batch is skipped."""

    def __init__(self, x: Float[np.ndarray, "rows embed"], batch: int, seed: int):
        self._x, self._batch, self._seed = x, batch, seed
        self._done, self._epoch, self._order = 0, -1, np.empty(0, np.int64)
        self._rng = np.random.default_rng(seed)

    def __next__(self) -> Any:
        epoch, place = divmod(self._done, len(self._x) // self._batch)
        while self._epoch < epoch:
            self._order, self._epoch = self._rng.permutation(len(self._x)), self._epoch + 1
        self._done += 1
        return self._x[self._order[place * self._batch : (place + 1) * self._batch]]

    def get_state(self) -> dict[str, Any]:
        return {"batches": self._done}

    def set_state(self, state: dict[str, Any]) -> None:
        self._done, self._epoch = int(state["batches"]), -1
        self._rng = np.random.default_rng(self._seed)


class GivenSAE(AbstractInit):
    """The starting values of an SAE that a script gave.

    Args:
        sha256: Of the bytes of its parameters, by their paths.
    """

    sha256: Words = eqx.field(static=True)

    @classmethod
    def of(cls, sae: AbstractSAE) -> "GivenSAE":
        """Those of `sae`."""
        arrays, found = eqx.filter(sae, eqx.is_array), sha256()
        for leaf, array in zip(jax.tree.leaves(describe(arrays)), jax.tree.leaves(arrays), strict=True):
            found.update(f"{leaf.path} {array.shape} {array.dtype}".encode())
            found.update(np.asarray(array).tobytes())
        return cls(found.hexdigest())

    def __call__(self, sae: AbstractSAE, key: Key[Array, ""]) -> AbstractSAE:
        raise UserError(f"the starting values of this run {BY_SCRIPT}, or write init=[] out=... for random ones")


def described(
    prepared: Prepared, sae: AbstractSAE, optimizer: Any, out: str, batch: int, mesh: MeshShape, **options: Any
) -> Train:
    """The config of what a script gives: slots are read off its parts.

    Args:
        prepared: What is trained.
        sae: Its start.
        optimizer: The slot of the optimizer.
        out: The run folder.
        batch: Rows per update.
        mesh: The devices.
        **options: Further keys.

    Raises:
        UserError: A part that no slot describes.
    """
    if not isinstance(optimizer, Mapping):
        raise UserError(
            "optimizer is an optax transformation, which does not say what it is, so that no run folder can record it; "
            "write its slot, such as optimizer={'_target_': 'jhsae.optimizer.adam', 'b1': 0.9}, or leave out=... out"
        )
    recipe, store = prepared.recipe, prepared.store
    place = {"live": store.slot()} if isinstance(store, GivenRows) else {"store": store.path}
    return Train(
        out=out,
        data=Data(batch, **place, normalize=cfg.slot_of(recipe.normalizer), seed=options["seed"]),
        sae=sae_slot(sae, trained=False),
        objective={name: cfg.slot_of(term) for name, term in recipe.terms.items()},
        stages=[
            replace(stage, learning_rate=_plain(stage.learning_rate), weights=_plain_values(stage.weights))
            for stage in recipe.stages
        ],
        weights=_plain_values(recipe.weights),
        init=[cfg.slot_of(GivenSAE.of(sae))],
        constraint=cfg.slot_of(recipe.constraint),
        optimizer=dict(optimizer),
        mesh=mesh,
        resampling=cfg.slot_of(recipe.resampling),
        feature_sampling_window=recipe.feature_sampling_window,
        precision=recipe.precision,
        **options,
    )


def _plain(value: Any) -> Any:
    """A number or the slot of a schedule."""
    return cfg.slot_of(value) if isinstance(value, AbstractSchedule) else value


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in values.items()}
