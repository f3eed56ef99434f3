"""Matching of latents with true features, by the cosine of their directions.

Definitions of SAELens 6.54 (``sae_lens.synthetic.evals``): the absolute cosine, so that a latent and its negative are
one; MCC (arXiv 2505.20254), its mean over a one-to-one matching of largest total; uniqueness, the number of different
best features over the number of latents. A row of zeros has cosine 0 with everything.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.optimize import linear_sum_assignment

from jhsae.errors import UserError

MOST_COSINES = 2**28  # a table of 1 GiB


def unit(rows: Float[np.ndarray, "*rows embed"]) -> Float[np.ndarray, "*rows embed"]:
    """The rows at norm 1; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def cosines(features: Float[np.ndarray, "features embed"], rows: Float[np.ndarray, "latents width"]) -> np.ndarray:
    """The absolute cosine of every true feature with every latent, ``[features, latents]``, float32.

    Raises:
        UserError: rows of another width than the features', or more pairs than `MOST_COSINES`.
    """
    if features.shape[1] != rows.shape[1]:
        raise UserError(
            f"the SAE's dictionary has rows of {rows.shape[1]} numbers, but the world's features have "
            f"{features.shape[1]}; write an SAE that was trained on this world"
        )
    if len(features) * len(rows) > MOST_COSINES:
        raise UserError(
            f"{len(features):,} features and {len(rows):,} latents make {len(features) * len(rows):,} pairs to match, "
            f"expected at most {MOST_COSINES:,}; write a smaller world or SAE"
        )
    return np.abs(unit(features.astype(np.float32)) @ unit(rows.astype(np.float32)).T)


@dataclass(frozen=True, eq=False)
class Matching:
    """A table of absolute cosines and the matchings that follow from it.

    Args:
        cosines: ``[features, latents]``.
    """

    cosines: Float32[np.ndarray, "features latents"]

    @cached_property
    def pairs(self) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
        """Features and latents, one to one, of the largest sum of cosines; as many as the fewer of the two."""
        return linear_sum_assignment(self.cosines, maximize=True)

    @cached_property
    def latent_of(self) -> Int[np.ndarray, "features"]:
        """The latent matched with each feature; -1 for a feature that has none, where there are fewer latents."""
        matched = np.full(len(self.cosines), -1)
        matched[self.pairs[0]] = self.pairs[1]
        return matched

    @cached_property
    def best(self) -> Int[np.ndarray, "latents"]:
        """The feature of largest cosine with each latent; several latents may have the same."""
        return self.cosines.argmax(axis=0)

    @property
    def mcc(self) -> float | None:
        """The mean cosine of the matched pairs; None without any."""
        return float(np.mean(self.cosines[self.pairs], dtype=np.float64)) if self.cosines.size else None

    @property
    def uniqueness(self) -> float | None:
        """The number of different best features over the number of latents; None without any."""
        return len(np.unique(self.best)) / len(self.best) if self.cosines.size else None
