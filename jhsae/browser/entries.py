"""The page's entry of each latent, in two halves: its firings, and what its decoder row writes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int64

from jhsae.browser.contexts import Context, Reader
from jhsae.browser.pieces import Pieces, Sequences
from jhsae.browser.tables import Json, logit_pairs, main_token, neighbours, numbers, rounded
from jhsae.features.contexts import children
from jhsae.features.decoder import feature_logits
from jhsae.features.firings import Firings
from jhsae.features.latents import LatentStatistics, TokenProfile, main_tokens
from jhsae.features.names import label
from jhsae.sae import Forest

TOKENS = 8


class Members:
    """The firings of all atoms of one expert, or of all children of a row of a deeper tree, the strongest first.

    Args:
        fired: all firings.
        below: the slots below the expert.
        occupied: whether each slot of the dictionary holds a row.
        expert: whose children they are.
    """

    def __init__(self, fired: Firings, below: range, occupied: Bool[np.ndarray, " features"], expert: int):
        parts = [fired.of(atom) for atom in below]
        rows, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        atoms = np.repeat(np.arange(len(below)), [len(r) for r, _ in parts])
        order = np.lexsort((-np.abs(values), rows))
        self._rows, self._atoms = rows[order], atoms[order]
        #: How many of the expert's firings no atom joined.
        self.alone = len(np.setdiff1d(fired.of(expert)[0], rows))
        #: How many atoms it has, empty slots left out.
        self.atoms = int(np.sum(occupied[below.start : below.stop]))
        #: How many of its atoms never fired.
        self.dead = self.atoms - sum(len(r) > 0 for r, _ in parts)

    def at(self, row: int) -> int | None:
        """The strongest atom on a row; None where the expert fired alone."""
        i = int(np.searchsorted(self._rows, row))
        return int(self._atoms[i]) if i < len(self._rows) and self._rows[i] == row else None


@dataclass(frozen=True, eq=False)
class Entries:
    """What was counted, and the features that are shown; `tree` is None for a flat SAE.

    `occupied` says whether each slot of the dictionary holds a row.
    """

    fired: Firings
    statistics: LatentStatistics
    profile: TokenProfile
    shown: Int64[np.ndarray, " shown"]
    tree: Forest | None
    occupied: Bool[np.ndarray, " features"]
    pieces: Pieces
    sequences: Sequences

    def firing(self, reader: Reader, strongest: int, spread: int) -> list[Json]:
        """Numbers, main tokens and contexts of every shown latent; of one with children also what they do."""
        main = main_tokens(self.profile, self.shown, TOKENS)
        found = []
        for i, pairs in zip(self.shown.tolist(), main, strict=True):
            slots = children(self.tree, i) if self.tree else range(0)
            own = Members(self.fired, slots, self.occupied, i) if slots else None
            first, below = reader.read(*self.fired.of(i), strongest, spread)
            entry = numbers(self.statistics, i) | {
                "tokens": [main_token(self.profile, pair, self.pieces) for pair in pairs],
                "first": [self._context(one, own) for one in first],
                "below": [self._context(one, own) for one in below],
            }
            found.append(entry | ({"alone": own.alone, "dead": own.dead, "slots": own.atoms} if own else {}))
        return found

    def writing(
        self,
        dictionary: Float32[np.ndarray, "features embed"],
        unembedding: Float[Array, "vocab embed"],
        logits: int,
        near: int,
    ) -> list[Json]:
        """Length, logits and neighbours of the decoder row of every shown latent."""
        ends = feature_logits(dictionary[self.shown], unembedding, logits)
        nearest = neighbours(dictionary, self.statistics.fired, self.shown, near)
        norms = np.linalg.norm(dictionary[self.shown], axis=1)
        return [
            {
                "norm": rounded(norms[n]),
                "top": logit_pairs(ends.top_ids[n], ends.top[n], self.pieces),
                "bottom": logit_pairs(ends.bottom_ids[n], ends.bottom[n], self.pieces),
                "near": [[label(other, self.tree), cosine] for other, cosine in nearest[n]],
            }
            for n in range(len(self.shown))
        ]

    def _context(self, one: Context, own: Members | None) -> list[Any]:
        """[sequence, position, value, [offset, value, ...]], and of an expert the atom that fired with it or None."""
        around = [number for offset, value in one.around for number in (offset, rounded(value))]
        start = [self.sequences.use(one.sequence), one.position, rounded(one.value), around]
        return [*start, own.at(one.row)] if own else start
