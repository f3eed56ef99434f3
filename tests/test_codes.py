import jax
import jax.numpy as jnp
import numpy as np

from jhsae.codes import Codes, TreeCodes

EXPERTS, ATOMS = 4, 3


def codes(values, indices, size):
    return Codes(jnp.asarray(values, jnp.float32), jnp.asarray(indices, jnp.int32), size)


def tree():
    """Two tokens, two parent slots, two atoms each; the last parent slot of the second token is empty."""
    parents = codes([[2.0, 1.0], [3.0, 0.0]], [[1, 3], [0, 2]], EXPERTS)
    children = codes(
        [[[0.5, 0.0], [0.25, -1.0]], [[7.0, 8.0], [0.0, 0.0]]], [[[2, 0], [1, 2]], [[0, 1], [0, 1]]], ATOMS
    )
    return TreeCodes(parents, children)


def test_dense_puts_every_value_at_its_index():
    got = codes([[1.5, -2.0], [0.0, 4.0]], [[3, 0], [1, 2]], 5).dense()
    np.testing.assert_array_equal(got, [[-2.0, 0, 0, 1.5, 0], [0, 0, 4.0, 0, 0]])


def test_slots_that_share_an_index_add_up():
    np.testing.assert_array_equal(codes([[1.0, 2.0, 4.0]], [[1, 0, 1]], 3).dense(), [[2.0, 5.0, 0.0]])


def test_no_indices_means_every_feature_in_order():
    values = jnp.array([[1.0, 0.0, -3.0]])
    dense = Codes(values, None, 3)
    sparse = codes(values, [[0, 1, 2]], 3)
    for name in ("dense", "slot_indices", "l0", "fired"):
        np.testing.assert_array_equal(getattr(dense, name)(), getattr(sparse, name)())


def test_leading_axes_are_independent():
    rng = np.random.default_rng(0)
    values, indices = rng.normal(size=(2, 3, 4)), rng.integers(0, 6, size=(2, 3, 4))
    got = codes(values, indices, 6).dense()
    assert got.shape == (2, 3, 6)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(got[i], codes(values[i], indices[i], 6).dense())


def test_an_empty_slot_is_neither_active_nor_fired():
    some = codes([[0.0, -1.0, 2.0], [0.0, 0.0, 3.0]], [[0, 1, 2], [0, 1, 2]], 4)
    np.testing.assert_array_equal(some.l0(), [2.0, 1.0])
    np.testing.assert_array_equal(some.fired(), [0.0, 1.0, 2.0, 0.0])
    assert some.l0().dtype == some.fired().dtype == jnp.float32


def test_flat_is_parents_then_the_atoms_of_expert_0_and_so_on():
    want = np.zeros((2, EXPERTS * (1 + ATOMS)))

    def atom(e, a):
        return EXPERTS + e * ATOMS + a

    want[0, [1, 3]] = 2.0, 1.0
    want[0, [atom(1, 2), atom(3, 1), atom(3, 2)]] = 0.5, 0.25, -1.0
    want[1, 0] = 3.0
    want[1, [atom(0, 0), atom(0, 1)]] = 7.0, 8.0
    np.testing.assert_array_equal(tree().dense(), want)
    np.testing.assert_array_equal(tree().flat().dense(), want)
    assert tree().flat().size == EXPERTS * (1 + ATOMS)
    np.testing.assert_array_equal(tree().l0(), (want != 0).sum(1))
    np.testing.assert_array_equal(tree().fired(), (want != 0).sum(0))


def test_dense_parents_and_dense_children_flatten_alike():
    """Codes without indices (ReLU) name the same features as codes that spell the indices out."""
    rng = np.random.default_rng(1)
    parents, children = rng.normal(size=(2, EXPERTS)), rng.normal(size=(2, EXPERTS, ATOMS))
    every = np.broadcast_to(np.arange(ATOMS), children.shape)
    a = TreeCodes(Codes(jnp.asarray(parents), None, EXPERTS), Codes(jnp.asarray(children), None, ATOMS))
    b = TreeCodes(codes(parents, [np.arange(EXPERTS)] * 2, EXPERTS), codes(children, every, ATOMS))
    np.testing.assert_array_equal(a.dense(), b.dense())
    np.testing.assert_array_equal(a.dense(), np.concatenate([parents, children.reshape(2, -1)], 1).astype(np.float32))


def test_gradients_pass_through_dense():
    some = codes([[1.0, 2.0]], [[2, 0]], 3)
    w = jnp.array([[10.0, 20.0, 30.0]])
    gradient = jax.grad(lambda v: jnp.sum(w * Codes(v, some.indices, 3).dense()))(some.values)
    np.testing.assert_array_equal(gradient, [[30.0, 10.0]])


def test_flat_codes_are_their_own_flat():
    some = codes([[1.0]], [[0]], 2)
    assert some.flat() is some
