"""An expert and its atoms: which atom fired with it, and how often none did."""

import numpy as np

from jhsae.features.firings import Firings
from jhsae.sae import TreeSizes


class Members:
    """The firings of all atoms of one expert, the strongest of a row first."""

    def __init__(self, fired: Firings, tree: TreeSizes, expert: int):
        first = tree.experts + expert * tree.atoms
        parts = [fired.of(first + atom) for atom in range(tree.atoms)]
        rows, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        atoms = np.repeat(np.arange(tree.atoms), [len(r) for r, _ in parts])
        order = np.lexsort((-np.abs(values), rows))
        self._rows, self._atoms = rows[order], atoms[order]
        #: How many of the expert's firings no atom joined.
        self.alone = len(fired.of(expert)[0]) - len(np.unique(rows))
        #: How many of its atoms never fired.
        self.dead = sum(len(r) == 0 for r, _ in parts)

    def at(self, row: int) -> int | None:
        """The strongest atom on a row; None where the expert fired alone."""
        i = int(np.searchsorted(self._rows, row))
        return int(self._atoms[i]) if i < len(self._rows) and self._rows[i] == row else None
