"""What one latent does: how often and how strongly it fires, on which tokens, and what it writes to the logits.

Everything is counted from `Firings`; a firing is a code that is not 0, as in L0. Values are in the SAE's own units,
that is after its input normaliser. The latents are the rows of ``sae.dictionary()``: experts, then atoms.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from jhsae.data.normalize import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.features.firings import Firings
from jhsae.features.logits import extremes
from jhsae.features.rows import directions, nearest
from jhsae.sae import AbstractSAE

MOST_SCORES = 2**25


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """One entry per feature; means and bins are over its firings, and 0 for a feature that never fired.

    ``histogram[i, b]`` counts the firings of feature i in the b-th of equal bins from ``low[i]`` to ``high[i]``:
    `low` is the smallest value or 0, whichever is less, and `high` the largest value or 0, whichever is more.
    """

    fired: Int64[np.ndarray, " features"]
    frequency: Float[np.ndarray, " features"]
    mean: Float[np.ndarray, " features"]
    high: Float[np.ndarray, " features"]
    low: Float[np.ndarray, " features"]
    histogram: Int64[np.ndarray, "features bins"]


def latent_statistics(firings: Firings, bins: int = 24) -> LatentStatistics:
    """Frequency (fraction of the measured rows), mean, range and a histogram of `bins` bins."""
    fired, features, values = firings.count(), firings.features(), firings.values.astype(np.float64)
    alive = fired > 0
    high, low = np.zeros(firings.size), np.zeros(firings.size)
    firsts = firings.starts[:-1][alive]
    if len(firsts):
        high[alive] = np.maximum(np.maximum.reduceat(values, firsts), 0)
        low[alive] = np.minimum(np.minimum.reduceat(values, firsts), 0)
    width = np.where(high > low, high - low, 1)
    place = ((values - low[features]) / width[features] * bins).astype(np.int64).clip(0, bins - 1)
    counts = np.bincount(features.astype(np.int64) * bins + place, minlength=firings.size * bins)
    total = np.bincount(features, weights=values, minlength=firings.size)
    mean = total / np.maximum(fired, 1)
    return LatentStatistics(fired, fired / firings.measured, mean, high, low, counts.reshape(-1, bins))


def density_histogram(
    frequency: Float[np.ndarray, " features"], width: float = 0.25
) -> tuple[Float[np.ndarray, " edges"], Int64[np.ndarray, " bins"]]:
    """Features by log10 of their frequency: bin edges (multiples of `width`, the last 0) and counts.

    A feature that never fired is in no bin, and one that always fires is in the last.
    """
    logs = np.log10(frequency[frequency > 0])
    bins = max(1, int(np.ceil(-logs.min() / width))) if len(logs) else 1
    edges = np.arange(-bins, 1) * width
    place = np.floor(logs / width).astype(np.int64).clip(-bins, -1) + bins
    return edges, np.bincount(place, minlength=bins).astype(np.int64)


def raw_dictionary(
    sae: AbstractSAE, normalizer: AbstractNormalizer, x: Float32[np.ndarray, "rows embed"]
) -> Float32[np.ndarray, "features embed"]:
    """What an activation of 1 adds to the residual stream, in the language model's units: one row per feature.

    Where the normaliser scales every token by itself (unit norm, layer norm), it is that of a token of the median
    scale among `x`: the directions of the rows hold for every token, their lengths for a typical one.
    """

    rows = sae.dictionary()
    _, tokens = normalizer(jnp.asarray(x))
    typical = jax.tree.map(lambda a: jnp.broadcast_to(jnp.median(a, axis=0), (len(rows), *a.shape[1:])), tokens)
    added = normalizer.undo(rows, typical) - normalizer.undo(jnp.zeros_like(rows), typical)
    return np.asarray(added, np.float32)


@dataclass(frozen=True, eq=False)
class LatentLogits:
    """For each row the tokens it raises most (largest first) and least (smallest first), with the values."""

    top_ids: Int[np.ndarray, "rows k"]
    top: Float32[np.ndarray, "rows k"]
    bottom_ids: Int[np.ndarray, "rows k"]
    bottom: Float32[np.ndarray, "rows k"]


def latent_logits(
    rows: Float32[np.ndarray, "rows embed"], unembedding: Float32[np.ndarray, "vocab embed"], k: int
) -> LatentLogits:
    """Direct logit attribution: ``logit[i, v] = rows[i] . unembedding[v]``, its k largest and k smallest entries.

    `rows` are decoder rows in raw units (`raw_dictionary`), `unembedding` that of `lm.AbstractLM.unembedding`: the
    output embeddings times the gain of the final norm. The final norm itself is left out: it divides the logits of a
    token by one positive number, rms(x), which the latent shares with everything else in the residual stream. So the
    order of tokens and the ratios of the values mean something, their size does not; later blocks and the soft cap
    are left out too. A constant over all tokens would not change any probability; none is subtracted.
    """
    _check(k, len(unembedding), "logits", "tokens in the vocabulary")
    table, step = jnp.asarray(unembedding), max(1, MOST_SCORES // len(unembedding))
    parts = [extremes(jnp.asarray(rows[i : i + step]), table, k)[1:] for i in range(0, max(len(rows), 1), step)]
    return LatentLogits(*(np.concatenate([np.asarray(p) for p in column]) for column in zip(*parts, strict=True)))


def decoder_neighbours(
    rows: Float32[np.ndarray, "features embed"], of: Int[np.ndarray, " chosen"], k: int
) -> tuple[Int[np.ndarray, "chosen k"], Float32[np.ndarray, "chosen k"]]:
    """For each chosen row, the k other rows with the largest cosine, and those cosines; a row of zeros has cosine 0."""
    _check(k, len(rows) - 1, "neighbours", "other rows")
    return nearest(directions(rows), of, k)


def _check(k: int, most: int, key: str, what: str) -> None:
    if not 1 <= k <= most:
        raise UserError(f"{key} is {k}, but there are {most} {what}; write a number from 1 to {most}")
