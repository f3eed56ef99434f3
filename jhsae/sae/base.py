"""What every sparse autoencoder is: encode, decode, forward, and a dictionary.

Decoding is linear: ``x_hat = codes.dense() @ dictionary() + bias``. Everything works on batches. Every inexact array
leaf is a parameter; hyperparameters are static; running statistics live in `FeatureStats`.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.errors import UserError
from jhsae.ops.inputs import as_rows
from jhsae.ranges import Ranged
from jhsae.sparsify import AbstractSparsifier
from jhsae.usage import Context, FeatureStats


class Forward(eqx.Module):
    """One forward pass: everything that a loss term may read.

    `encoder` makes the pre-activations of the features (of the experts, in a hierarchical SAE), which a sparse SAE
    never holds all at once; ``ops.Encoder.known(pre)`` where they are at hand. `l1` is the sum of all activations,
    selected or not, where the SAE has it. `coarse` is the reconstruction from the parents alone and `child_pre` the
    pre-activations of the selected experts' atoms; both are None for a flat SAE. `context` is that of the pass: its
    step, and which features are dead.
    """

    x: Float[Array, "batch embed"]
    x_hat: Float[Array, "batch embed"]
    codes: Codes | TreeCodes
    encoder: ops.Encoder
    context: Context
    coarse: Float[Array, "batch embed"] | None = None
    child_pre: Float[Array, "batch k atoms"] | None = None
    l1: Float[Array, ""] | None = None

    @property
    def pre(self) -> Float[Array, "batch features"]:
        """All pre-activations; a term that reads them makes a sparse SAE compute them all."""
        return self.encoder.dense()

    @property
    def top(self) -> int:
        """The number of features in `pre`."""
        return self.encoder.size

    def tree(self) -> TreeCodes:
        """The codes of a hierarchical SAE; a flat one has no parents: `UserError`."""
        if not isinstance(self.codes, TreeCodes):
            raise UserError("a flat SAE has no parents and atoms; this needs a hierarchical SAE")
        return self.codes

    def tree_l1(self) -> Float[Array, ""]:
        """The sum of all activations of the experts, selected or not; `UserError` for a flat SAE."""
        if self.l1 is None or self.child_pre is None:
            raise UserError("a flat SAE has no experts; this needs a hierarchical SAE")
        return self.l1

    def tree_pre(self) -> Float[Array, "batch k atoms"]:
        """The pre-activations of the selected experts' atoms; `UserError` for a flat SAE."""
        if self.child_pre is None:
            raise UserError("a flat SAE has no atoms; this needs a hierarchical SAE")
        return self.child_pre


class Top(NamedTuple):
    """The parameters of the features of ``forward.pre``, one row each; a tied encoder is None.

    Learned thresholds are among the biases.
    """

    encoder: Float[Array, "top embed"] | None
    decoder: Float[Array, "top embed"]
    biases: tuple[Float[Array, "top"], ...]


class AbstractSAE(Ranged, eqx.Module):
    """A sparse autoencoder over vectors of size `embed`."""

    @abc.abstractmethod
    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        """Encodes and decodes; with ``context.key`` None as in evaluation."""

    @abc.abstractmethod
    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        """The reconstruction from codes."""

    @abc.abstractmethod
    def dictionary(self) -> Float[Array, "features embed"]:
        """One row per feature of ``codes.flat()``: what a value of 1 adds to the reconstruction."""

    @abc.abstractmethod
    def top_rows(self) -> Float[Array, "top embed"]:
        """The decoder rows of the features whose pre-activations are ``forward.pre``, for codes in their units."""

    @property
    @abc.abstractmethod
    def top(self) -> Top:
        """What a feature of ``forward.pre`` is made of."""

    @property
    @abc.abstractmethod
    def sparsifiers(self) -> tuple[AbstractSparsifier, ...]:
        """The sparsifiers, in the order of ``codes.levels()``; none where the activation is part of the SAE."""

    @property
    @abc.abstractmethod
    def features(self) -> int:
        """The number of rows of the dictionary."""

    @property
    @abc.abstractmethod
    def embed(self) -> int:
        """The size of the vectors that the SAE reads."""

    def observe(self, usage: FeatureStats, codes: Codes | TreeCodes, window: int) -> FeatureStats:
        """The usage after a training step with these codes; `window` steps make one estimate of frequency."""
        levels = zip(self.sparsifiers, usage.thresholds, self._selected(codes), strict=True) if self.sparsifiers else ()
        return usage.update(codes, tuple(part.track(t, c) for part, t, c in levels), window)

    def corrected(self, usage: FeatureStats, steps: int) -> FeatureStats:
        """The usage with running thresholds that are right after a short training of `steps` steps too."""
        pairs = zip(self.sparsifiers, usage.thresholds, strict=True) if self.sparsifiers else ()
        return dataclasses.replace(usage, thresholds=tuple(part.corrected(t, steps) for part, t in pairs))

    def for_inference(self, usage: FeatureStats | None) -> "AbstractSAE":
        """The SAE as it is used after training: rules that need a batch or a schedule give way to those that do not.

        `usage` holds the running thresholds, `corrected`; without it they are 0 (a structure into which a saved SAE is
        read).
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
        self, x: Float[Array, "batch embed"] | Float[np.ndarray, "batch embed"] | Any, context: Context | None = None
    ) -> Codes | TreeCodes:
        """The sparse codes of `x`, an array of JAX, NumPy or torch or a list; by default as in evaluation.

        Raises `UserError`: another width than `embed`, no floats, or rows that are not finite.
        """
        return self.forward(as_rows(x, self.embed), context or Context()).codes

    def __call__(
        self, x: Float[Array, "batch embed"] | Float[np.ndarray, "batch embed"] | Any
    ) -> Float[Array, "batch embed"]:
        """The reconstruction of `x`, as in evaluation; checked as in `encode`."""
        return self.forward(as_rows(x, self.embed), Context()).x_hat


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
    """Raises `UserError` when the sparsifier of `slot` selects more than there is."""
    most = part.most_active(size)
    if most > size:
        raise UserError(f"{slot}: k is {most} but there are {size} {what}; write a k of at most {size}")
