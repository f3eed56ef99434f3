"""The decoder of a tree with gradients of its own, for kernels that work on the pairs of one device (`Decoding`)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.codes import Codes, TreeCodes
from jhsae.ops.parameters import Decoder
from jhsae.ops.rows import row_gradients, weighted_rows
from jhsae.ops.sharding import ShardingKind, shard_mapped

TOKENS, EXPERTS = ShardingKind.TOKENS, ShardingKind.EXPERTS
TOKEN_SUM, EXPERT_SUM = ShardingKind.TOKEN_SUM, ShardingKind.EXPERT_SUM


class Decoding(NamedTuple):
    """What the atoms add on one device, and its gradients.

    Args:
        forward: ``(children, indices, up, atom_dec)`` gives what they add to each token, [batch, embed].
        gradients: ``(children, indices, up, atom_dec, g)`` gives the gradients of every atom of each pair, [batch, k,
            at least the atoms], of `up` and of `atom_dec`.
    """

    forward: Callable[..., Float[Array, "batch embed"]]
    gradients: Callable[..., tuple[Array, Array, Array]]


def all_atoms(children: Codes, size: int) -> Float[Array, "batch k size"]:
    """The children of every pair at their atoms, zeros up to `size`; those that share one add up."""
    if children.indices is None:
        return jnp.pad(children.values, [(0, 0), (0, 0), (0, size - children.size)])
    chosen = children.indices[..., None] == jnp.arange(size)
    return jnp.sum(jnp.where(chosen, children.values[..., None], 0), axis=2)


def _of_slots(children: Codes, dense: Float[Array, "batch k some"]) -> Float[Array, "batch k c"]:
    """The numbers of the atoms that have a slot."""
    if children.indices is None:
        return dense[..., : children.size]
    chosen = children.indices[..., None] == jnp.arange(dense.shape[-1])
    return jnp.sum(jnp.where(chosen, dense[:, :, None], 0), axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def decode_atoms(own: Decoding, children: Codes, indices: Array, up: Array, atom_dec: Array) -> Array:
    """``sum_j (sum_c children[b, j, c] atom_dec[e_j, a_jc]) up[e_j]``: what the atoms alone add."""
    return _atoms_fwd(own, children, indices, up, atom_dec)[0]


def _atoms_fwd(
    own: Decoding, children: Codes, indices: Array, up: Array, atom_dec: Array
) -> tuple[Array, tuple[Codes, Array, Array, Array]]:
    decode = shard_mapped(own.forward, (TOKENS, TOKENS, EXPERTS, EXPERTS), TOKEN_SUM, up.shape[0])
    return decode(children, indices, up, atom_dec), (children, indices, up, atom_dec)


def _atoms_bwd(
    own: Decoding, saved: tuple[Codes, Array, Array, Array], g: Float[Array, "batch embed"]
) -> tuple[Codes, None, Array, Array]:
    def gradients(children: Codes, *rest: Array) -> tuple[Array, Array, Array]:
        dense, d_up, d_dec = own.gradients(children, *rest)
        return _of_slots(children, dense), d_up, d_dec

    kinds, results = (TOKENS, TOKENS, EXPERTS, EXPERTS, TOKENS), (TOKEN_SUM, EXPERT_SUM, EXPERT_SUM)
    d_children, d_up, d_dec = shard_mapped(gradients, kinds, results, saved[2].shape[0])(*saved, g)
    return Codes(d_children, None, saved[0].size), None, d_up, d_dec


decode_atoms.defvjp(_atoms_fwd, _atoms_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def decode_tree(
    own: Decoding, codes: TreeCodes, decoder: Decoder
) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
    """What the parents add, ``sum_j parents[b, j] rows[e_j]``, and what the atoms add: `decode_atoms`."""
    return _tree_fwd(own, codes, decoder)[0]


def _tree_fwd(own: Decoding, codes: TreeCodes, decoder: Decoder) -> tuple[tuple[Array, Array], tuple]:
    def decode(codes: TreeCodes, decoder: Decoder) -> tuple[Array, Array]:
        parents, indices = codes.parents, codes.parents.slot_indices()
        from_atoms = own.forward(codes.children, indices, decoder.up, decoder.atom_dec)
        return weighted_rows(parents.values, indices, decoder.rows), from_atoms

    both = shard_mapped(decode, (TOKENS, EXPERTS), (TOKEN_SUM, TOKEN_SUM), decoder.up.shape[0])
    return both(codes, decoder), (codes, decoder)


def _tree_bwd(
    own: Decoding,
    saved: tuple[TreeCodes, Decoder],
    g: tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]],
) -> tuple[TreeCodes, Decoder]:
    def gradients(codes: TreeCodes, decoder: Decoder, g_parents: Array, g_atoms: Array) -> tuple[Array, Array, Decoder]:
        parents, indices = codes.parents, codes.parents.slot_indices()
        d_parents, d_rows = row_gradients(parents.values, indices, decoder.rows, g_parents)
        dense, d_up, d_dec = own.gradients(codes.children, indices, decoder.up, decoder.atom_dec, g_atoms)
        return d_parents, _of_slots(codes.children, dense), Decoder(d_rows, d_up, d_dec)

    codes, decoder = saved
    kinds, results = (TOKENS, EXPERTS, TOKENS, TOKENS), (TOKEN_SUM, TOKEN_SUM, EXPERT_SUM)
    d_parents, d_children, d_decoder = shard_mapped(gradients, kinds, results, decoder.up.shape[0])(codes, decoder, *g)
    d_codes = TreeCodes(Codes(d_parents, None, codes.parents.size), Codes(d_children, None, codes.children.size))
    return d_codes, d_decoder


decode_tree.defvjp(_tree_fwd, _tree_bwd)
