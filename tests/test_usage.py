import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jhsae.codes import Codes, TreeCodes
from jhsae.usage import FeatureStats


def fired(*features, size=5):
    """Codes of one token in which exactly these features are active; slot 0 of feature 0 is empty otherwise."""
    values = [float(f in features) for f in range(size)]
    return Codes(jnp.asarray([values]), jnp.arange(size, dtype=jnp.int32)[None], size)


def test_nothing_has_waited_at_the_start():
    usage = FeatureStats.init(3)
    np.testing.assert_array_equal(usage.since_fired, 0)
    np.testing.assert_array_equal(usage.dead(1), 0.0)


def test_the_counter_is_the_number_of_steps_since_a_feature_fired():
    batches = [{0, 1}, {1}, {1, 3}, set(), {0}]
    usage, waited = FeatureStats.init(5), np.zeros(5, int)
    for batch in batches:
        usage = usage.update(fired(*batch))
        waited = np.array([0 if f in batch else n + 1 for f, n in enumerate(waited)])
        np.testing.assert_array_equal(usage.since_fired, waited)
    np.testing.assert_array_equal(usage.since_fired, [0, 2, 5, 2, 5])
    assert usage.since_fired.dtype == jnp.int32


def test_a_feature_is_dead_from_the_window_on():
    usage = eqx.tree_at(lambda u: u.since_fired, FeatureStats.init(4), jnp.array([0, 2, 3, 4], jnp.int32))
    np.testing.assert_array_equal(usage.dead(3), [0.0, 0.0, 1.0, 1.0])


def test_one_active_token_in_the_batch_is_enough_and_an_empty_slot_is_not():
    batch = Codes(jnp.array([[0.0, 0.0], [0.0, 3.0]]), jnp.array([[0, 1], [0, 1]], jnp.int32), 2)
    np.testing.assert_array_equal(FeatureStats.init(2).update(batch).since_fired, [1, 0])


def test_a_negative_value_fires():
    assert FeatureStats.init(1).update(Codes(jnp.array([[-0.1]]), None, 1)).since_fired[0] == 0


def test_atoms_are_counted_after_the_experts():
    parents = Codes(jnp.array([[1.0]]), jnp.array([[1]], jnp.int32), 2)
    children = Codes(jnp.array([[[0.5]]]), jnp.array([[[2]]], jnp.int32), 3)
    usage = FeatureStats.init(2 * 4).update(TreeCodes(parents, children))
    np.testing.assert_array_equal(usage.since_fired, [1, 0, 1, 1, 1, 1, 1, 0])


def test_it_works_inside_jit():
    step = jax.jit(lambda usage, codes: usage.update(codes))
    np.testing.assert_array_equal(step(FeatureStats.init(5), fired(2)).since_fired, [1, 1, 0, 1, 1])


def test_the_frequency_is_that_of_the_last_complete_window():
    """The fraction of the window's tokens that activated a feature; NaN before the first window is complete."""
    window, tokens, size = 4, 3, 5
    rng, usage = np.random.default_rng(0), FeatureStats.init(size)
    step = jax.jit(lambda usage, values: usage.update(Codes(values, None, size), window=window))
    seen, expected = [], np.full(size, np.nan)
    np.testing.assert_array_equal(usage.frequency, expected)
    for number in range(1, 15):
        values = rng.normal(size=(tokens, size)) * (rng.random((tokens, size)) < 0.4)
        usage = step(usage, jnp.asarray(values, jnp.float32))
        seen.append((values != 0).sum(0))
        if number % window == 0:
            expected = np.sum(seen[-window:], axis=0) / (window * tokens)
        np.testing.assert_allclose(usage.frequency, expected, rtol=1e-6, err_msg=f"step {number}")
        assert usage.steps == number % window


def test_a_window_of_one_step_is_that_step():
    usage = FeatureStats.init(5).update(fired(1, 3), window=1)
    np.testing.assert_array_equal(usage.frequency, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(usage.update(fired(2), window=1).frequency, [0, 0, 1, 0, 0])


def test_the_frequency_of_atoms_is_that_of_tokens_not_of_slots():
    parents = Codes(jnp.array([[1.0, 2.0], [0.5, 0.0]]), jnp.array([[1, 0], [1, 0]], jnp.int32), 2)
    children = Codes(jnp.array([[[0.5], [0.0]], [[0.25], [0.0]]]), jnp.full((2, 2, 1), 2, jnp.int32), 3)
    usage = FeatureStats.init(2 * 4).update(TreeCodes(parents, children), window=1)
    np.testing.assert_array_equal(usage.frequency, [0.5, 1, 0, 0, 0, 0, 0, 1])


def test_thresholds_are_kept_unless_new_ones_are_given():
    usage = FeatureStats.init(5, 2)
    moved = usage.update(fired(1), (jnp.asarray(0.5), jnp.asarray(0.25)))
    assert [float(t) for t in usage.thresholds] == [0, 0] and [float(t) for t in moved.thresholds] == [0.5, 0.25]
    assert [float(t) for t in moved.update(fired(1)).thresholds] == [0.5, 0.25]
    assert FeatureStats.init(5, 0).update(fired(1)).thresholds == ()


def test_the_reborn_have_not_waited():
    usage = eqx.tree_at(lambda u: u.since_fired, FeatureStats.init(5), jnp.array([7, 8, 9, 10, 11], jnp.int32))
    usage = usage.restarted(jnp.array([True, False, True]))
    np.testing.assert_array_equal(usage.since_fired, [0, 8, 0, 10, 11])
