"""What the tokens on which a latent fires have in common: the mean cosine between those on which it is most active.

For latent i and token t let ``mean[t, i]`` be the activation per measured occurrence of the token, silent ones
included, among tokens on which i fires at least `FIRINGS` times. T_i are the `TOKENS` tokens with the largest mean, and
u_t is the unit vector of the unembedding row of token t in the causal metric:

    coherence_i = mean of u_s · u_t over all pairs of different tokens s, t of T_i

It is near 0 for tokens that have nothing in common in the output space of the language model, and 1 for tokens that it
cannot tell apart. Dividing by occurrences keeps frequent words from deciding alone; as the tokens are different ones, a
detector of a single token is not coherent by that. Metric: Park et al. (arXiv 2311.03658, 2406.01506).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from jhsae.data import Store
from jhsae.features.firings import Batch, tabulated
from jhsae.features.latents import TokenProfile, token_profile
from jhsae.metric import causal

FIRINGS = 3  # on a token, at least
TOKENS = 10  # of a latent
MOST_FIRINGS = 2**23  # that are held in memory


@dataclass(frozen=True, eq=False)
class Coherence:
    """The coherence of every latent, and the tokens that it is of, largest mean first.

    A latent that fires `FIRINGS` times on fewer than `TOKENS` tokens has the coherence NaN, and tokens -1.
    """

    values: Float[np.ndarray, " features"]
    tokens: Int64[np.ndarray, "features tokens"]

    def most(self, count: int) -> list[int]:
        """At most `count` latents that have a coherence, the most coherent first."""
        known = np.flatnonzero(np.isfinite(self.values))
        return [int(i) for i in known[np.argsort(-self.values[known], kind="stable")[:count]]]

    def told(self, latent: int, text: Callable[[list[int]], list[str]]) -> dict[str, Any]:
        """``coherence`` and ``tokens`` of a latent as JSON values: null and none where it has none."""
        value, tokens = float(self.values[latent]), self.tokens[latent].tolist()
        known = math.isfinite(value)
        return {"coherence": value if known else None, "tokens": text(tokens) if known else []}


def first_batches(batches: Iterator[Batch]) -> list[Batch]:
    """The next batches, until they hold `MOST_FIRINGS` firings."""
    held: list[Batch] = []
    while sum(len(batch.row) for batch in held) < MOST_FIRINGS and (batch := next(batches, None)) is not None:
        held.append(batch)
    return held


def coherence(profile: TokenProfile, unembedding: Float[Array, "vocab embed"]) -> Coherence:
    """Tokens and coherence of every latent.

    Args:
        profile: firings and activation of every pair of token and latent.
        unembedding: of the language model whose tokens they are.
    """
    used = np.flatnonzero((profile.fired >= FIRINGS) & (profile.total > 0))
    used = used[np.lexsort((profile.tokens[used], -profile.mean()[used], profile.latents[used]))]
    latents = profile.latents[used]
    first = np.searchsorted(latents, np.arange(len(profile.mass)))
    chosen = np.flatnonzero(np.bincount(latents, minlength=len(profile.mass)) >= TOKENS)
    values, tokens = np.full(len(profile.mass), np.nan), np.full((len(profile.mass), TOKENS), -1)
    tokens[chosen] = profile.tokens[used[first[chosen, None] + np.arange(TOKENS)]]
    known, places = np.unique(tokens[chosen], return_inverse=True)
    units = _directions(unembedding, known)
    for start in range(0, len(chosen), 1024):
        some = slice(start, start + 1024)
        together = np.sum(units[places.reshape(-1, TOKENS)[some]], axis=1)
        values[chosen[some]] = (np.sum(together**2, axis=1) - TOKENS) / (TOKENS * (TOKENS - 1))
    return Coherence(values, tokens)


def coherence_of(
    batches: Sequence[Batch], top: int, store: Store, unembedding: Float[Array, "vocab embed"]
) -> Coherence:
    """`coherence` of the first `top` features, from firings on the first rows of a store, in their order."""
    measured = max((int(batch.row[-1]) + 1 for batch in batches if len(batch.row)), default=0)
    own = [[column[batch.feature < top] for column in (batch.row, batch.feature, batch.value)] for batch in batches]
    fired = tabulated([(row, feature, value) for row, feature, value in own], top, measured)
    return coherence(token_profile(fired, store.index(0, measured)[:, 2], len(unembedding)), unembedding)


def _directions(unembedding: Float[Array, "vocab embed"], tokens: np.ndarray) -> Float[np.ndarray, "tokens embed"]:
    """Unit vectors of the tokens' centred unembedding rows in the causal metric."""
    rows = np.asarray(unembedding)
    centred = rows[tokens].astype(np.float32) - rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    white = np.asarray(causal(rows).unembedding.whiten(jnp.asarray(centred)), np.float64)
    return white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-30)
