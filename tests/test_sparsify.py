import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import hsae as reference

from jhsae.errors import UserError
from jhsae.schedule import Constant, Linear
from jhsae.sparsify import (
    BinaryGumbelTopK,
    GumbelTopK,
    LeakyOffsetTopK,
    OffsetTopK,
    ReLU,
    TopK,
)
from jhsae.usage import Context

BATCH, N, K = 24, 12, 3
ANNEAL = Linear(2.0, 0.5, 10)
PARTS = {
    "relu": (ReLU(), reference.relu(N)),
    "topk": (TopK(K), reference.relu(K)),
    "topk scan": (TopK(K, "scan"), reference.relu(K)),
    "topk blocked": (TopK(K, "blocked"), reference.relu(K)),
    "offset": (OffsetTopK(K, 0.5), reference.offset(K, 0.5)),
    "leaky": (LeakyOffsetTopK(K, 0.5, 0.1), reference.offset(K, 0.5, 0.1)),
    "gumbel": (GumbelTopK(K, ANNEAL), reference.relu(K)),
    "binary": (BinaryGumbelTopK(K, ANNEAL), reference.binary(K)),
    "binary of one": (BinaryGumbelTopK(1, ANNEAL), reference.binary(1)),
}
NOISY = [BinaryGumbelTopK(1, ANNEAL), BinaryGumbelTopK(K, ANNEAL), GumbelTopK(1, ANNEAL), GumbelTopK(K, ANNEAL)]


encode = eqx.filter_jit(lambda part, pre, context: part(pre, context))
to_dense = eqx.filter_jit(lambda part, pre, context: part(pre, context).dense())
gradient = eqx.filter_jit(
    lambda part, pre, w, context: jax.grad(lambda pre: jnp.sum(w * part(pre, context).dense()))(pre)
)


def pre_activations(seed=0, batch=BATCH):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, N)), jnp.float32)


def training(step=0, seed=0):
    return Context(key=jax.random.key(seed), step=jnp.asarray(step))


def dense(select, pre):
    """The oracle's codes of every row, over all features."""
    out = np.zeros(pre.shape)
    for row, values in zip(out, np.asarray(pre, np.float64), strict=True):
        chosen, activated = select(values)
        row[chosen] = activated
    return out


@pytest.mark.parametrize("name", PARTS)
def test_without_a_key_the_codes_equal_the_oracle(name):
    part, select = PARTS[name]
    got = to_dense(part, pre_activations(), Context())
    np.testing.assert_allclose(got, dense(select, pre_activations()), rtol=1e-6)
    assert got.shape == (BATCH, N)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("context", [Context(), training()])
def test_no_more_entries_are_active_than_announced(name, context):
    part, _ = PARTS[name]
    active = np.asarray(to_dense(part, 5.0 + pre_activations(), context)) != 0
    np.testing.assert_array_equal(active.sum(1), part.most_active(N))


@pytest.mark.parametrize("name", [name for name in PARTS if name not in ("leaky", "binary", "binary of one")])
@pytest.mark.parametrize("context", [Context(), training()])
def test_what_does_not_clear_the_threshold_is_an_empty_slot(name, context):
    pre = np.full((BATCH, N), -1.0, np.float32)
    pre[0, 4] = 2.0
    codes = np.array(to_dense(PARTS[name][0], jnp.asarray(pre), context))
    assert codes[0, 4] in (0.0, 2.0)  # noise may select another
    codes[0, 4] = 0.0
    np.testing.assert_array_equal(codes, 0.0)


def test_the_offset_is_inclusive_and_does_not_shift_the_value():
    codes = OffsetTopK(2, 0.5)(jnp.array([[0.5, 0.49999, 0.75]]), Context())
    np.testing.assert_array_equal(codes.dense(), [[0.5, 0.0, 0.75]])


def test_the_leaky_offset_keeps_the_largest_value_even_when_it_is_negative():
    codes = LeakyOffsetTopK(1, 0.5, 0.01)(jnp.array([[-3.0, -1.0, -2.0], [0.4, -9.0, 0.6]]), Context())
    np.testing.assert_allclose(codes.dense(), [[0.0, -0.01, 0.0], [0.0, 0.0, 0.6]], rtol=1e-6)


@pytest.mark.parametrize("name", PARTS)
def test_leading_axes_are_independent(name):
    part, _ = PARTS[name]
    pre = pre_activations()
    got = to_dense(part, pre.reshape(2, -1, N), Context())
    np.testing.assert_array_equal(got.reshape(BATCH, N), to_dense(part, pre, Context()))


