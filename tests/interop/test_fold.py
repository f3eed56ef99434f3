"""Folding: the same codes and reconstructions from weights alone, for every SAE, unit and affine normaliser."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from small_saes import AFFINE, EMBED, EVALUATION, FEATURES, PER_TOKEN, fitted, flat, hierarchical, near, rows, run, saes

from jhsae.data import Affine, Identity
from jhsae.errors import UserError
from jhsae.interop.fold import fold, fold_affine, unit_rows
from jhsae.sae import DecoderNormUnit, PlainUnit
from jhsae.schedule import Constant
from jhsae.sparsify import BinaryGumbelTopK, OffsetTopK, TopK

SAES = saes()


def name(part) -> str:
    return type(part).__name__


@pytest.mark.parametrize("normalizer", AFFINE, ids=name)
@pytest.mark.parametrize("kind", SAES)
def test_the_folded_sae_does_the_same_to_raw_activations(kind, normalizer):
    sae, normalizer, x = SAES[kind], fitted(normalizer), rows()
    codes, x_hat = run(sae, normalizer, x)
    folded = fold(sae, normalizer)
    got, got_hat = run(folded, Identity(), x)
    assert 0 < np.count_nonzero(codes) < codes.size
    near(got, codes)
    near(got_hat, x_hat)
    np.testing.assert_array_equal(np.count_nonzero(got, axis=1), np.count_nonzero(codes, axis=1))
    assert all(leaf.dtype == jnp.float32 for leaf in (folded.W_enc, folded.W_dec, folded.b_dec))


def test_thresholds_and_pre_activations_stay_and_the_unit_becomes_plain():
    sae, normalizer = SAES["jump_unit"], fitted(AFFINE[-1])
    folded = fold(sae, normalizer)
    np.testing.assert_array_equal(folded.sparsifier.threshold, sae.sparsifier.threshold)
    assert isinstance(folded.code_unit, PlainUnit)
    x = jnp.asarray(rows())
    pre = sae.forward(normalizer(x)[0], EVALUATION).pre
    near(np.asarray(folded.forward(x, EVALUATION).pre), np.asarray(pre))


def test_an_affine_map_of_every_kind_is_folded():
    sae, x = SAES["gated_outside"], rows()
    matrix = np.random.default_rng(3).normal(size=(EMBED, EMBED)).astype(np.float32)
    for factor, inverse in ((2.0, 0.5), (np.arange(1, 13), 1 / np.arange(1, 13)), (matrix, np.linalg.inv(matrix))):
        factor, inverse = jnp.asarray(factor, jnp.float32), jnp.asarray(inverse, jnp.float32)
        folded = fold_affine(sae, Affine(jnp.arange(EMBED, dtype=jnp.float32), factor, inverse))
        inside = (x - np.arange(EMBED)) @ (np.diag(np.broadcast_to(factor, EMBED)) if factor.ndim < 2 else factor)
        near(np.asarray(folded.encode(x).dense()), np.asarray(sae.encode(inside.astype(np.float32)).dense()))


@pytest.mark.parametrize("normalizer", PER_TOKEN, ids=name)
def test_a_scale_of_each_token_cannot_be_folded(normalizer):
    with pytest.raises(UserError, match=f"{name(normalizer)} scales every token"):
        fold(SAES["relu"], fitted(normalizer))


@pytest.mark.parametrize("kind", ["relu", "relu_unit", "topk_unit", "jump", "jump_unit", "jump_outside", "gated"])
def test_unit_rows_give_the_same_reconstruction_and_l0(kind):
    sae, x = SAES[kind], rows()
    unit = unit_rows(sae)
    codes, x_hat = run(sae, Identity(), x)
    got, got_hat = run(unit, Identity(), x)
    np.testing.assert_allclose(np.linalg.norm(unit.W_dec, axis=1), 1, rtol=1e-6)
    norms = np.linalg.norm(sae.dictionary(), axis=1)
    near(got, codes * norms)
    near(got_hat, x_hat)
    np.testing.assert_array_equal(np.count_nonzero(got, axis=1), np.count_nonzero(codes, axis=1))


def test_topk_keeps_its_selection_only_when_rows_have_one_norm():
    with pytest.raises(UserError, match=r"TopK on decoder rows of norm .*DecoderNormUnit"):
        unit_rows(SAES["topk"])
    W_dec = SAES["topk"].W_dec
    even = eqx.tree_at(lambda s: s.W_dec, SAES["topk"], 3 * W_dec / jnp.linalg.norm(W_dec, axis=1, keepdims=True))
    codes, x_hat = run(even, Identity(), rows())
    got, got_hat = run(unit_rows(even), Identity(), rows())
    near(got, 3 * codes)
    near(got_hat, x_hat)


@pytest.mark.parametrize("part", [OffsetTopK(4, 0.3), BinaryGumbelTopK(4, Constant(1.0))], ids=name)
def test_a_rule_with_a_scale_of_its_own_wants_rows_of_norm_1(part):
    sae = flat(part)
    rows_of_2 = eqx.tree_at(lambda s: s.W_dec, sae, 2 * sae.W_dec / jnp.linalg.norm(sae.W_dec, axis=1, keepdims=True))
    with pytest.raises(UserError, match="would select other features"):
        unit_rows(rows_of_2)
    rows_of_1 = eqx.tree_at(lambda s: s.W_dec, rows_of_2, rows_of_2.W_dec / 2)
    near(run(unit_rows(rows_of_1), Identity(), rows())[1], run(rows_of_1, Identity(), rows())[1])


@pytest.mark.parametrize("fold_rows", [unit_rows, lambda sae: fold(sae, Identity())], ids=["unit_rows", "fold"])
def test_a_row_of_zeros_stays_one(fold_rows):
    sae = flat(TopK(FEATURES), code_unit=DecoderNormUnit())
    sae = eqx.tree_at(lambda s: s.W_dec, sae, sae.W_dec.at[3].set(0))
    folded = fold_rows(sae)
    assert not np.any(folded.W_dec[3]) and np.isfinite(folded.W_enc).all()


@pytest.mark.parametrize("fold_rows", [unit_rows, lambda sae: fold(sae, Identity())], ids=["unit_rows", "fold"])
def test_a_hierarchical_sae_is_sent_to_its_own_format(fold_rows):
    with pytest.raises(UserError, match="format=torch"):
        fold_rows(hierarchical())
