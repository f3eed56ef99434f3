"""The interface of every sparse autoencoder: encode, decode, forward, and a dictionary.

Decoding is linear: ``x_hat = codes.dense() @ dictionary() + bias``. Everything works on batches. Every inexact array
leaf is a parameter; hyperparameters are static; running statistics live in `FeatureStats`.

The contract that loss terms, training and evaluation rest on:

- ``encode(x) -> codes``: any function of the batch. It need not be one matrix product: a pursuit that selects against
  the dictionary step by step gives `Codes` as well, and ``ops.Encoder.from_preactivations`` takes whatever scores its
  features.
- ``decode(codes) -> x_hat``: linear in the codes, over the rows of ``dictionary()``.
- ``forward(x, context).target``: what x_hat is compared to, by every term that reconstructs. The input by default; an
  SAE of another target gives it to `Forward` as `y`.

A new SAE states `forward`, `decode` and `top_level`; its `sparsifiers` where it has any, and its `dictionary` where
that is more than the decoder rows of the top level.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.ops.inputs import as_rows, leading_axes
from jhsae.ranges import Ranged
from jhsae.sae.macs import EncoderMacs, Number
from jhsae.sparsify import AbstractRule, AbstractSparsifier
from jhsae.usage import Context, FeatureStats

S = TypeVar("S", bound="AbstractSAE")


class Forward(eqx.Module):
    """One forward pass: everything that a loss term may read.

    Args:
        x: the input, [batch, embed].
        x_hat: the reconstruction of `target`, [batch, output].
        codes: the sparse codes.
        encoder: makes the pre-activations of the top level, which a sparse SAE never holds all at once;
            ``ops.Encoder.from_preactivations(pre)`` where they are at hand.
        context: that of the pass: its step, and which features are dead.
        y: what `x_hat` is compared to, [batch, output], where that is not `x`.
    """

    x: Float[Array, "batch embed"]
    x_hat: Float[Array, "batch output"]
    codes: Codes | TreeCodes
    encoder: ops.Encoder
    context: Context
    y: Float[Array, "batch output"] | None = None

    @property
    def target(self) -> Float[Array, "batch output"]:
        """What `x_hat` is compared to."""
        return self.x if self.y is None else self.y

    @property
    def dead(self) -> Float[Array, "top_level"]:
        """1.0 for each dead feature among those of `pre`; nothing is dead in evaluation."""
        size = self.encoder.size
        return jnp.zeros(size) if self.context.dead is None else self.context.dead[:size]

    @property
    def pre(self) -> Float[Array, "batch top_level"]:
        """All pre-activations; a term that reads them makes a sparse SAE compute them all."""
        return self.encoder.dense()


class TreeForward(Forward):
    """One forward pass of a hierarchical SAE: `encoder` is that of the experts.

    Args:
        x_hat_parents: the reconstruction from the parents alone, [batch, output].
        child_pre: the pre-activations of the selected experts' atoms, [batch, k, atoms].
        l1: the sum of the absolute activations of all experts and tokens, selected or not.
    """

    codes: TreeCodes
    x_hat_parents: Float[Array, "batch output"] = eqx.field(kw_only=True)
    child_pre: Float[Array, "batch k atoms"] = eqx.field(kw_only=True)
    l1: Float[Array, ""] = eqx.field(kw_only=True)


class TopLevel(NamedTuple):
    """The parameters of the features of ``forward.pre``: all features of a flat SAE, the experts of a hierarchical one.

    Args:
        encoder: a row per feature, [top_level, embed]; None where it is tied to the decoder.
        decoder: a row per feature, [top_level, embed].
        biases: arrays with a value per feature, [top_level]; learned thresholds are among them.
    """

    encoder: Float[Array, "top_level embed"] | None
    decoder: Float[Array, "top_level embed"]
    biases: tuple[Float[Array, "top_level"], ...]


class AbstractSAE(Ranged, eqx.Module):
    """A sparse autoencoder over vectors of size `embed`; the module states the contract."""

    @abc.abstractmethod
    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        """Encodes and decodes.

        Args:
            x: the input, [batch, embed].
            context: key, step and feature statistics; with ``context.key`` None as in evaluation.

        Returns:
            The codes, the reconstruction and what loss terms read.
        """

    @abc.abstractmethod
    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "*batch embed"]:
        """The reconstruction [..., embed] from codes [..., slots] (`decodes_any_shape`)."""

    @property
    @abc.abstractmethod
    def top_level(self) -> TopLevel:
        """The parameters of the features whose pre-activations are ``forward.pre``."""

    def dictionary(self) -> Float[Array, "features embed"]:
        """One row per feature of ``codes.flat()``: what a value of 1 adds to the reconstruction.

        The decoder rows of the top level, where these are all features, in the unit of their codes.
        """
        return self.top_level.decoder

    @property
    def sparsifiers(self) -> tuple[AbstractRule, ...]:
        """The sparsifiers, in the order of ``codes.levels()``; none where the activation is part of the SAE."""
        return ()

    @property
    def forest(self) -> ops.Forest:
        """How the rows of the dictionary hang together; those of a flat SAE are all roots."""
        return ops.Forest((self.features,))

    @property
    def tree(self) -> ops.Forest | None:
        """The forest where it has a second level; None for a flat SAE."""
        forest = self.forest
        return forest if len(forest.levels) > 1 else None

    def latent_parents(self) -> Int[np.ndarray, "features"]:
        """The parent of each row of the dictionary, -1 where it has none; an SAE of another shape gives its own."""
        return self.forest.parents

    def parent_values(self, codes: Codes | TreeCodes) -> Float[Array, "*batch slots"]:
        """For every slot of ``codes.flat()`` the value of its parent; 0 where it has none."""
        return codes.parent_values()

    @property
    def occupied(self) -> Bool[Array, "features"]:
        """Whether each feature exists: a forest of a fixed shape may have empty slots, which are no dead features."""
        return jnp.ones(self.features, bool)

    def encoder_macs(self, active: tuple[Number, ...] | None = None) -> EncoderMacs:
        """The multiplications of the encoder for a token; by default those of one matrix product.

        Args:
            active: how many features of each level of the forest are active, numbers or one entry per token; None for
                as many as the rule allows.
        """
        return EncoderMacs(self.features * self.embed, self.features * self.embed)

    def from_upper_levels(self, forward: Forward) -> tuple[Float[Array, "batch output"], ...]:
        """The reconstructions from the rows down to each level of the forest but the last.

        Args:
            forward: of this SAE.
        """
        return ()

    @property
    def features(self) -> int:
        """The number of rows of the dictionary."""
        return self._dictionary_shape[0]

    @property
    def embed(self) -> int:
        """The size of the vectors that the SAE reads."""
        return self._dictionary_shape[1]

    @property
    def _dictionary_shape(self) -> tuple[int, int]:
        return eqx.filter_eval_shape(lambda sae: sae.dictionary(), self).shape

    def top_level_rows(self) -> Float[Array, "top_level embed"]:
        """The rows of the dictionary that belong to the features of ``forward.pre``."""
        return self.dictionary()[: len(self.top_level.decoder)]

    def observe(self, usage: FeatureStats, codes: Codes | TreeCodes, window: int) -> FeatureStats:
        """The statistics after a training step with these codes.

        Args:
            usage: the statistics before it.
            codes: those of the step's batch.
            window: how many steps make one estimate of frequency.

        Returns:
            The statistics, running thresholds included.
        """
        levels = zip(self.sparsifiers, usage.thresholds, self._selected(codes), strict=True) if self.sparsifiers else ()
        return usage.update(codes, tuple(part.track(t, c) for part, t, c in levels), window)

    def corrected(self, usage: FeatureStats, steps: int) -> FeatureStats:
        """The statistics with running thresholds that are right after a short training of `steps` steps too."""
        pairs = zip(self.sparsifiers, usage.thresholds, strict=True) if self.sparsifiers else ()
        return dataclasses.replace(usage, thresholds=tuple(part.corrected(t, steps) for part, t in pairs))

    def for_inference(self, usage: FeatureStats | None) -> "AbstractSAE":
        """The SAE of inference: sparsifiers that need a batch or a schedule are replaced (BatchTopK by JumpReLU).

        Args:
            usage: holds the running thresholds, `corrected`; without it they are 0 (a structure into which a saved SAE
                is read).

        Returns:
            The SAE, with the same parameters otherwise.
        """
        if not self.sparsifiers:
            return self
        thresholds = usage.thresholds if usage else (jnp.zeros(()),) * len(self.sparsifiers)
        parts = [
            part.for_inference(t).sized(n) for part, t, n in zip(self.sparsifiers, thresholds, self._sizes, strict=True)
        ]
        return eqx.tree_at(lambda sae: sae.sparsifiers, self, tuple(parts))

    def _selected(self, codes: Codes | TreeCodes) -> tuple[Codes, ...]:
        """What each sparsifier gave, in the units of its own threshold."""
        return codes.levels()

    @property
    def _sizes(self) -> tuple[int, ...]:
        """How many features each sparsifier selects from."""
        return (self.features,)

    def encode(
        self, x: Float[Array, "*batch embed"] | Float[np.ndarray, "*batch embed"] | Any, context: Context | None = None
    ) -> Codes | TreeCodes:
        """The sparse codes of vectors in an array of any shape.

        Args:
            x: [..., embed], an array of JAX, NumPy or torch or a list; may be traced.
            context: that of the forward pass; by default that of evaluation.

        Returns:
            The codes, whose arrays have the axes of `x` before the last: values [..., slots].

        Raises:
            UserError: another width than `embed`, no floats, or rows that are not finite.
        """
        rows, axes = leading_axes(x, self.embed)
        codes = self.forward(as_rows(rows, self.embed), context or Context()).codes
        return codes if axes is None else with_axes(codes, 1, axes)

    def __call__(
        self, x: Float[Array, "*batch embed"] | Float[np.ndarray, "*batch embed"] | Any
    ) -> Float[Array, "*batch embed"]:
        """The reconstruction of `x`, as in evaluation; checked as in `encode`."""
        rows, axes = leading_axes(x, self.embed)
        x_hat = self.forward(as_rows(rows, self.embed), Context()).x_hat
        return x_hat if axes is None else x_hat.reshape((*axes, x_hat.shape[-1]))


def with_axes(codes: Codes | TreeCodes, before: int, axes: tuple[int, ...]) -> Codes | TreeCodes:
    """Codes with other axes of the batch.

    Args:
        codes: codes.
        before: how many axes of the batch they have.
        axes: the sizes of those that replace them.
    """
    return jax.tree.map(lambda a: a.reshape((*axes, *a.shape[before:])), codes)


def decodes_any_shape(decode: Callable[[S, Any], Array]) -> Callable[[S, Any], Array]:
    """A ``decode`` that is written for codes [batch, slots], for codes [..., slots]; a decorator of the method."""

    @wraps(decode)
    def call(sae: S, codes: Any) -> Array:
        check_codes(sae, codes)
        axes = codes.levels()[0].values.shape[:-1]
        if len(axes) == 1:
            return decode(sae, codes)
        x_hat = decode(sae, with_axes(codes, len(axes), (math.prod(axes),)))
        return x_hat.reshape((*axes, x_hat.shape[-1]))

    return call


def require(sae: AbstractSAE, kind: type[S], part: str, instead: str) -> S:
    """Narrows an SAE to the class that a part is written for.

    Args:
        sae: the SAE that the part is used with.
        kind: the class that it must be of.
        part: the part, as the message names it.
        instead: what to write instead, as the message ends.

    Returns:
        `sae`.

    Raises:
        UserError: another SAE.
    """
    if not isinstance(sae, kind):
        raise UserError(f"{part} needs a {kind.__name__}, got a {type(sae).__name__}; {instead}")
    return sae


def check_codes(sae: AbstractSAE, codes: Any) -> None:
    """Raises `UserError` when `codes` are not those of an SAE with as many features."""
    if not isinstance(codes, Codes | TreeCodes):
        raise UserError(
            f"decode got a {type(codes).__name__}, expected Codes, which encode gives; for an array of all features "
            "write jhsae.Codes(array, None, features)"
        )
    size = codes.size if isinstance(codes, Codes) else codes.parents.size * (1 + codes.children.size)
    levels = codes.levels()
    shapes = [list(a.shape) for level in levels for a in (level.values, level.indices) if a is not None]
    if size != sae.features or not all(_is_whole(level) for level in levels):
        raise UserError(
            f"decode got codes over {size} features in arrays {shapes}, but this SAE has {sae.features} features; "
            "write the codes that this SAE's encode gives"
        )


def _is_whole(codes: Codes) -> bool:
    """Does every value have an index, or every feature a value?"""
    values, indices = codes.values, codes.indices
    return values.shape[-1] == codes.size if indices is None else indices.shape == values.shape


def check_selects(slot: str, part: AbstractSparsifier, size: int, what: str) -> None:
    """Raises `UserError` when the sparsifier of `slot` selects more than there is, or is for atoms alone."""
    if part.across_experts and slot != "pick":
        raise UserError(f"{slot}: {type(part).__name__} is a rule for the atoms of experts; write it as sae.pick")
    most = part.most_active(size)
    if most > size:
        raise UserError(f"{slot}: k is {most} but there are {size} {what}; write a k of at most {size}")