@pytest.mark.parametrize("part", [TopK, lambda k: OffsetTopK(k, 0.1), lambda k: GumbelTopK(k, Constant(1.0))])
@pytest.mark.parametrize("k", [0, -2])
def test_a_k_below_one_is_an_error_that_names_k(part, k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        part(k)


def test_activate_is_what_the_codes_are_selected_from():
    pre = pre_activations()
    for name, (part, _) in PARTS.items():
        if "binary" not in name:
            codes, activated = np.asarray(to_dense(part, pre, Context())), np.asarray(part.activate(pre))
            np.testing.assert_array_equal(codes, np.where(codes != 0, activated, 0.0), err_msg=name)


@pytest.mark.parametrize("part", NOISY)
def test_the_gate_is_exactly_one_in_the_forward_pass(part):
    pre = 3.0 + pre_activations()
    codes = np.asarray(to_dense(part, pre, training()))
    expected = 1.0 if isinstance(part, BinaryGumbelTopK) else np.asarray(pre)
    active = codes != 0
    np.testing.assert_array_equal(active.sum(1), part.k)
    np.testing.assert_array_equal(codes[active], np.broadcast_to(expected, pre.shape)[active])


@pytest.mark.parametrize("part", NOISY)
def test_the_key_decides_the_selection(part):
    pre = pre_activations()
    one, same, other = (np.asarray(to_dense(part, pre, training(seed=s))) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def frequencies(part, step, rows=4000):
    """How often each of five entries is selected, from equal rows of pre-activations."""
    pre = jnp.array([1.0, 0.6, 0.2, 1.4, 0.9])
    codes = np.asarray(to_dense(part, jnp.tile(pre, (rows, 1)), training(step)))
    return np.asarray(pre), (codes != 0).mean(0)


@pytest.mark.parametrize("rule", [GumbelTopK, BinaryGumbelTopK])
def test_a_temperature_is_a_number_or_a_schedule(rule):
    assert rule(2, 0.5) == rule(2, Constant(0.5))
    with pytest.raises(UserError, match=f"{rule.__name__}: temperature is -0.5, expected at least 0"):
        rule(2, -0.5)


@pytest.mark.parametrize("step, temperature", [(0, 2.0), (10, 0.5)])
def test_a_gumbel_of_one_samples_the_softmax_at_the_scheduled_temperature(step, temperature):
    pre, seen = frequencies(GumbelTopK(1, ANNEAL), step)
    np.testing.assert_allclose(seen, jax.nn.softmax(pre / temperature), atol=0.03)


@pytest.mark.parametrize("step", [0, 10])
def test_the_binary_gumbel_of_one_has_noise_of_fixed_scale(step):
    pre, seen = frequencies(BinaryGumbelTopK(1, ANNEAL), step)
    np.testing.assert_allclose(seen, jax.nn.softmax(pre), atol=0.03)


def gate(pre, mask, temperature):
    """sigma~ of PolytopeSAE: the softmax over all entries, masked to the selected and renormalised."""
    soft = jax.nn.softmax(pre / temperature, axis=-1) * mask
    return soft / soft.sum(-1, keepdims=True)


@pytest.mark.parametrize("step, temperature", [(0, 2.0), (5, 1.25), (10, 0.5)])
def test_the_binary_gate_has_the_gradient_of_the_masked_softmax(step, temperature):
    part, pre, w = BinaryGumbelTopK(K, ANNEAL), pre_activations(1), pre_activations(2)
    mask = to_dense(part, pre, training(step)) != 0
    expected = jax.grad(lambda pre: jnp.sum(w * gate(pre, mask, temperature)))(pre)
    np.testing.assert_allclose(gradient(part, pre, w, training(step)), expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("step, temperature", [(0, 2.0), (10, 0.5)])
def test_the_gumbel_code_has_the_gradients_of_its_gate_and_of_its_magnitude(step, temperature):
    part, pre, w = GumbelTopK(K, ANNEAL), 1.0 + pre_activations(1), pre_activations(2)
    mask = encode(part, pre, training(step)).indices
    mask = jnp.zeros(pre.shape).at[jnp.arange(BATCH)[:, None], mask].set(1.0)
    magnitude = jnp.maximum(pre, 0.0)
    through_gate = jax.grad(lambda pre: jnp.sum(w * magnitude * gate(pre, mask, temperature)))(pre)
    expected = through_gate + w * mask * (pre > 0)
    np.testing.assert_allclose(gradient(part, pre, w, training(step)), expected, rtol=1e-4, atol=1e-6)


def test_entries_that_are_not_selected_get_no_gradient():
    pre, w = pre_activations(1), pre_activations(2)
    for part in (BinaryGumbelTopK(K, ANNEAL), GumbelTopK(K, ANNEAL), TopK(K)):
        slots = encode(part, pre, training()).indices
        outside = np.ones(pre.shape, bool)
        np.put_along_axis(outside, np.asarray(slots), False, -1)
        np.testing.assert_array_equal(np.asarray(gradient(part, pre, w, training()))[outside], 0.0)


@pytest.mark.parametrize("step, temperature", [(0, 2.0), (10, 0.5)])
def test_the_binary_gumbel_of_one_is_the_hard_gumbel_softmax(step, temperature):
    part, pre, w, context = BinaryGumbelTopK(1, ANNEAL), pre_activations(1), pre_activations(2), training(step)

    def noisy(pre):
        return pre + jax.random.gumbel(context.key, pre.shape)

    np.testing.assert_array_equal(to_dense(part, pre, context), jax.nn.one_hot(noisy(pre).argmax(-1), N))
    expected = jax.grad(lambda pre: jnp.sum(w * jax.nn.softmax(noisy(pre) / temperature, axis=-1)))(pre)
    np.testing.assert_allclose(gradient(part, pre, w, context), expected, rtol=1e-4, atol=1e-6)
    assert (np.asarray(expected) != 0).all()


def test_sparsifiers_hold_no_arrays():
    for part, _ in PARTS.values():
        assert jax.tree.leaves(part) == []
