"""Sparse codes, the output of an encoder and the input of a decoder.

One representation serves every SAE: `slots` (value, index) pairs per token. A slot of value 0 is empty, so an L0
that varies from token to token needs no second type.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Codes(eqx.Module):
    """Sparse codes over `size` features.

    Args:
        values: the value in each slot, [*batch, slots]; 0 in an empty one.
        indices: the feature of each slot, [*batch, slots]; None where every feature has a slot, in order (dense).
        size: the number of features.
    """

    values: Float[Array, "*batch slots"]
    indices: Int[Array, "*batch slots"] | None
    size: int = eqx.field(static=True)

    def dense(self) -> Float[Array, "*batch features"]:
        """The codes as one array over all features. Slots that share an index add up."""
        if self.indices is None:
            return self.values
        flat_values = self.values.reshape(-1, self.values.shape[-1])
        flat_indices = self.indices.reshape(-1, self.values.shape[-1])
        rows = jnp.arange(flat_values.shape[0])[:, None]
        out = jnp.zeros((flat_values.shape[0], self.size), self.values.dtype)
        return out.at[rows, flat_indices].add(flat_values).reshape(*self.values.shape[:-1], self.size)

    def slot_indices(self) -> Int[Array, "*batch slots"]:
        """The feature of every slot, also for dense codes."""
        if self.indices is None:
            return jnp.broadcast_to(jnp.arange(self.size, dtype=jnp.int32), self.values.shape)
        return self.indices

    def l0(self) -> Float[Array, "*batch"]:
        """How many features are active (value not 0) for each token."""
        return jnp.sum(self.values != 0, axis=-1).astype(jnp.float32)

    def fired(self) -> Float[Array, "features"]:
        """How many tokens activated each feature (float32 count)."""
        if self.indices is None:
            return jnp.sum((self.values != 0).astype(jnp.float32), axis=tuple(range(self.values.ndim - 1)))
        counts = jnp.zeros(self.size, jnp.float32)
        return counts.at[self.slot_indices().reshape(-1)].add((self.values != 0).reshape(-1))

    def flat(self) -> "Codes":
        """The codes over the rows of ``sae.dictionary()``; for a flat SAE, itself."""
        return self

    def parent_values(self) -> Float[Array, "*batch slots"]:
        """For every slot of ``flat()`` the value of its parent; 0 where it has none, as here."""
        return jnp.zeros_like(self.values)

    def levels(self) -> tuple["Codes", ...]:
        """The codes that each sparsifier of the SAE selected: here, the one."""
        return (self,)

    def rows(self) -> int:
        """The number of tokens."""
        return self.values.size // self.values.shape[-1]


class TreeCodes(eqx.Module):
    """Codes of a hierarchical SAE.

    Args:
        parents: over experts, values [batch, k].
        children: for every parent slot, over the atoms of its expert, values [batch, k, c]; 0 wherever the parent is 0.
    """

    parents: Codes
    children: Codes

    def flat(self) -> Codes:
        """Codes over experts x (1 + atoms) features: parents first, then atom `a` of expert `e` at E + e*A + a."""
        experts, atoms = self.parents.size, self.children.size
        p_index = self.parents.slot_indices()
        c_index = experts + p_index[..., None] * atoms + self.children.slot_indices()
        shape = (*p_index.shape[:-1], c_index.shape[-2] * c_index.shape[-1])  # -1 is no size where there are no tokens
        return Codes(
            jnp.concatenate([self.parents.values, self.children.values.reshape(shape)], axis=-1),
            jnp.concatenate([p_index, c_index.reshape(shape)], axis=-1),
            experts * (1 + atoms),
        )

    def parent_values(self) -> Float[Array, "*batch slots"]:
        """For every slot of ``flat()`` the value of its parent; 0 for the parents themselves."""
        parents, children = self.parents.values, self.children.values
        spread = jnp.broadcast_to(parents[..., None], children.shape)
        shape = (*parents.shape[:-1], children.shape[-2] * children.shape[-1])
        return jnp.concatenate([jnp.zeros_like(parents), spread.reshape(shape)], axis=-1)

    def levels(self) -> tuple[Codes, ...]:
        """The codes that each sparsifier of the SAE selected: parents, then children."""
        return (self.parents, self.children)

    def rows(self) -> int:
        """The number of tokens."""
        return self.parents.rows()

    def l0(self) -> Float[Array, "*batch"]:
        """Parents plus atoms that are active, per token."""
        return self.flat().l0()

    def dense(self) -> Float[Array, "*batch features"]:
        """All experts x (1 + atoms) features."""
        return self.flat().dense()

    def fired(self) -> Float[Array, "features"]:
        """How many tokens activated each of the experts x (1 + atoms) features."""
        return self.flat().fired()
