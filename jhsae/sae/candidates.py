"""The candidate rule of a pursuit: which roots compete at a pick."""

import abc
from typing import Literal

import equinox as eqx
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.errors import UserError
from jhsae.ranges import Count, Ranged
from jhsae.sae.macs import Pool
from jhsae.schedule import Scalar


class AbstractCandidates(Ranged, eqx.Module):
    """``part(x, rows, threshold, search, chunk) -> ops.Pursued``."""

    @abc.abstractmethod
    def __call__(
        self,
        x: Float[Array, "batch embed"],
        rows: Float[Array, "features embed"],
        threshold: Scalar,
        search: ops.Search,
        chunk: int | None,
    ) -> ops.Pursued:
        """The codes of a centred batch; the arguments are those of `ops.pursue`."""

    @abc.abstractmethod
    def pool(self, roots: int) -> Pool:
        """Which of so many roots are scored."""

    def check(self, picks: int, roots: int, most_children: int | None) -> None:
        """Raises `UserError` where so many picks are not to be had, or children cannot be counted."""


class AllRows(AbstractCandidates):
    """All open rows compete at every pick: for up to a few thousand roots."""

    def __call__(
        self,
        x: Float[Array, "batch embed"],
        rows: Float[Array, "features embed"],
        threshold: Scalar,
        search: ops.Search,
        chunk: int | None,
    ) -> ops.Pursued:
        return ops.pursue(x, rows, threshold, search, chunk)

    def pool(self, roots: int) -> Pool:
        return Pool(roots, roots, 0)


class Screened(AbstractCandidates):
    """Of the roots, the `candidates` largest scores compete, chosen anew on the residual in each of `rounds` rounds.

    For many roots: no array of features x features exists for more than 4,096 rows. More candidates are needed for more
    roots and a larger L0, and more rounds with fewer candidates cost less memory traffic than the opposite.

    Args:
        rounds: how often candidates are chosen.
        candidates: how many each time.
        children: whether the children of a row that enters compete from the next pick on, or are candidates of the
            next round like the roots: then a round costs the same in a tree, and what enters in the last one has none.
    """

    rounds: Count = eqx.field(static=True, default=3)
    candidates: Count = eqx.field(static=True, default=64)
    children: Literal["every pick", "every round"] = eqx.field(static=True, default="every pick")

    def __call__(
        self,
        x: Float[Array, "batch embed"],
        rows: Float[Array, "features embed"],
        threshold: Scalar,
        search: ops.Search,
        chunk: int | None,
    ) -> ops.Pursued:
        search = search._replace(by_round=self.by_round)
        return ops.screened(x, rows, threshold, search, self.rounds, self.candidates, chunk)

    def pool(self, roots: int) -> Pool:
        return Pool(roots, min(self.candidates, roots), self.rounds, self.by_round)

    @property
    def by_round(self) -> bool:
        """Whether children are candidates, in place of competing at every pick."""
        return self.children == "every round"

    def check(self, picks: int, roots: int, most_children: int | None) -> None:
        if self.by_round and most_children is not None:
            raise UserError(
                f"Screened: most_children is {most_children}, but children are candidates of a round, chosen before it "
                "is known how many enter; write children='every pick' or most_children=null"
            )
        if self.rounds > picks:
            raise UserError(
                f"Screened: rounds is {self.rounds}, but a token has {picks} picks; write at most {picks} rounds"
            )
        largest = max(ops.schedule(picks, self.rounds))
        if largest > (found := min(self.candidates, roots)):
            raise UserError(
                f"Screened: a round picks up to {largest} rows, but has {found} candidates among {roots} roots; write "
                f"candidates={largest} or more, more rounds, or jhsae.sae.AllRows"
            )
