"""The SAE without an encoder: a dictionary of unit rows, flat or a forest of any depth, and a pursuit that encodes.

``codes = pursuit(x - b_dec, rows)``, ``x_hat = codes rows + b_dec``. The pursuit (`ops.pursuit`) takes row after row,
children after their parents, and solves least squares for the values; it is not differentiated. At values that solve
least squares the gradient of the error with respect to the rows is that at values held fixed, so decoding gives it
exactly. Matching pursuit as an encoder: Costa et al., arXiv 2506.03093; here values are non-negative and refitted.
"""

from collections.abc import Sequence
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Ge, MinLen
from jaxtyping import Array, Bool, Float, Key

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.leaf import Levels, Unit
from jhsae.ops.inputs import check_rows
from jhsae.ranges import Count, Natural
from jhsae.sae.base import AbstractSAE, Forward, TopLevel, decodes_any_shape
from jhsae.sae.candidates import AbstractCandidates, AllRows
from jhsae.sae.flat import random_unit_rows
from jhsae.sae.macs import EncoderMacs, Number, pursuit_macs
from jhsae.sparsify import AbstractBudget, AbstractRule
from jhsae.usage import Context, FeatureStats


class PursuitCodes(Codes):
    """Codes of a pursuit, each slot with the threshold below which it is in use.

    Args:
        scores: `ops.Pursued.scores`.
    """

    scores: Float[Array, "batch scores"] = eqx.field(kw_only=True)


class PursuitForward(Forward):
    """One forward pass of a pursuit.

    Args:
        prefixes: for each level but the last, the values where only the rows down to it are kept and refitted,
            [batch, levels - 1, picks].
    """

    codes: PursuitCodes
    prefixes: Float[Array, "batch prefixes picks"] = eqx.field(kw_only=True)


