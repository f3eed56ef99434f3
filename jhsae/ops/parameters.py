"""The parameters of an SAE as the operations take them: an encoder with its input, encoders of experts, a decoder."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops.precision import dot
from jhsae.ops.sharding import ShardingKind, constrain


class Encoder(eqx.Module):
    """``scale * (weight (x - centre) + bias)``: the pre-activations of a batch, before any of them is computed.

    Args:
        x: the input, [batch, embed].
        weight: one row per feature, [features, embed].
        bias: [features], or None for none.
        centre: [embed], subtracted from `x`, or None.
        scale: [features], or None for 1.
        values: [batch, features], all pre-activations where an SAE has computed them already.
    """

    x: Float[Array, "batch embed"]
    weight: Float[Array, "features embed"]
    bias: Float[Array, "features"] | None = None
    centre: Float[Array, "embed"] | None = None
    scale: Float[Array, "features"] | None = None
    values: Float[Array, "batch features"] | None = None

    @classmethod
    def from_preactivations(cls, pre: Float[Array, "batch features"]) -> "Encoder":
        """Pre-activations that something else computed, as an encoder."""
        empty = jnp.zeros((pre.shape[0], 0)), jnp.zeros((pre.shape[1], 0))
        return cls(*empty, values=pre)

    @property
    def size(self) -> int:
        """The number of features."""
        return self.weight.shape[0]

    def dense(self) -> Float[Array, "batch features"]:
        """All pre-activations of the batch."""
        if self.values is not None:
            return self.values
        return constrain(self.preactivations(self.centred(self.x)), ShardingKind.BOTH)

    def evaluated(self) -> "Encoder":
        """The same encoder with `values`, so that all pre-activations are computed once."""
        return Encoder(self.x, self.weight, self.bias, self.centre, self.scale, self.dense())

    def rows(self, features: Int[Array, "some"]) -> "Encoder":
        """The encoder of some of the features."""

        def chosen(a: Float[Array, "features"] | None) -> Float[Array, "some"] | None:
            return None if a is None else a[features]

        values = None if self.values is None else self.values[:, features]
        return Encoder(self.x, self.weight[features], chosen(self.bias), self.centre, chosen(self.scale), values)

    def centred(self, x: Float[Array, "tokens embed"]) -> Float[Array, "tokens embed"]:
        """The input of the weight."""
        return x if self.centre is None else x - self.centre

    def preactivations(self, centred: Float[Array, "tokens embed"]) -> Float[Array, "tokens features"]:
        """The pre-activations of tokens that are centred already."""
        raw = dot("bd,fd->bf", centred, self.weight)
        raw = raw if self.bias is None else raw + self.bias
        return raw if self.scale is None else raw * self.scale

    def sharding(self) -> "Encoder":
        """The `ShardingKind` of each array, as a tree like this one."""
        kind = ShardingKind
        kinds = (kind.TOKENS, kind.EXPERTS, kind.EXPERTS, kind.WHOLE, kind.EXPERTS, kind.BOTH)
        arrays = (self.x, self.weight, self.bias, self.centre, self.scale, self.values)
        present = [k for k, a in zip(kinds, arrays, strict=True) if a is not None]
        return jax.tree.unflatten(jax.tree.structure(self), present)


class ExpertEncoders(eqx.Module):
    """The encoders inside the experts: ``atom_enc[e] down[e] x``.

    Args:
        down: the projectors into the experts' subspaces, [experts, sub, embed].
        atom_enc: the encoders of the atoms there, [experts, atoms, sub].
    """

    down: Float[Array, "experts sub embed"]
    atom_enc: Float[Array, "experts atoms sub"]


class Decoder(eqx.Module):
    """The decoder of a hierarchical SAE: expert e adds ``rows[e]``, its atom a ``atom_dec[e, a] @ up[e]``.

    Args:
        rows: the decoder rows of the experts, [experts, embed].
        up: the projectors out of the experts' subspaces, [experts, sub, embed].
        atom_dec: the decoder rows of the atoms there, [experts, atoms, sub].
    """

    rows: Float[Array, "experts embed"]
    up: Float[Array, "experts sub embed"]
    atom_dec: Float[Array, "experts atoms sub"]
