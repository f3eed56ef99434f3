"""The transcoder: it reads one place in a language model and writes another, such as an MLP's input and output.

``codes = sparsifier(W_enc x + b_enc)``, ``y_hat = codes W_dec + b_dec + skip(x)`` (Dunefsky et al., arXiv 2406.11944).
With several `layers` it is a cross-layer transcoder (`jhsae.sae.layers`): layer l of ``y_hat`` is the sum over the
features of all layers up to l. A crosscoder, whose target is what it reads, needs no class of its own: it is a
`FlatSAE` or a `HierarchicalSAE` of several stores side by side.
"""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.leaf import Unit
from jhsae.ops.inputs import check_rows
from jhsae.ranges import Count
from jhsae.sae.base import AbstractSAE, Forward, TopLevel, check_codes, check_selects
from jhsae.sae.encode import Encoded, route_and_encode
from jhsae.sae.flat import random_unit_rows
from jhsae.sae.layers import Layers
from jhsae.sae.macs import EncoderMacs, Number
from jhsae.sae.skip import AbstractSkip, NoSkip
from jhsae.sae.units import AbstractCodeUnit, PlainUnit
from jhsae.sparsify import AbstractRule, AbstractSparsifier
from jhsae.usage import Context


class Transcoder(AbstractSAE):
    """A flat transcoder. Starts with unit rows, those of encoder and decoder drawn apart, biases 0.

    Sizes are those of all layers together; the rule selects in each layer by itself.

    Args:
        embed: the size of what is read.
        features: the number of features.
        sparsifier: the rule that makes codes of the pre-activations of a layer.
        output: the size of what is written; None for `embed`.
        layers: how many layers the vectors hold side by side.
        skip: what is added as a function of the input.
        code_unit: what a code of 1 adds: the decoder row as it stands, or its direction.
        kernel: how sparse codes are decoded (`ops`).
        chunk: how many tokens are encoded, and by the kernel "gather" decoded, at once; None for a size that suits the
            machine.
        key: for the starting values.

    Raises:
        UserError: sizes that the layers cannot share, or a sparsifier that selects more than a layer's features.
    """

    W_enc: Float[Array, "features width"]
    W_dec: Annotated[Float[Array, "features output"], Unit("output")]
    b_enc: Float[Array, "features"]
    b_dec: Float[Array, "output"]
    rules: tuple[AbstractSparsifier, ...]
    skip: AbstractSkip
    code_unit: AbstractCodeUnit
    layers: int = eqx.field(static=True)
    kernel: ops.Kernel = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(
        self,
        embed: Count,
        features: Count,
        sparsifier: AbstractSparsifier,
        *,
        output: Count | None = None,
        layers: Count = 1,
        skip: AbstractSkip = NoSkip(),  # noqa: B008  (an immutable module)
        code_unit: AbstractCodeUnit = PlainUnit(),  # noqa: B008
        kernel: ops.Kernel = "auto",
        chunk: Count | None = None,
        key: Key[Array, ""],
    ):
        sizes = Layers(layers, embed, output or embed, features)
        sizes.check("features")
        check_selects("sparsifier", sparsifier, sizes.own, "features" if layers == 1 else "features in a layer")
        keys = jax.random.split(key)
        self.W_enc = random_unit_rows(keys[0], (features, sizes.width))
        rows = sizes.masked(random_unit_rows(keys[1], (features, sizes.output)))
        self.W_dec = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
        self.b_enc, self.b_dec = jnp.zeros(features), jnp.zeros(sizes.output)
        self.rules = tuple(sparsifier.sized(sizes.own) for _ in range(layers))
        self.skip = skip.sized(layers, sizes.width, sizes.written)
        self.code_unit, self.layers, self.kernel, self.chunk = code_unit, layers, kernel, chunk

    @property
    def features(self) -> int:
        return self.W_enc.shape[0]

    @property
    def embed(self) -> int:
        return self.layers * self.W_enc.shape[1]

    @property
    def output(self) -> int:
        return self.W_dec.shape[1]

    @property
    def parts(self) -> int:
        return self.layers

    @property
    def writes_input(self) -> bool:
        return False

    @property
    def sizes(self) -> Layers:
        """How features, input and output are divided into layers."""
        return Layers(self.layers, self.embed, self.output, self.features)

    @property
    def masked(self) -> int:
        return int((~self.sizes.writes()).sum())

    @property
    def top_level(self) -> TopLevel:
        thresholds = self.rules[0].thresholds if self.layers == 1 else ()
        return TopLevel(self.W_enc, self.W_dec, (self.b_enc, *thresholds))

    @property
    def sparsifiers(self) -> tuple[AbstractSparsifier, ...]:
        return self.rules

    @property
    def top_rule(self) -> AbstractRule:
        return self.sizes.whole_rule(self.rules)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.sizes.own,) * self.layers

    def _selected(self, codes: Codes | TreeCodes) -> tuple[Codes, ...]:
        return tuple(self.sizes.parted(codes.flat()))

    def encoder_macs(self, active: tuple[Number, ...] | None = None) -> EncoderMacs:
        """Each feature reads its own layer; a skip connection counts as decoding."""
        return EncoderMacs(self.W_enc.size, self.W_enc.size)

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        check_rows(x, self.embed)
        sizes, by_layer, norms = self.sizes, self.sizes.split(x), self.code_unit.norms(self._rows())
        found: list[Encoded] = []
        for layer, rule in enumerate(self.rules):
            weight, bias = sizes.of(layer, self.W_enc), sizes.of(layer, self.b_enc)
            encoder = ops.Encoder(by_layer[:, layer], weight, bias, scale=sizes.of_any(layer, norms))
            found.append(route_and_encode(rule, encoder, sizes.context(layer, context), chunk=self.chunk))
        codes = sizes.joined([one.codes for one in found])
        return Forward(x, with_skip(self.decode(codes), self.skip(by_layer)), codes, whole(found), context)

    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch output"]:
        """What the features and the bias write; a skip connection reads the input and is not in it."""
        check_codes(self, codes)
        return ops.decode_rows(codes.flat(), self.dictionary(), self.kernel, self.chunk) + self.b_dec

    def dictionary(self) -> Float[Array, "features output"]:
        rows = self._rows()
        norms = self.code_unit.norms(rows)
        return rows if norms is None else rows / norms[:, None]

    def _rows(self) -> Float[Array, "features output"]:
        return self.sizes.masked(self.W_dec)


def whole(found: list[Encoded]) -> ops.Encoder:
    """The encoder of all layers; of several, with all pre-activations, layer by layer."""
    if len(found) == 1:
        return found[0].encoder
    return ops.Encoder.from_preactivations(jnp.concatenate([one.encoder.dense() for one in found], axis=1))


def with_skip(
    y_hat: Float[Array, "batch output"], skipped: Float[Array, "batch layers written"] | None
) -> Float[Array, "batch output"]:
    """What features and skip connection write together."""
    return y_hat if skipped is None else y_hat + skipped.reshape(y_hat.shape)
