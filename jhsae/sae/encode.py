"""Encoding with a sparsifier: decides whether all pre-activations are computed at once, and which loops are shared."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae import ops
from jhsae.codes import Codes
from jhsae.sparsify import AbstractSparsifier
from jhsae.usage import Context


class Encoded(NamedTuple):
    """The codes of a batch and what loss terms may read of their encoding.

    Args:
        codes: the sparse codes.
        encoder: that of the batch; with all pre-activations where they were computed.
        l1: ``sum |activate(pre)|`` over all features and tokens.
        child_pre: the pre-activations of the selected experts' atoms, [batch, k, atoms], where encoders of experts were
            given.
    """

    codes: Codes
    encoder: ops.Encoder
    l1: Float[Array, ""]
    child_pre: Float[Array, "batch k atoms"] | None = None


@jax.named_scope("route")
def route_and_encode(
    sparsifier: AbstractSparsifier,
    encoder: ops.Encoder,
    context: Context,
    experts: ops.ExpertEncoders | None = None,
    kernel: ops.Kernel = "auto",
    chunk: int | None = None,
) -> Encoded:
    """Selects among the features of an encoder and, where given, encodes with the selected experts.

    A rule that selects row by row sees some tokens at a time, so that no array of batch x features exists; a dense one
    needs all pre-activations at once. Where pairs of token and expert are sorted (by the kernels "tiles", "tpu",
    "gpu"), the experts encode in the loops of the router's gradient.

    Args:
        sparsifier: the rule that selects.
        encoder: what makes the pre-activations of the batch.
        context: that of the forward pass.
        experts: the encoders inside the experts, if these read the same input as the router.
        kernel: how the experts are computed (`ops`).
        chunk: how many tokens at a time; None for a size that suits the machine.

    Returns:
        The codes; with `experts`, `child_pre` too.
    """
    if sparsifier.is_dense(context):
        encoder = encoder.evaluated()
        pre = encoder.dense()
        l1 = jnp.sum(jnp.abs(sparsifier.activate(pre)))
        encoded = Encoded(sparsifier(pre, context), encoder, l1)
        return encoded if experts is None else _with_atoms(encoded, experts, kernel, chunk)

    def select(pre: Float[Array, "tokens n"], tokens: Int[Array, "tokens"]) -> Int[Array, "tokens k"]:
        indices = sparsifier.select(pre, Context(context.key, context.step, context.usage, context.dead, tokens))
        if indices is None:
            raise TypeError(f"{type(sparsifier).__name__}.select gave None, but is_dense is False; write indices")
        return indices

    chosen = ops.kernel_for(kernel, sparsifier.most_active(encoder.size), encoder.size)
    sorts_pairs = chosen in ("tiles", "tpu", "gpu")
    routed = ops.route(encoder, select, sparsifier.activate, chunk, experts if sorts_pairs else None, chosen)
    codes = Codes(sparsifier.value(routed.pre, context), routed.indices, encoder.size)
    encoded = Encoded(codes, encoder, routed.l1, routed.child_pre)
    return encoded if sorts_pairs or experts is None else _with_atoms(encoded, experts, kernel, chunk)


def _with_atoms(encoded: Encoded, experts: ops.ExpertEncoders, kernel: ops.Kernel, chunk: int | None) -> Encoded:
    encoder, indices = encoded.encoder, encoded.codes.slot_indices()
    child_pre = ops.encode_atoms(encoder.centred(encoder.x), indices, experts, kernel, chunk)
    return encoded._replace(child_pre=child_pre)
