"""The hierarchical SAE: one class for both philosophies.

A router picks experts; every selected expert looks at the token in a small subspace of its own and adds atoms:
``parents = route(router_enc x + b_enc)``, ``children = pick(atom_enc_e down_e x + b_atom)`` for each selected e,
``x_hat = b_dec + sum_e v_e router_dec_e + sum_e (sum_a c_ea atom_dec_ea) up_e``.
Sources: Muchane et al., arXiv 2506.01197 (`MixtureOfExperts_v2`), and PolytopeSAE, whose models differ in the parts.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.leaf import Unit
from jhsae.ops.inputs import check_rows
from jhsae.ranges import Count
from jhsae.sae.base import AbstractSAE, Forward, Top, check_codes, check_selects
from jhsae.sae.children import AbstractChildInput, AbstractChildScale, Token, Unscaled
from jhsae.sparsify import AbstractSparsifier
from jhsae.usage import Context

Tie = Literal["router", "projectors", "atoms"]
Bias = Literal["encoder", "decoder"]


class HierarchicalSAE(AbstractSAE):
    """`experts` parents with `atoms` atoms each, inside subspaces of `sub` dimensions.

    `tie` names the encoder-decoder pairs that share one array for good; the others start equal and drift apart.
    `biases` names what exists: "encoder" (experts and atoms), "decoder". `apply_b_dec_to_input` subtracts the
    decoder bias before encoding, as in SAELens. `kernel` chooses how the experts are computed and `chunk` how many
    tokens are routed (and, by the kernel "gather", gathered) at once; None takes what suits the machine (`ops`).
    """

    router_enc: Float[Array, "experts embed"] | None
    router_dec: Annotated[Float[Array, "experts embed"], Unit("embed")]
    down: Float[Array, "experts sub embed"] | None
    up: Float[Array, "experts sub embed"]
    atom_enc: Float[Array, "experts atoms sub"] | None
    atom_dec: Annotated[Float[Array, "experts atoms sub"], Unit("sub")]
    b_enc: Float[Array, "experts"] | None
    b_atom: Float[Array, "experts atoms"] | None
    b_dec: Float[Array, "embed"] | None
    route: AbstractSparsifier
    pick: AbstractSparsifier
    child_input: AbstractChildInput
    child_scale: AbstractChildScale
    apply_b_dec_to_input: bool = eqx.field(static=True)
    kernel: ops.Kernel = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(
        self,
        embed: Count,
        experts: Count,
        sub: Count,
        atoms: Count,
        route: AbstractSparsifier,
        pick: AbstractSparsifier,
        *,
        child_input: AbstractChildInput = Token(),  # noqa: B008  (an immutable module)
        child_scale: AbstractChildScale = Unscaled(),  # noqa: B008
        tie: Sequence[Tie] = (),
        biases: Sequence[Bias] = (),
        apply_b_dec_to_input: bool = True,
        kernel: ops.Kernel = "auto",
        chunk: Count | None = None,
        key: Key[Array, ""],
    ):
        """Encoders and decoders start equal: router he-uniform, projector and atom rows of unit norm."""
        if sub > embed:
            raise UserError(f"sub is {sub}, but vectors have {embed} dimensions; write a sub of at most {embed}")
        check_selects("route", route, experts, "experts")
        check_selects("pick", pick, atoms, "atoms")
        keys = jax.random.split(key, 3)
        router = _he_uniform(keys[0], (experts, embed))
        projector = _unit_rows(_he_uniform(keys[1], (experts, sub, embed)))
        atom = _unit_rows(_he_uniform(keys[2], (experts, atoms, sub)))
        self.router_enc = None if "router" in tie else router
        self.router_dec = router
        self.down = None if "projectors" in tie else projector
        self.up = projector
        self.atom_enc = None if "atoms" in tie else atom
        self.atom_dec = atom
        self.b_enc = jnp.zeros(experts) if "encoder" in biases else None
        self.b_atom = jnp.zeros((experts, atoms)) if "encoder" in biases else None
        self.b_dec = jnp.zeros(embed) if "decoder" in biases else None
        self.route, self.pick = route.sized(experts), pick.sized(1)
        self.child_input, self.child_scale = child_input, child_scale
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.kernel, self.chunk = kernel, chunk

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
    def top(self) -> Top:
        biases = () if self.b_enc is None else (self.b_enc,)
        return Top(self.router_enc, self.router_dec, (*biases, *self.route.thresholds))

    @property
    def sparsifiers(self) -> tuple[AbstractSparsifier, ...]:
        return (self.route, self.pick)

    def _selected(self, codes: Codes | TreeCodes) -> tuple[Codes, ...]:
        parents, children = codes.levels()
        values = self.child_scale.undo(children.values, parents.values)
        return parents, Codes(values, children.indices, children.size)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.experts, 1)  # atoms of different experts share a slot, so a threshold of theirs is one number

    @property
    def features(self) -> int:
        return self.experts * (1 + self.atoms)

    @property
    def embed(self) -> int:
        return self.router_dec.shape[1]

    @property
    def _sorts_pairs(self) -> bool:
        return ops.kernel_for(self.kernel, self.route.most_active(self.experts), self.experts) == "tiles"

    def encoders(self) -> tuple[Array, Array, Array]:
        """(router_enc, down, atom_enc), with a tied one read from its decoder."""
        return (
            self.router_dec if self.router_enc is None else self.router_enc,
            self.up if self.down is None else self.down,
            self.atom_dec if self.atom_enc is None else self.atom_enc,
        )

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        check_rows(x, self.embed)
        router_enc, down, atom_enc = self.encoders()
        encoder = ops.Encoder(x, router_enc, self.b_enc, self.b_dec if self.apply_b_dec_to_input else None)
        # experts that read the router's input share its loops where pairs are sorted by expert
        shared = not self.child_input.reads_parents and self._sorts_pairs
        inside = ops.Inside(down, atom_enc) if shared else None
        parents, encoder, l1, child_pre = self.route.encode(encoder, context, self.chunk, inside)
        indices, top = parents.slot_indices(), None
        if child_pre is None:
            top = self._decode_parents(parents)
            child_in = self.child_input(encoder.centred(x), x - _plus(top, self.b_dec))
            child_pre = ops.encode_atoms(child_in, indices, down, atom_enc, self.kernel, self.chunk)
        child_pre = _plus(child_pre, None if self.b_atom is None else self.b_atom[indices])
        children = self.pick(child_pre, _for_children(context))
        children = Codes(self.child_scale(children.values, parents.values), children.indices, children.size)
        codes = TreeCodes(parents, children)
        top, low = self._decode_tree(codes) if top is None else (top, self.decode_children(codes))
        coarse = _plus(top, self.b_dec)
        return Forward(x, coarse + low, codes, encoder, context, coarse, child_pre, l1)

    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        """From `TreeCodes`, or from flat `Codes` over ``dictionary()``."""
        check_codes(self, codes)
        if isinstance(codes, Codes):
            return _plus(
                ops.decode_rows(codes.values, codes.slot_indices(), self.dictionary(), self.kernel, self.chunk),
                self.b_dec,
            )
        top, low = self._decode_tree(codes)
        return _plus(top, self.b_dec) + low

    def dictionary(self) -> Float[Array, "features embed"]:
        """Expert rows, then the atoms ``atom_dec[e, a] @ up[e]`` in the order E + e*A + a."""
        atoms = jnp.einsum("eas,esd->ead", self.atom_dec, self.up).reshape(-1, self.embed)
        return jnp.concatenate([self.router_dec, atoms])

    def top_rows(self) -> Float[Array, "top embed"]:
        return self.router_dec

    def _decode_parents(self, parents: Codes) -> Float[Array, "batch embed"]:
        if parents.indices is None:
            return parents.values @ self.router_dec
        return ops.decode_rows(parents.values, parents.indices, self.router_dec, self.kernel, self.chunk)

    def _decode_tree(self, codes: TreeCodes) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
        """What parents and what atoms add to the reconstruction."""
        parents, children = codes.parents, codes.children
        if parents.indices is None:
            return self._decode_parents(parents), self.decode_children(codes)
        codes_of = (parents.values, children.values, children.indices, parents.indices)
        return ops.decode_tree(*codes_of, self.router_dec, self.up, self.atom_dec, self.kernel, self.chunk)

    def decode_children(self, codes: TreeCodes) -> Float[Array, "batch embed"]:
        """What the atoms alone add to the reconstruction."""
        children = codes.children
        return ops.decode_atoms(
            children.values,
            children.indices,
            codes.parents.slot_indices(),
            self.up,
            self.atom_dec,
            self.kernel,
            self.chunk,
        )


def _he_uniform(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * (6.0 / shape[-1]) ** 0.5


def _unit_rows(a: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    return a / jnp.linalg.norm(a, axis=-1, keepdims=True)


def _plus(a: Array, bias: Array | None) -> Array:
    return a if bias is None else a + bias


def _for_children(context: Context) -> Context:
    """The same context with a key of its own, so that atoms do not reuse the router's noise."""
    key = None if context.key is None else jax.random.fold_in(context.key, 1)
    return Context(key, context.step, context.usage, context.dead)
