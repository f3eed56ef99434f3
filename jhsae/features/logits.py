"""What a feature writes to the logits, directly: its decoder row through the unembedding.

``logit[i, v] = rows[i] . unembedding[v]``, with rows in the units of the residual stream (`raw_rows`) and the
unembedding of `lm.AbstractLM.unembedding()`: the output embedding times the gain of the final norm. So the weight
of the final norm is multiplied in. Its division by rms(x) is left out: one positive number per token, shared by all
that stands in the residual stream; so are the soft cap, which is monotone, the constant per token that the bias of
a LayerNorm adds, and the blocks in between. The order of tokens and the ratios of values mean something, their size
alone does not. No mean over the vocabulary is subtracted.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int
from transformers import PreTrainedTokenizerBase

from jhsae.errors import UserError
from jhsae.features.token_text import token_text as token_strings

MOST_LOGITS = 2**24


@dataclass(frozen=True, eq=False)
class FeatureLogits:
    """For each row the k tokens it raises most and lowers most, extremes first, and a histogram over all tokens."""

    top: list[list[str]]
    top_values: Float32[np.ndarray, "rows k"]
    bottom: list[list[str]]
    bottom_values: Float32[np.ndarray, "rows k"]
    counts: Int[np.ndarray, "rows bins"]
    centres: Float[np.ndarray, "rows bins"]


def feature_logits(
    rows: Float32[np.ndarray, "rows embed"],
    unembedding: Float[Array, "vocab width"],
    tokenizer: PreTrainedTokenizerBase,
    k: int = 10,
    bins: int = 50,
) -> FeatureLogits:
    """The logits of `rows`, of which only a block is in memory at a time.

    `UserError`: another width than the unembedding's, or a k that is not from 1 to the size of the vocabulary.
    """
    vocab, embed = unembedding.shape
    if rows.shape[1] != embed:
        raise UserError(
            f"the rows have {rows.shape[1]} numbers, but the unembedding has {embed}; write their own model"
        )
    if not 1 <= k <= vocab:
        raise UserError(f"{k} tokens per feature were asked for, but the vocabulary has {vocab}; write 1 to {vocab}")
    step = max(1, MOST_LOGITS // vocab)
    blocks = [_block(rows[i : i + step], unembedding, k, bins) for i in range(0, max(len(rows), 1), step)]
    top_ids, top, bottom_ids, bottom, counts, centres = (np.concatenate(part) for part in zip(*blocks, strict=True))
    shown = np.unique(np.concatenate([top_ids.ravel(), bottom_ids.ravel()])).tolist()
    text = dict(zip(shown, token_strings(tokenizer, shown), strict=True))
    words = [[[text[i] for i in ids] for ids in side.tolist()] for side in (top_ids, bottom_ids)]
    return FeatureLogits(words[0], top, words[1], bottom, counts, centres)


def _block(rows: np.ndarray, unembedding: Array, k: int, bins: int) -> tuple[np.ndarray, ...]:
    logits, *ends = (np.asarray(a) for a in extremes(jnp.asarray(rows), unembedding, k))
    return *ends, *_histograms(logits, bins)


@partial(jax.jit, static_argnames="k")
def extremes(rows: Array, unembedding: Array, k: int) -> tuple[Array, Array, Array, Array, Array]:
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
