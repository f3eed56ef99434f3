"""Parts that hierarchical SAEs have in common: experts with atoms inside subspaces, and how codes are decoded."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.codes import TreeCodes
from jhsae.leaf import Unit
from jhsae.sae.base import AbstractSAE, Forward, TreeForward
from jhsae.sparsify import AbstractSparsifier
from jhsae.usage import Context


class AbstractHierarchicalSAE(AbstractSAE):
    """Experts (parents), each with as many atoms (children) in a subspace of its own; the loss terms' view of them."""

    router_dec: eqx.AbstractVar[Annotated[Float[Array, "experts output"], Unit("output")]]
    up: eqx.AbstractVar[Float[Array, "experts sub output"]]
    atom_dec: eqx.AbstractVar[Annotated[Float[Array, "experts atoms sub"], Unit("sub")]]
    kernel: eqx.AbstractVar[ops.Kernel]
    chunk: eqx.AbstractVar[int | None]
    pick: eqx.AbstractVar[AbstractSparsifier]

    @property
    def experts(self) -> int:
        return self.router_dec.shape[0]

    @property
    def atoms(self) -> int:
        return self.atom_dec.shape[1]

    @property
    def sub(self) -> int:
        return self.atom_dec.shape[2]

    @property
    def features(self) -> int:
        return self.experts * (1 + self.atoms)

    @property
    def forest(self) -> ops.Forest:
        return ops.Forest((self.experts, self.atoms))

    def from_upper_levels(self, forward: Forward) -> tuple[Float[Array, "batch output"], ...]:
        assert isinstance(forward, TreeForward)
        return (forward.x_hat_parents,)

    def dictionary(self) -> Float[Array, "features output"]:
        """Expert rows, then the atoms ``atom_dec[e, a] @ up[e]`` in the order E + e*A + a."""
        decoder = self.decoder()
        atoms = jnp.einsum("eas,esd->ead", decoder.atom_dec, decoder.up).reshape(-1, decoder.up.shape[-1])
        return jnp.concatenate([decoder.rows, atoms])

    def top_level_rows(self) -> Float[Array, "experts output"]:
        return self.decoder().rows

    def decoder(self) -> ops.Decoder:
        """The parameters that decode."""
        return ops.Decoder(self.router_dec, self.up, self.atom_dec)

    def decode_children(self, codes: TreeCodes) -> Float[Array, "batch output"]:
        """What the atoms alone add to the reconstruction."""
        return ops.decode_atoms(codes, self.decoder(), self.kernel, self.chunk)

    def _decode_tree(
        self, codes: TreeCodes, from_parents: Float[Array, "batch output"] | None = None
    ) -> tuple[Float[Array, "batch output"], Float[Array, "batch output"]]:
        """``sum_e v_e router_dec_e``, unless it is known already, and ``sum_e (sum_a c_ea atom_dec_ea) up_e``."""
        if from_parents is not None:
            return from_parents, self.decode_children(codes)
        return ops.decode_tree(codes, self.decoder(), self.kernel, self.chunk)


def plus(a: Array, bias: Array | None) -> Array:
    """``a + bias``, or `a` without a bias."""
    return a if bias is None else a + bias


def of_children(context: Context) -> Context:
    """The same context with a key of its own, so that atoms do not reuse the router's noise."""
    key = None if context.key is None else jax.random.fold_in(context.key, 1)
    return Context(key, context.step, context.usage, context.dead)


def he_uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Entries evenly from -b to b, b^2 = 6 / the size of a row."""
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * (6.0 / shape[-1]) ** 0.5


def unit_rows(a: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Rows divided by their norms."""
    return a / jnp.linalg.norm(a, axis=-1, keepdims=True)
