"""The hierarchical transcoder: experts are chosen by what is read, and they and their atoms write something else.

``parents = route(router_enc x + b_enc)``, ``children = pick(atom_enc_e down_e x + b_atom)`` for each selected e, as in
a `HierarchicalSAE`; ``router_dec`` and ``up`` lie in the space that is written: ``y_hat = b_dec + skip(x) + sum_e v_e
router_dec_e + sum_e (sum_a c_ea atom_dec_ea) up_e``. With several `layers` it is a hierarchical cross-layer transcoder:
the experts of a layer, with their atoms, read that layer and write to it and to those after it.
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
from jhsae.sae.base import TopLevel, TreeForward, check_codes, check_selects
from jhsae.sae.children import AbstractChildScale, Unscaled
from jhsae.sae.encode import Encoded, route_and_encode
from jhsae.sae.layers import Layers
from jhsae.sae.macs import EncoderMacs, Number
from jhsae.sae.skip import AbstractSkip, NoSkip
from jhsae.sae.transcoder import whole, with_skip
from jhsae.sae.tree import AbstractHierarchicalSAE, he_uniform, of_children, plus, unit_rows
from jhsae.sparsify import AbstractRule, AbstractSparsifier
from jhsae.usage import Context

Bias = Literal["encoder", "decoder"]


class HierarchicalTranscoder(AbstractHierarchicalSAE):
    """`experts` parents with `atoms` atoms each. Encoders and decoders are drawn apart, biases start at 0.

    Sizes are those of all layers together; the rules select in each layer by itself.

    Args:
        embed: the size of what is read.
        experts: the number of parents.
        sub: the dimensions of an expert's subspace, at most those of a layer.
        atoms: the atoms of each expert.
        route: the rule that selects experts in a layer.
        pick: the rule that selects atoms inside the selected experts of a layer.
        output: the size of what is written; None for `embed`.
        layers: how many layers the vectors hold side by side.
        skip: what is added as a function of the input.
        child_scale: what an atom's value is multiplied by.
        biases: those that exist: "encoder" (experts and atoms), "decoder".
        kernel: how the experts are computed (`ops`).
        chunk: how many tokens are routed (and, by the kernel "gather", gathered) at once; None for a size that suits
            the machine.
        key: for the starting values.

    Raises:
        UserError: sizes that the layers cannot share, a `sub` above the size of a layer, or a rule that selects more
            than there is.
    """

    router_enc: Float[Array, "experts width"]
    router_dec: Annotated[Float[Array, "experts output"], Unit("output")]
    down: Float[Array, "experts sub width"]
    up: Float[Array, "experts sub output"]
    atom_enc: Float[Array, "experts atoms sub"]
    atom_dec: Annotated[Float[Array, "experts atoms sub"], Unit("sub")]
    b_enc: Float[Array, "experts"] | None
    b_atom: Float[Array, "experts atoms"] | None
    b_dec: Float[Array, "output"] | None
    routes: tuple[AbstractSparsifier, ...]
    pick: AbstractSparsifier
    child_scale: AbstractChildScale
    skip: AbstractSkip
    layers: int = eqx.field(static=True)
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
        output: Count | None = None,
        layers: Count = 1,
        skip: AbstractSkip = NoSkip(),  # noqa: B008  (an immutable module)
        child_scale: AbstractChildScale = Unscaled(),  # noqa: B008
        biases: Sequence[Bias] = ("encoder", "decoder"),
        kernel: ops.Kernel = "auto",
        chunk: Count | None = None,
        key: Key[Array, ""],
    ):
        sizes = Layers(layers, embed, output or embed, experts)
        sizes.check("experts")
        if sub > (least := min(sizes.width, sizes.written)):
            raise UserError(f"sub is {sub}, but a layer has {least} dimensions; write a sub of at most {least}")
        check_selects("route", route, sizes.own, "experts" if layers == 1 else "experts in a layer")
        check_selects("pick", pick, atoms, "atoms")
        keys = jax.random.split(key, 6)
        self.router_enc = he_uniform(keys[0], (experts, sizes.width))
        self.router_dec = unit_rows(sizes.masked(he_uniform(keys[1], (experts, sizes.output))))
        self.down = unit_rows(he_uniform(keys[2], (experts, sub, sizes.width)))
        self.up = unit_rows(sizes.masked(he_uniform(keys[3], (experts, sub, sizes.output))))
        self.atom_enc = unit_rows(he_uniform(keys[4], (experts, atoms, sub)))
        self.atom_dec = unit_rows(he_uniform(keys[5], (experts, atoms, sub)))
        self.b_enc = jnp.zeros(experts) if "encoder" in biases else None
        self.b_atom = jnp.zeros((experts, atoms)) if "encoder" in biases else None
        self.b_dec = jnp.zeros(sizes.output) if "decoder" in biases else None
        self.routes, self.pick = tuple(route.sized(sizes.own) for _ in range(layers)), pick.sized(1)
        self.skip, self.child_scale = skip.sized(layers, sizes.width, sizes.written), child_scale
        self.layers, self.kernel, self.chunk = layers, kernel, chunk

    @property
    def embed(self) -> int:
        return self.layers * self.router_enc.shape[1]

    @property
    def output(self) -> int:
        return self.router_dec.shape[1]

    @property
    def parts(self) -> int:
        return self.layers

    @property
    def writes_input(self) -> bool:
        return False

    @property
    def sizes(self) -> Layers:
        """How experts, input and output are divided into layers."""
        return Layers(self.layers, self.embed, self.output, self.experts)

    @property
    def masked(self) -> int:
        return int((~self.sizes.writes()).sum()) * (1 + self.sub)

    @property
    def top_level(self) -> TopLevel:
        thresholds = self.routes[0].thresholds if self.layers == 1 else ()
        return TopLevel(self.router_enc, self.router_dec, (() if self.b_enc is None else (self.b_enc,)) + thresholds)

    @property
    def sparsifiers(self) -> tuple[AbstractSparsifier, ...]:
        return (*self.routes, self.pick)

    @property
    def top_rule(self) -> AbstractRule:
        return self.sizes.whole_rule(self.routes)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (*(self.sizes.own,) * self.layers, 1)  # atoms of different experts share a slot: one threshold

    def _selected(self, codes: Codes | TreeCodes) -> tuple[Codes, ...]:
        parents, children = codes.levels()
        values = self.child_scale.undo(children.values, parents.values)
        return *self.sizes.parted(parents), Codes(values, children.indices, children.size)

    def encoder_macs(self, active: tuple[Number, ...] | None = None) -> EncoderMacs:
        """The routers, and for each active expert its projector and its atoms; a skip connection counts as decoding."""
        parents = self.layers * self.routes[0].most_active(self.sizes.own) if active is None else active[0]
        own = self.router_enc.size + parents * self.sub * (self.sizes.width + self.atoms)
        return EncoderMacs(own, own)

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> TreeForward:
        check_rows(x, self.embed)
        sizes, by_layer = self.sizes, self.sizes.split(x)
        found, children = [], []
        for layer in range(self.layers):
            within = sizes.context(layer, context)
            found.append(self._route(layer, by_layer[:, layer], within))
            children.append(self._pick(layer, found[-1], within))
        codes = TreeCodes(sizes.joined([one.codes for one in found]), _joined([codes for codes, _ in children]))
        from_parents, from_atoms = self._decode_tree(codes)
        x_hat_parents = with_skip(plus(from_parents, self.b_dec), self.skip(by_layer))
        known = {"x_hat_parents": x_hat_parents, "l1": sum((one.l1 for one in found), jnp.zeros(()))}
        known["child_pre"] = jnp.concatenate([pre for _, pre in children], axis=1)
        return TreeForward(x, x_hat_parents + from_atoms, codes, whole(found), context, **known)

    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch output"]:
        """What the features and the bias write, of `TreeCodes` or of flat `Codes`; without a skip connection."""
        check_codes(self, codes)
        if isinstance(codes, Codes):
            return plus(ops.decode_rows(codes, self.dictionary(), self.kernel, self.chunk), self.b_dec)
        from_parents, from_atoms = self._decode_tree(codes)
        return plus(from_parents, self.b_dec) + from_atoms

    def decoder(self) -> ops.Decoder:
        """The parameters that decode, 0 where an expert may not write."""
        return ops.Decoder(self.sizes.masked(self.router_dec), self.sizes.masked(self.up), self.atom_dec)

    def _route(self, layer: int, x: Float[Array, "batch width"], context: Context) -> Encoded:
        weight, down, atom_enc = (self.sizes.of(layer, a) for a in (self.router_enc, self.down, self.atom_enc))
        bias, experts = self.sizes.of_any(layer, self.b_enc), ops.ExpertEncoders(down, atom_enc)
        return route_and_encode(
            self.routes[layer], ops.Encoder(x, weight, bias), context, experts, self.kernel, self.chunk
        )

    def _pick(self, layer: int, routed: Encoded, context: Context) -> tuple[Codes, Float[Array, "batch k atoms"]]:
        """The codes of the atoms of one layer, and their pre-activations."""
        assert routed.child_pre is not None
        parents, bias = routed.codes, self.sizes.of_any(layer, self.b_atom)
        pre = plus(routed.child_pre, None if bias is None else bias[parents.slot_indices()])
        among = jnp.where((parents.values != 0)[..., None], pre, 0.0) if self.pick.across_experts else pre
        children = self.pick(among, of_children(context))
        return Codes(self.child_scale(children.values, parents.values), children.indices, children.size), pre


def _joined(parts: list[Codes]) -> Codes:
    """The atoms' codes of all layers: a slot for each parent's, one layer after the other."""
    values = jnp.concatenate([part.values for part in parts], axis=1)
    if parts[0].indices is None:
        return Codes(values, None, parts[0].size)
    return Codes(values, jnp.concatenate([part.slot_indices() for part in parts], axis=1), parts[0].size)
