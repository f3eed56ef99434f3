"""Input of an estimator: one or more samples of every token, as vectors of the unified space.

From an unembedding (Park et al., arXiv 2406.01506) a token has one sample, g = Σ^(-1/2) (γ - γ̄). From
prompts (`concepts.py`) it has one per prompt, l = Σ^(1/2) λ with λ the residual activation at the token,
centred over all samples.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import equinox as eqx
import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int64, Shaped

from jhsae.metric import CausalGeometry
from jhsae.ranges import Ranged
from jhsae.teacher.select import Concept


@dataclass(frozen=True)
class View:
    """Access to the language model.

    Args:
        unembedding: One row per token.
        geometry: The teacher's geometry, which whitens samples.
        residual: Token ids [batch, time] -> activations at the teacher's layer, [batch, time, embed].
        encode: Text -> its token ids, without special tokens.
        bos: Id of the token that opens every prompt, or None.
    """

    unembedding: Shaped[np.ndarray, "vocab embed"]
    geometry: CausalGeometry
    residual: Callable[[Int[np.ndarray, "batch time"]], Float[np.ndarray, "batch time embed"]]
    encode: Callable[[str], list[int]]
    bos: int | None


@dataclass(frozen=True)
class Samples:
    """Samples of tokens: vectors of the unified space.

    Args:
        tokens: Token ids, ascending.
        rows: ``rows[i]`` are the samples of ``tokens[i]``, equally many for each: [tokens, per, embed].
    """

    tokens: Int64[np.ndarray, "tokens"]
    rows: Float32[np.ndarray, "tokens per embed"]

    def of(self, tokens: Iterable[int]) -> Float64[np.ndarray, "samples embed"]:
        """The samples of these tokens, concatenated."""
        at = np.searchsorted(self.tokens, np.fromiter(tokens, np.int64))
        return self.rows[at].reshape(-1, self.rows.shape[-1]).astype(np.float64)

    def shuffled(self, rng: np.random.Generator) -> "Samples":
        """The same samples with permuted tokens: a null of the same vectors."""
        return Samples(self.tokens, self.rows[rng.permutation(len(self.tokens))])


class AbstractEvidence(Ranged, eqx.Module):
    """A source of samples of tokens."""

    @abstractmethod
    def __call__(self, view: View, concepts: tuple[Concept, ...], tokens: Iterable[int]) -> Samples:
        """Samples of `tokens`, which include those of all `concepts`."""


class Unembedding(AbstractEvidence):
    """One sample per token: its centred row of the unembedding, whitened on that side."""

    def __call__(self, view: View, concepts: tuple[Concept, ...], tokens: Iterable[int]) -> Samples:
        chosen = np.array(sorted(set(tokens)), np.int64)
        centred = view.unembedding[chosen] - view.unembedding.mean(0, dtype=np.float64)
        whitening = np.asarray(view.geometry.unembedding.matrix, np.float64)
        return Samples(chosen, (centred @ whitening.T).astype(np.float32)[:, None])
