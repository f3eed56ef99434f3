"""Feature splitting: how many latents share a true feature as SAEs grow (Bricken et al. 2023; arXiv 2409.14507)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import sparse

from jhsae.data import AbstractNormalizer, ArrayRows
from jhsae.errors import UserError
from jhsae.evals.truth.counts import Firing, is_on, sparse_codes
from jhsae.evals.truth.matching import Matching, cosines
from jhsae.features.decoder import decoder_in_lm_units
from jhsae.ranges import PositiveFraction, ranged
from jhsae.sae import AbstractSAE
from jhsae.sae.apply import encode


@dataclass(frozen=True, eq=False)
class Splitting:
    """One row per SAE, one column per true feature.

    Args:
        latents: of each SAE.
        best: how many latents have the feature as their best match by cosine.
        tracking: how many of these fire with the feature, F1 above the bound.
        together: how many of them fire together with another of them, F1 between the two above the bound: copies of
            one latent. The others have divided the feature's tokens among themselves.
    """

    latents: tuple[int, ...]
    best: Int[np.ndarray, "saes features"]
    tracking: Int[np.ndarray, "saes features"]
    together: Int[np.ndarray, "saes features"]

    def rows(self) -> list[dict[str, Any]]:
        """A table: for each SAE the features that have a latent, those with two or more, and means over the former."""
        return [self._row(i) for i in range(len(self.latents))]

    def _row(self, i: int) -> dict[str, Any]:
        best = self.best[i]
        held = best > 0
        return {
            "latents": self.latents[i],
            "features": int(held.sum()),
            "split": int(np.sum(best > 1)),
            "most": int(best.max(initial=0)),
            **{
                name: float(counts[held].mean()) if held.any() else None
                for name, counts in (("best", best), ("tracking", self.tracking[i]), ("together", self.together[i]))
            },
        }


@ranged
def splitting(
    saes: Sequence[tuple[AbstractSAE, AbstractNormalizer]],
    features: Float[np.ndarray, "features embed"] | Float[Array, "features embed"],
    batches: Iterable[tuple[np.ndarray | Array, np.ndarray | Array]],
    bound: PositiveFraction = 0.3,
) -> Splitting:
    """Counts the latents of each true feature, of several SAEs on one world.

    Args:
        saes: each with its fitted normaliser, usually of growing width.
        features: the world's directions.
        batches: activations and true codes, as of `truth`; read once.
        bound: the F1 above which two fire together.

    Raises:
        UserError: no tokens, or arrays of other sizes.
    """
    features = np.asarray(features, np.float32)
    tables: list[_Table] = []
    for x, codes in batches:
        if not len(x):
            continue
        if codes.shape != (len(x), len(features)):
            raise UserError(f"a batch has codes {codes.shape}, expected [{len(x)}, {len(features)}]")
        tables = tables or [_Table(*pair, features, np.asarray(x)) for pair in saes]
        on = sparse.csr_array(np.asarray(codes) > 0).astype(np.float64)
        for table in tables:
            table.add(x, on)
    if not tables:
        raise UserError("splitting needs at least one SAE and one token; write both")
    counts = [table.counts(bound, len(features)) for table in tables]
    return Splitting(tuple(len(t.best) for t in tables), *(np.stack(part) for part in zip(*counts, strict=True)))


class _Table:
    """Counts of one SAE: latents with features, and latents with latents of the same best feature."""

    def __init__(self, sae: AbstractSAE, normalizer: AbstractNormalizer, features: np.ndarray, x: np.ndarray):
        self.sae, self.normalizer = sae, normalizer
        rows = decoder_in_lm_units(sae, normalizer, ArrayRows(x))
        self.best = Matching(cosines(features, rows)).best
        self.firing = Firing(len(features), len(rows))
        held = sparse.csr_array(
            (np.ones(len(rows)), (np.arange(len(rows)), self.best)), shape=(len(rows), len(features))
        )
        self.same = sparse.csr_array(held @ held.T)
        self.pairs = sparse.csr_array(self.same.shape)

    def add(self, x: np.ndarray | Array, on: sparse.csr_array) -> None:
        fires = is_on(sparse_codes(encode(self.sae, self.normalizer, jnp.asarray(x, jnp.float32)).flat()))
        self.firing.add(on, fires)
        self.pairs = self.pairs + sparse.csr_array(fires.T @ fires).multiply(self.same)

    def counts(self, bound: float, features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per feature: latents, those that fire with it, those that fire with one another."""
        tracking = self.firing.classification(self.best)["f1"] > bound
        fired, pairs = self.firing.fired, self.pairs.tocoo()
        close = (pairs.row != pairs.col) & (2 * pairs.data > bound * (fired[pairs.row] + fired[pairs.col]))
        together = np.isin(np.arange(len(self.best)), pairs.row[close])
        return tuple(  # type: ignore[return-value]
            np.bincount(self.best[which], minlength=features) for which in (self.best >= 0, tracking, together)
        )
