"""Folds normalisers and units into the weights of an SAE, so that another library needs the weights alone.

With an affine normaliser ``x' = (x - c) M`` the SAE of raw activations has ``W_enc <- W_enc M^T``,
``W_dec <- W_dec M^-1``, ``b_dec <- b_dec M^-1 + c`` and, where the decoder bias is not subtracted from the input,
``b_enc <- b_enc - W_enc M^T c``: pre-activations, codes and thresholds stay as they were (but for matching pursuit, see
below). The unit of the codes goes
first, because M changes the norms of the decoder rows. All products are float64; the result is float32.
"""

from functools import singledispatch

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae.data import AbstractNormalizer, Affine
from jhsae.errors import UserError
from jhsae.sae import AbstractSAE, FlatSAE, GatedSAE, MatchingPursuitSAE, PlainUnit
from jhsae.sparsify import AbstractSparsifier, GumbelTopK, JumpReLU, ReLU, TopK

Double = Float[np.ndarray, "..."]
Single = Float[Array, "..."]


def fold(sae: AbstractSAE, normalizer: AbstractNormalizer) -> AbstractSAE:
    """The SAE that reads raw activations and gives the same codes as `sae` after `normalizer`.

    `UserError` for a normaliser whose scale depends on the token, and for a hierarchical SAE.
    """
    affine = normalizer.affine()
    if affine is None:
        raise UserError(
            f"{type(normalizer).__name__} scales every token by a number of its own, which no weight can hold; train "
            "with jhsae.data.Scale, CenterScale, Standardize or Whiten to fold the normaliser into the SAE"
        )
    return fold_affine(sae, affine)


@singledispatch
def fold_affine(sae: AbstractSAE, affine: Affine) -> AbstractSAE:
    """`fold` for ``x' = times(x - affine.shift, affine.matrix)``."""
    raise _cannot_fold(sae)


@fold_affine.register
def _(sae: FlatSAE, affine: Affine) -> FlatSAE:
    shift, matrix, inverse = _arrays(affine, sae.embed)
    W_enc, b_enc, W_dec = _plain(sae)
    W_enc = _times(W_enc, matrix.T)
    b_enc = b_enc if sae.apply_b_dec_to_input else b_enc - W_enc @ shift
    b_dec = _times(_double(sae.b_dec), inverse) + shift
    new = (*map(_single, (W_enc, b_enc, _times(W_dec, inverse), b_dec)), PlainUnit())
    return eqx.tree_at(lambda s: (s.W_enc, s.b_enc, s.W_dec, s.b_dec, s.code_unit), sae, new)


@fold_affine.register
def _(sae: GatedSAE, affine: Affine) -> GatedSAE:
    shift, matrix, inverse = _arrays(affine, sae.embed)
    W_enc = _times(_double(sae.W_enc), matrix.T)
    moved = 0.0 if sae.apply_b_dec_to_input else W_enc @ shift
    b_gate = _double(sae.b_gate) - moved
    b_mag = _double(sae.b_mag) - moved * np.exp(_double(sae.r_mag))
    W_dec = _times(_double(sae.W_dec), inverse)
    b_dec = _times(_double(sae.b_dec), inverse) + shift
    new = tuple(map(_single, (W_enc, b_gate, b_mag, W_dec, b_dec)))
    return eqx.tree_at(lambda s: (s.W_enc, s.b_gate, s.b_mag, s.W_dec, s.b_dec), sae, new)


@fold_affine.register
def _(sae: MatchingPursuitSAE, affine: Affine) -> MatchingPursuitSAE:
    """Tied rows cannot absorb a scale, so codes are in raw units: those of `sae` divided by ``affine.matrix``."""
    shift, matrix, inverse = _arrays(affine, sae.embed)
    if matrix.ndim == 2 or not np.allclose(matrix, matrix.flat[0], rtol=1e-6):
        raise UserError(
            "the normaliser scales dimensions apart, and the encoder of a MatchingPursuitSAE is its decoder, which "
            "cannot hold that; train with jhsae.data.Scale or CenterScale, or write format=folder"
        )
    if not sae.apply_b_dec_to_input and shift.any():
        raise UserError(
            "the normaliser subtracts a mean, and without apply_b_dec_to_input a MatchingPursuitSAE has no bias that "
            "could hold it; train with jhsae.data.Scale, or write format=folder"
        )
    folded = sae.with_threshold(sae.residual_threshold * float(inverse.flat[0]))
    return eqx.tree_at(lambda s: s.b_dec, folded, _single(_times(_double(sae.b_dec), inverse) + shift))


