"""All metrics of an SAE against a world whose features and hierarchy are known, in one pass over batches.

The first block has the definitions of ``sae_lens.synthetic.evals`` (SAELens 6.54, SynthSAEBench, arXiv 2602.14687),
number for number, except where a number is not defined: explained variance without variance is None, not 1 or 0; a
token counts for shrinkage unless its norm is exactly 0, not below 1e-6. The rest is ours: what a hierarchy adds.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Array, Float
from scipy import sparse

from jhsae.codes import Codes
from jhsae.data import AbstractNormalizer, ArrayRows
from jhsae.errors import UserError
from jhsae.evals.fidelity import Totals, add_sums, metrics_of, sums_of
from jhsae.evals.truth.agreement import PERMUTATIONS, Agreement, Kind, agreement, summary
from jhsae.evals.truth.counts import firing, is_on, row_maxima, sparse_codes
from jhsae.evals.truth.forest import among, latent_parents, levels_of
from jhsae.evals.truth.interference import Absorption, Violations, hedging, mean_of, siblings
from jhsae.evals.truth.levels import by_level, roots_found
from jhsae.evals.truth.matching import Matching, cosines
from jhsae.features.decoder import decoder_in_lm_units
from jhsae.ranges import Count, Seed, ranged
from jhsae.sae import AbstractSAE
from jhsae.sae.apply import reconstruct
from jhsae.worlds import Hierarchy

Batch = tuple[np.ndarray | Array, np.ndarray | Array]
Cosine = Annotated[float, Ge(0), Le(1)]


@ranged
def truth(
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    features: Float[np.ndarray, "features embed"] | Float[Array, "features embed"],
    hierarchy: Hierarchy,
    batches: Iterable[Batch],
    *,
    tau: Cosine = 0.3,
    permutations: Count = PERMUTATIONS,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Compares the latents, the rows of ``sae.dictionary()`` in the language model's units, with the true features.

    Args:
        sae: a trained SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        features: the world's directions, ``[features, embed]``.
        hierarchy: which of them lies under which.
        batches: activations ``[tokens, embed]`` in the world's units, and the true magnitudes ``[tokens, features]``
            that they were made of, 0 where a feature is off. Read once; no batch is kept.
        tau: the cosine with the parent above which a child's latent may have absorbed it (`interference`).
        permutations: of the SAE's parents, for the chance of `tree` and `edges`.
        seed: of the permutations.

    Returns:
        SAELens's numbers (`mcc`, `uniqueness`, `precision`, `recall`, `f1`, `accuracy`, `dead_latents`, `shrinkage`,
        `ev_r2`, `true_l0`, `l0`), the mean over features of the best F1 of any latent (`feature_f1`; a lower bound
        where `all_pairs` is false), `levels` (`levels.by_level`), `roots` (`levels.roots_found`), `tree` and `edges`
        (`agreement`; None for an SAE without a tree), `absorption`, `hedging`, `violations`, `siblings`
        (`interference`). A number that is not defined is None.

    Raises:
        UserError: arrays whose sizes do not fit together, or no tokens at all.
    """
    features = np.asarray(features, np.float32)
    if not len(features) or not np.all(np.isfinite(features)):
        raise UserError(
            f"the world has {len(features)} features, expected at least 1, and finite numbers in all of them"
        )
    if hierarchy.size != len(features):
        raise UserError(
            f"the hierarchy is over {hierarchy.size} features, but the world has {len(features)} directions"
        )
    first, batches = _first(_checked(batches, sae, len(features)))
    measured = _Pass(sae, normalizer, features, hierarchy, np.asarray(first[0]))
    for x, magnitudes in batches:
        measured.add(x, magnitudes)
    return measured.flat() | measured.hierarchical(tau, permutations, seed)


