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


def label(feature: int, tree: Forest | None) -> str:
    """The name of a feature in the addresses of the page: ``f7``, ``e12``, ``e12/a3``, ``e12/a3/a1``."""
    if tree is None:
        return f"f{feature}"
    parent = int(tree.parents[feature])
    return f"e{feature}" if parent < 0 else f"{label(parent, tree)}/a{feature - children(tree, parent).start}"


@dataclass(frozen=True, eq=False)
class Entries:
    """What was counted, and the features that are shown; `tree` is None for a flat SAE.

    `occupied` says whether each slot of the dictionary holds a row, `known` whether tokens are known.
    """

    fired: Firings
    statistics: LatentStatistics
    profile: TokenProfile
    shown: Int64[np.ndarray, " shown"]
    tree: Forest | None
    occupied: Bool[np.ndarray, " features"]
    pieces: Pieces
    sequences: Sequences
    known: bool

    def firing(self, reader: Reader, strongest: int, spread: int) -> list[Json]:
        """Numbers, main tokens and contexts of every shown latent; of one with children also what they do."""
        main = main_tokens(self.profile, self.shown, TOKENS) if self.known else [[] for _ in self.shown]
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
        unembedding: Float[Array, "vocab embed"] | None,
        logits: int,
        near: int,
    ) -> list[Json]:
        """Length, logits (none without an unembedding) and neighbours of the decoder row of every shown latent."""
        top: list[list[Any]] = [[] for _ in self.shown]
        bottom = top
        if unembedding is not None:
            ends = feature_logits(dictionary[self.shown], unembedding, logits)
            top = [logit_pairs(*pairs, self.pieces) for pairs in zip(ends.top_ids, ends.top, strict=True)]
            bottom = [logit_pairs(*pairs, self.pieces) for pairs in zip(ends.bottom_ids, ends.bottom, strict=True)]
        nearest = neighbours(dictionary, self.statistics.fired, self.shown, near)
        norms = np.linalg.norm(dictionary[self.shown], axis=1)
        return [
            {
                "norm": rounded(norms[n]),
                "top": top[n],
                "bottom": bottom[n],
                "near": [[label(other, self.tree), cosine] for other, cosine in nearest[n]],
            }
            for n in range(len(self.shown))
        ]

    def _context(self, one: Context, own: Members | None) -> list[Any]:
        """[sequence, position, value, [offset, value, ...]], and of an expert the atom that fired with it or None."""
        around = [number for offset, value in one.around for number in (offset, rounded(value))]
        start = [self.sequences.use(one.sequence), one.position, rounded(one.value), around]
        return [*start, own.at(one.row)] if own else start
