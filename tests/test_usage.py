import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jhsae.codes import Codes, TreeCodes
from jhsae.usage import Usage


def fired(*features, size=5):
    """Codes of one token in which exactly these features are active; slot 0 of feature 0 is empty otherwise."""
    values = [float(f in features) for f in range(size)]
    return Codes(jnp.asarray([values]), jnp.arange(size, dtype=jnp.int32)[None], size)


def test_nothing_has_waited_at_the_start():
    usage = Usage.init(3)
    np.testing.assert_array_equal(usage.since_fired, 0)
    np.testing.assert_array_equal(usage.dead(1), 0.0)


def test_the_counter_is_the_number_of_steps_since_a_feature_fired():
    batches = [{0, 1}, {1}, {1, 3}, set(), {0}]
    usage, waited = Usage.init(5), np.zeros(5, int)
    for batch in batches:
        usage = usage.update(fired(*batch))
        waited = np.array([0 if f in batch else n + 1 for f, n in enumerate(waited)])
        np.testing.assert_array_equal(usage.since_fired, waited)
    np.testing.assert_array_equal(usage.since_fired, [0, 2, 5, 2, 5])
    assert usage.since_fired.dtype == jnp.int32


def test_a_feature_is_dead_from_the_window_on():
    usage = eqx.tree_at(lambda u: u.since_fired, Usage.init(4), jnp.array([0, 2, 3, 4], jnp.int32))
    np.testing.assert_array_equal(usage.dead(3), [0.0, 0.0, 1.0, 1.0])


def test_one_active_token_in_the_batch_is_enough_and_an_empty_slot_is_not():
    batch = Codes(jnp.array([[0.0, 0.0], [0.0, 3.0]]), jnp.array([[0, 1], [0, 1]], jnp.int32), 2)
    np.testing.assert_array_equal(Usage.init(2).update(batch).since_fired, [1, 0])


def test_a_negative_value_fires():
    assert Usage.init(1).update(Codes(jnp.array([[-0.1]]), None, 1)).since_fired[0] == 0


def test_atoms_are_counted_after_the_experts():
    parents = Codes(jnp.array([[1.0]]), jnp.array([[1]], jnp.int32), 2)
    children = Codes(jnp.array([[[0.5]]]), jnp.array([[[2]]], jnp.int32), 3)
    usage = Usage.init(2 * 4).update(TreeCodes(parents, children))
    np.testing.assert_array_equal(usage.since_fired, [1, 0, 1, 1, 1, 1, 1, 0])


def test_it_works_inside_jit():
    step = jax.jit(lambda usage, codes: usage.update(codes))
    np.testing.assert_array_equal(step(Usage.init(5), fired(2)).since_fired, [1, 1, 0, 1, 1])