class _Pass:
    """The matching of an SAE with a world, known before the first batch, and the sums over batches that need it."""

    def __init__(
        self,
        sae: AbstractSAE,
        normalizer: AbstractNormalizer,
        features: np.ndarray,
        hierarchy: Hierarchy,
        x: np.ndarray,
    ):
        self.features, self.hierarchy = features, hierarchy
        self.there = np.flatnonzero(np.asarray(sae.occupied))  # an empty slot is no latent
        self.rows = decoder_in_lm_units(sae, normalizer, ArrayRows(x))[self.there]
        self.parents = among(latent_parents(sae), self.there)
        self.levels = levels_of(self.parents)
        self.matching = Matching(cosines(features, self.rows))
        self.firing = firing(self.matching.cosines, hierarchy.levels, self.levels)
        self.absorption = Absorption(hierarchy, self.matching.latent_of)
        self.violations = Violations(self.parents)
        self.fidelity = _Fidelity(sae, normalizer, x.mean(axis=0, dtype=np.float64))

    def add(self, x: np.ndarray | Array, magnitudes: np.ndarray | Array) -> None:
        codes = sparse_codes(self.fidelity.add(jnp.asarray(x, jnp.float32)))[:, self.there]
        true = _true(magnitudes)
        self.firing.add(is_on(true), is_on(codes))
        self.absorption.add(true, codes)
        self.violations.add(is_on(codes))

    def flat(self) -> dict[str, Any]:
        """What needs no hierarchy."""
        matching, counts = self.matching, self.firing
        return {
            "mcc": matching.mcc,
            "uniqueness": matching.uniqueness,
            **{name: float(scores.mean()) for name, scores in counts.classification(matching.best).items()},
            "dead_latents": int(np.sum(counts.fired == 0)),
            **self.fidelity.metrics(),
            "true_l0": float(counts.on.sum() / counts.rows),
            "rows": counts.rows,
            "latents": len(self.rows),
            "features": len(self.features),
            "feature_f1": mean_of(row_maxima(counts.f1())),
            "all_pairs": counts.only is None,
        }

    def hierarchical(self, tau: float, permutations: int, seed: int) -> dict[str, Any]:
        """What a hierarchy adds."""
        matched, hierarchy, has_tree = self.matching.latent_of, self.hierarchy, bool(np.any(self.parents >= 0))
        kinds: dict[Kind, Agreement | None] = {"tree": None, "edges": None}
        for kind in kinds if has_tree else ():
            kinds[kind] = agreement(kind, matched, self.parents, hierarchy, permutations, seed)
        return {
            "levels": by_level(self.matching.cosines, self.firing, hierarchy.levels, self.levels),
            "roots": roots_found(self.firing.f1(), hierarchy, self.levels),
            **{kind: None if found is None else summary(kind, found, hierarchy) for kind, found in kinds.items()},
            "absorption": self.absorption.summary(self.rows, self.features, tau),
            "hedging": hedging(self.rows, self.features, hierarchy, matched),
            "violations": self.violations.rate(),
            "siblings": siblings(self.rows, self.parents),
        }


@eqx.filter_jit
def _step(sae: AbstractSAE, normalizer: AbstractNormalizer, x: Array, mean: Array) -> tuple[dict[str, Array], Codes]:
    made = reconstruct(sae, normalizer, x)
    return sums_of(sae, made, x, mean) | {"sum": jnp.sum(x - mean, axis=0)}, made.forward.codes.flat()


class _Fidelity:
    """Numbers of `evals.fidelity`, of rows whose mean is not known before: the variance is moved to it at the end."""

    def __init__(self, sae: AbstractSAE, normalizer: AbstractNormalizer, about: Float[np.ndarray, "embed"]):
        self.sae, self.normalizer, self.about = sae, normalizer, jnp.asarray(about, jnp.float32)
        self.totals: Totals = {}

    def add(self, x: Float[Array, "tokens embed"]) -> Codes:
        sums, codes = _step(self.sae, self.normalizer, x, self.about)
        add_sums(self.totals, sums)
        return codes

    def metrics(self) -> dict[str, Any]:
        totals = dict(self.totals)
        shift = totals.pop("sum")  # of x - about: sum |x - mean|^2 = sum |x - about|^2 - |shift|^2 / rows
        totals["centred"] = np.maximum(totals["centred"] - np.sum(shift**2) / totals["rows"], 0)
        metrics, _ = metrics_of(self.sae, totals)
        return {name: metrics[name] for name in ("shrinkage", "ev_r2", "l0")}


def _checked(batches: Iterable[Batch], sae: AbstractSAE, features: int) -> Iterator[Batch]:
    """The batches that have tokens."""
    for x, codes in batches:
        if x.ndim != 2 or x.shape[1] != sae.embed or codes.shape != (len(x), features):
            raise UserError(
                f"a batch has activations {x.shape} and codes {codes.shape}, but this SAE reads {sae.embed} numbers "
                f"per token and the world has {features} features; write [tokens, {sae.embed}] and [tokens, {features}]"
            )
        if not (np.all(np.isfinite(np.asarray(x))) and np.all(np.isfinite(np.asarray(codes)))):
            raise UserError("a batch has activations or codes that are not finite; write finite numbers alone")
        if len(x):
            yield x, codes


def _first(batches: Iterator[Batch]) -> tuple[Batch, Iterator[Batch]]:
    """The first batch, and all of them."""
    first = next(batches, None)
    if first is None:
        raise UserError("an evaluation of 0 activations; write batches with at least one token")
    return first, chain([first], batches)


def _true(magnitudes: np.ndarray | Array) -> sparse.csr_array:
    """True magnitudes as a sparse matrix; a value that is not above 0 is off."""
    values = np.asarray(magnitudes, np.float64)
    return sparse.csr_array(np.where(values > 0, values, 0))