class PursuitSAE(AbstractSAE):
    """A dictionary whose rows lie in a forest and are found by a pursuit.

    Rows are numbered level by level (`ops.Forest`). A slot of the forest that is not in use holds a row of zeros, whose
    score is never above a threshold: it is never picked, and neither constraint nor optimizer moves it. Train it with
    the constraint `AncestorsOut`, so that what a child adds is not a part of its parent.

    Args:
        embed: the size of the vectors.
        levels: the number of roots, then of slots below each row, level by level: [1024] is flat, [340, 8] has 340
            roots of 8 children each.
        budget: how many rows may be in, and at what score a row enters.
        candidates: which roots compete at a pick.
        filled: the levels that start with rows, from the roots on; those below start empty (`resampling.GrowLevel`).
            None for all.
        most_children: how many children of one row may be in at once; None for all of them.
        sweeps: joint sweeps of non-negative least squares at the end of a pursuit.
        growth: how far apart the picks are after which such a sweep follows too, from 1, after every pick
            (`ops.swept`): a larger one is faster.
        kernel: how codes are decoded (`ops`).
        chunk: how many tokens are encoded at once; None for a size that suits the machine.
        key: for the starting values: rows drawn evenly from the sphere, biases 0.

    Raises:
        UserError: more picks than there are rows or candidates, or more filled levels than there are.
    """

    rows: Annotated[Float[Array, "features embed"], Unit("embed"), Levels("levels")]
    b_dec: Float[Array, "embed"]
    budget: AbstractBudget
    candidates: AbstractCandidates
    levels: tuple[int, ...] = eqx.field(static=True)
    most_children: int | None = eqx.field(static=True)
    sweeps: int = eqx.field(static=True)
    growth: float = eqx.field(static=True)
    kernel: ops.Kernel = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(
        self,
        embed: Count,
        levels: Annotated[Sequence[Count], MinLen(1)],
        budget: AbstractBudget,
        *,
        candidates: AbstractCandidates = AllRows(),  # noqa: B008  (an immutable module)
        filled: Count | None = None,
        most_children: Count | None = None,
        sweeps: Natural = 3,
        growth: Annotated[float, Ge(1)] = 1.0,
        kernel: ops.Kernel = "auto",
        chunk: Count | None = None,
        key: Key[Array, ""],
    ):
        self.levels, self.most_children, self.sweeps = tuple(levels), most_children, sweeps
        self.growth, self.kernel, self.chunk = float(growth), kernel, chunk
        forest = self.forest
        if budget.picks > forest.size:
            raise UserError(
                f"budget: up to {budget.picks} rows enter for a token, but levels {list(levels)} have {forest.size}; "
                f"write a budget of at most {forest.size}"
            )
        if filled is not None and filled > len(self.levels):
            raise UserError(
                f"filled is {filled}, but there are {len(self.levels)} levels; write at most {len(self.levels)}"
            )
        candidates.check(budget.picks, forest.roots, most_children)
        end = forest.blocks[(filled or len(self.levels)) - 1].end
        self.rows = jnp.where(jnp.arange(forest.size)[:, None] < end, random_unit_rows(key, (forest.size, embed)), 0.0)
        self.b_dec = jnp.zeros(embed)
        self.budget, self.candidates = budget, candidates

    @property
    def forest(self) -> ops.Forest:
        """The shape of the forest."""
        return ops.Forest(self.levels)

    @property
    def occupied(self) -> Bool[Array, "features"]:
        """Whether each slot of the forest holds a row."""
        return jnp.any(self.rows != 0, axis=1)

    @property
    def swept(self) -> tuple[bool, ...]:
        """Whether a sweep follows each pick."""
        return ops.swept(self.budget.picks, self.growth)

    @property
    def features(self) -> int:
        return self.rows.shape[0]

    @property
    def embed(self) -> int:
        return self.rows.shape[1]

    @property
    def top_level(self) -> TopLevel:
        """All rows, of every level: each has a score, may be dead and is resampled."""
        return TopLevel(None, self.rows, ())

    @property
    def sparsifiers(self) -> tuple[AbstractRule, ...]:
        return (self.budget,)

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> PursuitForward:
        check_rows(x, self.embed)
        budget = self.budget
        search = ops.Search(self.forest, budget.picks, budget.keep, self.sweeps, self.most_children, self.growth)
        with jax.named_scope("pursuit"):
            found = self.candidates(x - self.b_dec, self.rows, budget.least(context), search, self.chunk)
        codes = PursuitCodes(found.values, found.indices, self.features, scores=found.scores)
        encoder = ops.Encoder(x, self.rows, centre=self.b_dec)
        return PursuitForward(x, self.decode(codes), codes, encoder, context, prefixes=found.prefixes)

    @decodes_any_shape
    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        return ops.decode_rows(codes.flat(), self.rows, self.kernel, self.chunk) + self.b_dec

    def parent_values(self, codes: Codes | TreeCodes) -> Float[Array, "*batch slots"]:
        flat = codes.flat()
        indices = flat.slot_indices()
        parents = jnp.asarray(self.forest.parents)[indices]
        of_parent = indices[..., None, :] == parents[..., :, None]
        return jnp.sum(jnp.where(of_parent, flat.values[..., None, :], 0.0), axis=-1)

    def encoder_macs(self, active: tuple[Number, ...] | None = None) -> EncoderMacs:
        """Those of the pursuit (`pursuit_macs`); without `active` each level has an equal share of the budget."""
        if active is None:
            k = self.budget.batch_k
            whole = self.budget.most_active(self.features) if k is None else k(0)
            active = (whole / len(self.levels),) * len(self.levels)
        extra = self.budget.picks - (self.budget.keep or self.budget.picks)
        pool = self.candidates.pool(self.forest.roots)
        return pursuit_macs(self.embed, pool, (*self.levels[1:], 0), active, self.sweeps, self.swept, extra)

    def from_upper_levels(self, forward: Forward) -> tuple[Float[Array, "batch embed"], ...]:
        assert isinstance(forward, PursuitForward)
        levels = range(len(self.levels) - 1)
        return tuple(
            self.decode(Codes(forward.prefixes[:, level], forward.codes.indices, self.features)) for level in levels
        )

    def observe(self, usage: FeatureStats, codes: Codes | TreeCodes, window: int) -> FeatureStats:
        """As for every SAE; an empty slot does not count as dead."""
        return super().observe(usage, codes, window).restarted(~self.occupied)

    def _selected(self, codes: Codes | TreeCodes) -> tuple[Codes, ...]:
        assert isinstance(codes, PursuitCodes)
        return (Codes(codes.scores, None, codes.scores.shape[-1]),)