@singledispatch
def unit_rows(sae: AbstractSAE) -> AbstractSAE:
    """The same reconstructions from decoder rows of norm 1: codes and thresholds are multiplied by the old norms.

    Which features are active does not change. A row of zeros stays one. `UserError` where the rule that selects
    features would select others: TopK whose codes are not in the unit of the decoder norms.
    """
    raise _cannot_fold(sae)


@unit_rows.register
def _(sae: FlatSAE) -> FlatSAE:
    W_enc, b_enc, W_dec = _plain(sae)
    norms, W_dec = _norms(W_dec)
    new = (*map(_single, (W_enc * norms[:, None], b_enc * norms, W_dec)), _scaled(sae.sparsifier, norms), PlainUnit())
    return eqx.tree_at(lambda s: (s.W_enc, s.b_enc, s.W_dec, s.sparsifier, s.code_unit), sae, new)


@unit_rows.register
def _(sae: GatedSAE) -> GatedSAE:
    norms, W_dec = _norms(_double(sae.W_dec))
    biases = (_double(sae.b_gate) * norms, _double(sae.b_mag) * norms)
    new = tuple(map(_single, (_double(sae.W_enc) * norms[:, None], *biases, W_dec)))
    return eqx.tree_at(lambda s: (s.W_enc, s.b_gate, s.b_mag, s.W_dec), sae, new)


@singledispatch
def _scaled(sparsifier: AbstractSparsifier, norms: Double) -> AbstractSparsifier:
    """The sparsifier that treats pre-activations times `norms` as `sparsifier` treats them plain."""
    return _refuse_other(sparsifier, norms, 1.0)


@_scaled.register
def _(sparsifier: ReLU, norms: Double) -> AbstractSparsifier:
    return sparsifier


@_scaled.register
def _(sparsifier: JumpReLU, norms: Double) -> AbstractSparsifier:
    return eqx.tree_at(lambda s: s.threshold, sparsifier, _single(_double(sparsifier.threshold) * norms))


@_scaled.register(TopK)
@_scaled.register(GumbelTopK)
def _(sparsifier: AbstractSparsifier, norms: Double) -> AbstractSparsifier:
    return _refuse_other(sparsifier, norms, norms[0])  # a factor that all share changes no order


def _refuse_other(sparsifier: AbstractSparsifier, norms: Double, expected: float) -> AbstractSparsifier:
    if not np.allclose(norms, expected, rtol=1e-5):
        raise UserError(
            f"{type(sparsifier).__name__} on decoder rows of norm {norms.min():.4g} to {norms.max():.4g} would select "
            "other features if they were rescaled; train with sae.code_unit={_target_: jhsae.sae.DecoderNormUnit}, or "
            "with a constraint that keeps the rows at norm 1"
        )
    return sparsifier


def _plain(sae: FlatSAE) -> tuple[Double, Double, Double]:
    """W_enc, b_enc and W_dec with which a code of 1 adds a decoder row, whatever the unit of `sae`."""
    W_enc, b_enc, W_dec = map(_double, (sae.W_enc, sae.b_enc, sae.W_dec))
    if sae.code_unit.norms(sae.W_dec) is None:
        return W_enc, b_enc, W_dec
    norms, W_dec = _norms(W_dec)
    return W_enc * norms[:, None], b_enc * norms, W_dec


def _norms(W_dec: Double) -> tuple[Double, Double]:
    """The norms of the rows, and the rows divided by them; 1 for a row of zeros."""
    norms = np.linalg.norm(W_dec, axis=1)
    norms = np.where(norms > 0, norms, 1.0)
    return norms, W_dec / norms[:, None]


def _arrays(affine: Affine, embed: int) -> tuple[Double, Double, Double]:
    affine = affine.over(embed)
    return _double(affine.shift), _double(affine.matrix), _double(affine.inverse)


def _times(rows: Double, matrix: Double) -> Double:
    """``rows @ matrix``; a scalar or vector is a multiple of the identity or a diagonal."""
    return rows @ matrix if matrix.ndim == 2 else rows * matrix


def _double(array: Single) -> Double:
    return np.asarray(array, np.float64)


def _single(array: Double) -> Single:
    return jnp.asarray(array, jnp.float32)


def _cannot_fold(sae: AbstractSAE) -> UserError:
    return UserError(
        f"a {type(sae).__name__} has no single encoder and decoder to fold into; write format=torch, which keeps its "
        "parts and works on raw activations"
    )
