import jax
import numpy as np
import pytest

from jhsae.data.synthetic import sample, tree, zipf

PARENTS, CHILDREN, ROWS = 6, 4, 10_000


@pytest.fixture(scope="module")
def truth():
    return tree(jax.random.key(0), 8, PARENTS, CHILDREN)


@pytest.fixture(scope="module")
def drawn(truth):
    return sample(jax.random.key(1), truth, ROWS, noise=0.1)


def test_directions_are_unit_and_children_orthogonal_to_their_parent(truth):
    np.testing.assert_allclose(np.linalg.norm(truth.features(), axis=1), np.ones(30), rtol=1e-5)
    along = np.einsum("pce,pe->pc", truth.children, truth.parents)
    np.testing.assert_allclose(along, np.zeros((PARENTS, CHILDREN)), atol=1e-6)
    np.testing.assert_array_equal(truth.features()[PARENTS + 2 * CHILDREN + 1], truth.children[2, 1])


def test_samples_are_their_labels_times_the_directions_plus_noise(truth, drawn):
    x, labels = drawn
    noise = np.asarray(x - labels.dense() @ truth.features())
    np.testing.assert_allclose(noise.std(), 0.1, rtol=0.02)
    np.testing.assert_allclose(noise.mean(0), np.zeros(8), atol=0.005)


def test_children_fire_alone_under_active_parents_with_positive_magnitude(drawn):
    parents, children = np.asarray(drawn[1].parents), np.asarray(drawn[1].children)
    assert (parents >= 0).all() and (children >= 0).all()
    assert ((children > 0).sum(-1) <= 1).all()
    assert (children[parents == 0] == 0).all()
    np.testing.assert_allclose(np.max(children, axis=-1)[parents > 0].astype(bool).mean(), 0.8, atol=0.02)
    which = (children > 0).sum((0, 1)) / (children > 0).sum()
    np.testing.assert_allclose(which, np.arange(1, 5) ** -0.5 / np.sum(np.arange(1, 5) ** -0.5), atol=0.02)


def test_parents_fire_at_zipf_rates(drawn):
    rates = np.asarray(zipf(PARENTS, 0.5, 0.4, 0.02))
    np.testing.assert_allclose(rates[[0, -1]], [0.4, 0.02], rtol=1e-6)
    assert (np.diff(rates) < 0).all()
    np.testing.assert_allclose((np.asarray(drawn[1].parents) > 0).mean(0), rates, atol=0.02)


def test_samples_follow_their_key(truth, drawn):
    again, other = (sample(jax.random.key(k), truth, ROWS, noise=0.1)[0] for k in (1, 2))
    np.testing.assert_array_equal(again, drawn[0])
    assert not np.array_equal(other, drawn[0])
