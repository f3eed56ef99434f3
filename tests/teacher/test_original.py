import numpy as np
import pytest

from jhsae.metric import causal_absolute_ridge
from jhsae.teacher.original import child_deltas, lda_direction, lda_raw_direction, subspace_basis


@pytest.fixture(scope="module")
def whitening():
    U = np.random.default_rng(0).normal(size=(100, 12)) @ np.diag(np.linspace(0.1, 2, 12))
    return causal_absolute_ridge(U, 0.05).unembedding


def test_lda_is_the_originals_formula_with_the_larger_class_cut(whitening):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(20, 12)) + 1, rng.normal(size=(35, 12))
    W = np.asarray(whitening.matrix, np.float64)
    x, y = a @ W, b[:20] @ W
    pooled = np.cov(np.vstack([x - x.mean(0), y - y.mean(0)]), rowvar=False)
    oracle = np.linalg.inv(pooled + 0.1 * np.eye(12)) @ (x.mean(0) - y.mean(0)) @ W
    raw = lda_raw_direction(a, b, whitening, 0.1)
    np.testing.assert_allclose(raw, oracle, rtol=1e-5, atol=1e-6)
    unit = lda_direction(a, b, whitening, 0.1)
    assert np.linalg.norm(unit @ W) == pytest.approx(1.0)
    np.testing.assert_allclose(unit / unit[0], raw / raw[0])


def test_deltas_are_unit_differences(whitening):
    rng = np.random.default_rng(2)
    children, parent = rng.normal(size=(3, 12)), rng.normal(size=12)
    deltas = child_deltas(children, parent, whitening)
    W = np.asarray(whitening.matrix, np.float64)
    np.testing.assert_allclose(np.linalg.norm(deltas @ W, axis=-1), 1.0)
    np.testing.assert_allclose(np.cross(deltas[0, :3], (children - parent)[0, :3]), 0.0, atol=1e-8)


@pytest.mark.parametrize(("sub", "kept"), [(1, 1), (2, 2), (4, 2)])
def test_the_subspace_is_cut_on_singular_values(sub, kept):
    # Singular values 8, 4, 1: cumulative shares .62, .92, 1; two are needed to pass .85.
    rows = np.diag([8.0, 4.0, 1.0]) @ np.linalg.qr(np.random.default_rng(3).normal(size=(12, 3)))[0].T
    basis = subspace_basis(rows, sub)
    assert basis.shape == (kept, 12)
    np.testing.assert_allclose(basis @ basis.T, np.eye(kept), atol=1e-9)
    np.testing.assert_allclose(rows[:kept] @ basis.T @ basis, rows[:kept], atol=1e-9)
