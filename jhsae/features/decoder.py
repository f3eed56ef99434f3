"""Decoder rows in the language model's units, their direct logit attribution, and their nearest neighbours.

``logit[i, v] = rows[i] . unembedding[v]``, with `rows` of `decoder_in_lm_units` and the unembedding of
`lm.AbstractLM.unembedding()`: the output embedding times the gain of the final norm. So the weight of the final norm is
multiplied in. Its division by rms(x) is left out: one positive number per token, shared by all that is in the residual
stream; so are the soft cap, which is monotone, the constant per token that the bias of a LayerNorm adds, and the blocks
in between. The order of tokens and the ratios of values mean something, their size alone does not. No mean over the
vocabulary is subtracted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jhsae.data import AbstractNormalizer, Hook, times
from jhsae.data.hook import RESIDUAL
from jhsae.data.normalize.moments import RowSource
from jhsae.errors import UserError
from jhsae.sae import AbstractSAE

TYPICAL_ROWS = 4096
MOST_LOGITS, MOST_COSINES = 2**24, 2**25


def typical_rows(store: RowSource) -> Float32[np.ndarray, "rows embed"]:
    """The activations that stand for a store: its first `TYPICAL_ROWS` rows, which are shuffled."""
    return np.asarray(store.read(0, min(store.rows, TYPICAL_ROWS)), np.float32)


def decoder_in_lm_units(
    sae: AbstractSAE, normalizer: AbstractNormalizer, store: RowSource
) -> Float32[np.ndarray, "features embed"]:
    """What a code of 1 adds to what is written, the residual stream say; one row per feature of ``sae.dictionary()``.

    An affine normaliser ``x = times(x', inverse) + shift`` turns a row into ``times(row, inverse)``. One that scales
    every token by itself (unit norm, layer norm) adds the row times the token's own scale: here that of a token of the
    median scale. So a row is in units of the residual stream for every normaliser. Its length can be compared with that
    of an activation, and code times row is a steering vector: Neuronpedia adds its strength, by default the feature's
    largest code, times this vector to the residual stream. The row without the scale would be in units of a normalised
    token, shorter by that scale.

    Args:
        sae: a trained SAE.
        normalizer: its fitted input normaliser.
        store: activations that the SAE reads; of its `typical_rows` the scale is taken, whatever part of the store a
            page or an export measures.
    """
    rows, affine = sae.dictionary(), normalizer.affine_of_target()
    if affine is not None:
        return np.asarray(times(rows, affine.inverse), np.float32)
    _, tokens = normalizer(jnp.asarray(typical_rows(store)))
    typical = jax.tree.map(lambda a: jnp.broadcast_to(jnp.median(a, axis=0), (len(rows), *a.shape[1:])), tokens)
    return np.asarray(normalizer.undo(rows, typical) - normalizer.undo(jnp.zeros_like(rows), typical), np.float32)


def into_stream(
    rows: Float32[np.ndarray, "features output"], written: Sequence[Hook]
) -> Float32[np.ndarray, "n embed"]:
    """What rows that hold several layers side by side add to the last residual stream.

    What modules write adds up over their layers; of residual streams it is the last one.

    Args:
        rows: in the language model's units.
        written: the hooks that they write, each as wide as the others.
    """
    parts = np.split(rows, len(written), axis=1)
    added = [part for part, hook in zip(parts, written, strict=True) if hook.name != RESIDUAL]
    return np.sum(added, axis=0) if added else parts[int(np.argmax([hook.block for hook in written]))]


@dataclass(frozen=True, eq=False)
class FeatureLogits:
    """For each row the tokens it raises most (largest first) and lowers most (smallest first), and a histogram.

    ``counts[i]`` counts the vocabulary in equal bins from the least to the largest logit of row i, around `centres`.
    """

    top_ids: Int[np.ndarray, "rows k"]
    top: Float32[np.ndarray, "rows k"]
    bottom_ids: Int[np.ndarray, "rows k"]
    bottom: Float32[np.ndarray, "rows k"]
    counts: Int[np.ndarray, "rows bins"]
    centres: Float[np.ndarray, "rows bins"]


def feature_logits(
    rows: Float32[np.ndarray, "rows embed"], unembedding: Float[Array, "vocab width"], k: int = 10, bins: int = 0
) -> FeatureLogits:
    """The logits of `rows`, of which only a block is in memory at a time.

    Args:
        rows: decoder rows in the language model's units (`decoder_in_lm_units`).
        unembedding: that of `lm.AbstractLM.unembedding`.
        k: tokens at either end.
        bins: of the histogram over the vocabulary; 0 for none.

    Raises:
        UserError: another width than the unembedding's, or a k that is not from 1 to the size of the vocabulary.
    """
    vocab, embed = unembedding.shape
    if rows.shape[1] != embed:
        raise UserError(
            f"the rows have {rows.shape[1]} numbers, but the unembedding has {embed}; write their own model"
        )
    if not 1 <= k <= vocab:
        raise UserError(
            f"logits is {k}, but there are {vocab} tokens in the vocabulary; write a number from 1 to {vocab}"
        )
    step = max(1, MOST_LOGITS // vocab)
    blocks = [_block(rows[i : i + step], jnp.asarray(unembedding), k, bins) for i in range(0, max(len(rows), 1), step)]
    return FeatureLogits(*(np.concatenate(part) for part in zip(*blocks, strict=True)))


def _block(rows: np.ndarray, unembedding: Array, k: int, bins: int) -> tuple[np.ndarray, ...]:
    logits, *ends = _extremes(jnp.asarray(rows), unembedding, k)
    empty = np.zeros((len(rows), 0))
    histograms = _histograms(np.asarray(logits), bins) if bins else (empty.astype(np.int64), empty)
    return *(np.asarray(a) for a in ends), *histograms


@partial(jax.jit, static_argnames="k")
def _extremes(rows: Array, unembedding: Array, k: int) -> tuple[Array, Array, Array, Array, Array]:
    """All logits of the rows; ids and values of the k largest, largest first; of the k smallest, smallest first."""
    logits = jnp.matmul(rows, unembedding.T.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    top, top_ids = jax.lax.top_k(logits, k)
    bottom, bottom_ids = jax.lax.top_k(-logits, k)
    return logits, top_ids, top, bottom_ids, -bottom


def _histograms(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts and centres of `bins` equal bins from the least to the largest value of every row."""
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    width = np.where(high > low, high - low, 1) / bins
    place = ((values - low) / width).astype(np.int64).clip(0, bins - 1) + np.arange(len(values))[:, None] * bins
    counts = np.bincount(place.ravel(), minlength=len(values) * bins).reshape(-1, bins)
    return counts, low + (np.arange(bins) + 0.5) * width


def directions(rows: Float32[np.ndarray, "features embed"]) -> Float[Array, "features embed"]:
    """The rows at norm 1; a row of zeros stays one."""
    return jnp.asarray(rows) / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def nearest(
    unit: Float[Array, "features embed"], chosen: Int[np.ndarray, " chosen"], k: int
) -> tuple[Int[np.ndarray, "chosen k"], Float32[np.ndarray, "chosen k"]]:
    """For each chosen one of the `directions` the k others of largest cosine, largest first, and the cosines.

    Raises:
        UserError: there are no k others.
    """
    if not 0 <= k < len(unit):
        raise UserError(f"neighbours is {k}, but there are {len(unit) - 1} other rows; write at most {len(unit) - 1}")
    step = max(1, MOST_COSINES // len(unit))
    blocks = [_nearest(unit, jnp.asarray(chosen[i : i + step]), k) for i in range(0, max(len(chosen), 1), step)]
    ids, cosines = (np.concatenate([np.asarray(a) for a in part]) for part in zip(*blocks, strict=True))
    return ids, cosines


@partial(jax.jit, static_argnames="k")
def _nearest(unit: Array, chosen: Array, k: int) -> tuple[Array, Array]:
    cosines = jnp.matmul(unit[chosen], unit.T, precision=jax.lax.Precision.HIGHEST)
    values, ids = jax.lax.top_k(cosines.at[jnp.arange(len(chosen)), chosen].set(-jnp.inf), k)
    return ids, values


def aligned_dimensions(
    row: Float[np.ndarray, " embed"], k: int = 3
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The k largest entries of a row: their dimensions, values, and shares of the row's L1 norm."""
    best = np.argsort(-row, kind="stable")[:k]
    return best, row[best], np.abs(row[best]) / max(float(np.abs(row).sum()), 1e-30)
