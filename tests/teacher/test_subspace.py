import numpy as np
import pytest

from jhsae.errors import UserError
from jhsae.teacher.subspace import delta_span, subspace

RNG = np.random.default_rng(0)
DELTAS, PARENT = RNG.normal(size=(3, 10)), RNG.normal(size=10)


@pytest.mark.parametrize("sub", [1, 2, 3, 6, 9])
def test_rows_are_orthonormal_and_span_the_deltas_when_there_is_room(sub):
    basis = subspace(DELTAS, PARENT, sub, 1.0, np.random.default_rng(1))
    np.testing.assert_allclose(basis @ basis.T, np.eye(sub), atol=1e-9)
    inside = np.linalg.norm(DELTAS @ basis.T, axis=-1) / np.linalg.norm(DELTAS, axis=-1)
    assert np.all(inside <= 1 + 1e-9)
    assert np.allclose(inside, 1) == (sub >= 3)


def test_what_fills_the_subspace_is_orthogonal_to_the_parent():
    basis = subspace(DELTAS, PARENT, 6, 1.0, np.random.default_rng(1))
    np.testing.assert_allclose(basis[3:] @ PARENT, 0, atol=1e-9)


def test_the_cut_is_on_the_variance_of_unit_deltas():
    # Unit rows with singular values squared 2 and 1: the first direction holds two thirds.
    rows = np.array([[5.0, 0, 0], [-1.0, 0, 0], [0, 0, 0.1]])
    assert len(delta_span(rows, 3, 0.6)) == 1
    assert len(delta_span(rows, 3, 0.7)) == 2
    assert len(delta_span(rows, 3, 1.0)) == 2  # not a third, of rounding size
    np.testing.assert_allclose(np.abs(delta_span(rows, 3, 0.6)), [[1, 0, 0]], atol=1e-12)


def test_the_filler_depends_on_the_generator_alone():
    one, two = (subspace(DELTAS, PARENT, 5, 1.0, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("sub", [0, 10])
def test_a_subspace_that_does_not_fit_is_an_error(sub):
    with pytest.raises(UserError, match=f"sub {sub}"):
        subspace(DELTAS, PARENT, sub, 1.0, np.random.default_rng(0))
    with pytest.raises(UserError, match="variance"):
        subspace(DELTAS, PARENT, 2, 1.5, np.random.default_rng(0))
