"""The hierarchical SAE: one class for both philosophies.

A router picks experts; every selected expert looks at the token in a small subspace of its own and adds atoms:
``parents = route(router_enc x + b_enc)``, ``children = pick(atom_enc_e down_e x + b_atom)`` for each selected e,
``x_hat = b_dec + sum_e v_e router_dec_e + sum_e (sum_a c_ea atom_dec_ea) up_e``.
`HierarchicalSAE.forward` is these three lines.
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
from jhsae.sae.base import AbstractSAE, Forward, TopLevel, TreeForward, check_selects, decodes_any_shape
from jhsae.sae.children import AbstractChildInput, AbstractChildScale, Token, Unscaled
from jhsae.sae.encode import Encoded, route_and_encode
from jhsae.sae.macs import EncoderMacs, Number
from jhsae.sparsify import AbstractSparsifier
from jhsae.usage import Context

Tie = Literal["router", "projectors", "atoms"]
Bias = Literal["encoder", "decoder"]


class HierarchicalSAE(AbstractSAE):
    """`experts` parents with `atoms` atoms each, inside subspaces of `sub` dimensions.

    Encoders and decoders start equal: router he-uniform, projector and atom rows of unit norm, biases 0.

    Args:
        embed: the size of the vectors.
        experts: the number of parents.
        sub: the dimensions of an expert's subspace, at most `embed`.
        atoms: the atoms of each expert.
        route: the rule that selects experts.
        pick: the rule that selects atoms inside a selected expert.
        child_input: what the experts read: the token, or what the parents left of it.
        child_scale: what an atom's value is multiplied by.
        tie: the encoder-decoder pairs that share one array: "router", "projectors", "atoms". The others drift apart.
        biases: those that exist: "encoder" (experts and atoms), "decoder".
        apply_b_dec_to_input: whether the decoder bias is subtracted before encoding, as in SAELens.
        kernel: how the experts are computed (`ops`).
        chunk: how many tokens are routed (and, by the kernel "gather", gathered) at once; None for a size that suits
            the machine.
        key: for the starting values.

    Raises:
        UserError: a `sub` above `embed`, or a rule that selects more than there is.
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
    def tie(self) -> tuple[Tie, ...]:
        """The encoder-decoder pairs that share one array."""
        pairs: dict[Tie, Array | None] = {"router": self.router_enc, "projectors": self.down, "atoms": self.atom_enc}
        return tuple(name for name, encoder in pairs.items() if encoder is None)

    @property
    def biases(self) -> tuple[Bias, ...]:
        """The biases that exist."""
        pairs: dict[Bias, Array | None] = {"encoder": self.b_enc, "decoder": self.b_dec}
        return tuple(name for name, bias in pairs.items() if bias is not None)

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
    def forest(self) -> ops.Forest:
        return ops.Forest((self.experts, self.atoms))

    @property
    def top_level(self) -> TopLevel:
        biases = () if self.b_enc is None else (self.b_enc,)
        return TopLevel(self.router_enc, self.router_dec, (*biases, *self.route.thresholds))

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

    def encoders(self) -> tuple[Array, Array, Array]:
        """(router_enc, down, atom_enc), with a tied one read from its decoder."""
        return (
            self.router_dec if self.router_enc is None else self.router_enc,
            self.up if self.down is None else self.down,
            self.atom_dec if self.atom_enc is None else self.atom_enc,
        )

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> TreeForward:
        check_rows(x, self.embed)
        routed = self._route(x, context)
        child_pre, from_parents = self._encode_atoms(x, routed)
        codes = TreeCodes(routed.codes, self._pick(child_pre, routed.codes, context))
        from_parents, from_atoms = self._decode_tree(codes, from_parents)
        x_hat_parents = _plus(from_parents, self.b_dec)
        x_hat = x_hat_parents + from_atoms
        known = {"x_hat_parents": x_hat_parents, "child_pre": child_pre, "l1": routed.l1}
        return TreeForward(x, x_hat, codes, routed.encoder, context, **known)

    def encoder_macs(self, active: tuple[Number, ...] | None = None) -> EncoderMacs:
        """The router, and for each active expert its projector and its atoms; the parents where atoms need them."""
        parents = self.route.most_active(self.experts) if active is None else active[0]
        per_expert = self.sub * (self.embed + self.atoms) + self.embed * self.child_input.reads_residual
        own = self.experts * self.embed + parents * per_expert
        return EncoderMacs(own, own)

    def from_upper_levels(self, forward: Forward) -> tuple[Float[Array, "batch embed"], ...]:
        assert isinstance(forward, TreeForward)
        return (forward.x_hat_parents,)

    @decodes_any_shape
    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        """From `TreeCodes`, or from flat `Codes` over ``dictionary()``."""
        if isinstance(codes, Codes):
            return _plus(ops.decode_rows(codes, self.dictionary(), self.kernel, self.chunk), self.b_dec)
        from_parents, from_atoms = self._decode_tree(codes)
        return _plus(from_parents, self.b_dec) + from_atoms

    def dictionary(self) -> Float[Array, "features embed"]:
        """Expert rows, then the atoms ``atom_dec[e, a] @ up[e]`` in the order E + e*A + a."""
        atoms = jnp.einsum("eas,esd->ead", self.atom_dec, self.up).reshape(-1, self.embed)
        return jnp.concatenate([self.router_dec, atoms])

    def top_level_rows(self) -> Float[Array, "top_level embed"]:
        return self.router_dec

    def decoder(self) -> ops.Decoder:
        """The parameters that decode."""
        return ops.Decoder(self.router_dec, self.up, self.atom_dec)

    def decode_children(self, codes: TreeCodes) -> Float[Array, "batch embed"]:
        """What the atoms alone add to the reconstruction."""
        return ops.decode_atoms(codes, self.decoder(), self.kernel, self.chunk)

    def _route(self, x: Float[Array, "batch embed"], context: Context) -> Encoded:
        """``parents = route(router_enc x + b_enc)``; the atoms' pre-activations too, where they read the token."""
        router_enc, down, atom_enc = self.encoders()
        encoder = ops.Encoder(x, router_enc, self.b_enc, self.b_dec if self.apply_b_dec_to_input else None)
        experts = None if self.child_input.reads_residual else ops.ExpertEncoders(down, atom_enc)
        return route_and_encode(self.route, encoder, context, experts, self.kernel, self.chunk)

    def _encode_atoms(
        self, x: Float[Array, "batch embed"], routed: Encoded
    ) -> tuple[Float[Array, "batch k atoms"], Float[Array, "batch embed"] | None]:
        """``atom_enc_e down_e x + b_atom`` for each selected e; what the parents add, where it was needed for that."""
        indices, child_pre, from_parents = routed.codes.slot_indices(), routed.child_pre, None
        if child_pre is None:
            _, down, atom_enc = self.encoders()
            from_parents = ops.decode_rows(routed.codes, self.router_dec, self.kernel, self.chunk)
            child_in = self.child_input(routed.encoder.centred(x), x - _plus(from_parents, self.b_dec))
            experts = ops.ExpertEncoders(down, atom_enc)
            child_pre = ops.encode_atoms(child_in, indices, experts, self.kernel, self.chunk)
        return _plus(child_pre, None if self.b_atom is None else self.b_atom[indices]), from_parents

    def _pick(self, child_pre: Float[Array, "batch k atoms"], parents: Codes, context: Context) -> Codes:
        """``children = pick(child_pre)``, scaled as `child_scale` says."""
        if self.pick.across_experts:
            child_pre = jnp.where((parents.values != 0)[..., None], child_pre, 0.0)
        children = self.pick(child_pre, _for_children(context))
        return Codes(self.child_scale(children.values, parents.values), children.indices, children.size)

    def _decode_tree(
        self, codes: TreeCodes, from_parents: Float[Array, "batch embed"] | None = None
    ) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
        """``sum_e v_e router_dec_e``, unless it is known already, and ``sum_e (sum_a c_ea atom_dec_ea) up_e``."""
        if from_parents is not None:
            return from_parents, self.decode_children(codes)
        return ops.decode_tree(codes, self.decoder(), self.kernel, self.chunk)


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
