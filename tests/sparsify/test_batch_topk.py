import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from reference.filled import filled

from jhsae.codes import Codes
from jhsae.sae import FlatSAE, HierarchicalSAE, ScaledByParent, Unscaled
from jhsae.schedule import Linear
from jhsae.sparsify import BatchTopK, JumpReLU, ReLU, TopK
from jhsae.training.fit import fit
from jhsae.usage import Context, FeatureStats

BATCH, EMBED, N, EXPERTS, ATOMS = 15, 8, 12, 6, 3
encode = eqx.filter_jit(lambda part, pre, context: part(pre, context).values)
forward = eqx.filter_jit(lambda sae, x, context: sae.forward(x, context))
observe = eqx.filter_jit(lambda sae, usage, x: sae.observe(usage, sae.forward(x, Context(jax.random.key(0))).codes, 10))


def pre_activations(seed=0, shape=(BATCH, N), mean=0.0):
    return jnp.asarray(np.random.default_rng(seed).normal(mean, 1.0, size=shape), jnp.float32)


def oracle(pre, count):
    """The `count` largest of max(pre, 0) over all rows, the rest 0."""
    flat = np.maximum(np.asarray(pre), 0.0).reshape(-1)
    out, chosen = np.zeros_like(flat), np.argsort(-flat, kind="stable")[:count]
    out[chosen] = flat[chosen]
    return out.reshape(pre.shape)


@pytest.mark.parametrize("k", [0.05, 1.0, 2.5, 4.2, 8.2, float(N)])
def test_the_codes_are_the_largest_of_the_batch(k):
    """int(k * rows) of them, in exact arithmetic: 4.2 * 15 is 63, though not in float32."""
    for mean in (0.0, 3.0, -3.0):
        pre = pre_activations(mean=mean)
        codes = encode(BatchTopK(k), pre, Context())
        np.testing.assert_array_equal(codes, oracle(pre, int(k * BATCH)))
        assert (codes > 0).sum() == min(int(k * BATCH), (pre > 0).sum())


def test_a_token_may_have_none_and_another_more_than_k():
    pre = jnp.asarray([[5.0, 6.0, 7.0], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(encode(BatchTopK(1.5), pre, Context()), [[5.0, 6.0, 7.0], [0.0, 0.0, 0.0]])


def test_all_leading_axes_share_the_budget():
    pre = pre_activations(mean=2.0)
    codes = encode(BatchTopK(2.0), pre.reshape(3, 5, N), Context())
    np.testing.assert_array_equal(codes.reshape(BATCH, N), oracle(pre, 2 * BATCH))


@pytest.mark.parametrize("step", [0, 3, 10, 50])
def test_k_may_follow_a_schedule(step):
    pre, k = pre_activations(mean=2.0), 8.0 - 6.0 * min(step / 10, 1.0)
    codes = encode(BatchTopK(Linear(8.0, 2.0, 10)), pre, Context(step=jnp.asarray(step)))
    assert (codes > 0).sum() == int(round(k * BATCH, 4))


def test_the_gradient_goes_to_what_was_selected():
    pre = pre_activations()
    gradient = jax.jit(jax.grad(lambda pre: jnp.sum(BatchTopK(1.5)(pre, Context()).values ** 2)))(pre)
    np.testing.assert_allclose(gradient, 2 * oracle(pre, int(1.5 * BATCH)), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_the_running_threshold_is_the_mean_of_the_least_positive_codes(rate):
    """Batches without a positive code leave it where it is."""
    part, expected, threshold = BatchTopK(1.0, rate), 0.0, jnp.zeros(())
    track = eqx.filter_jit(lambda threshold, values: part.track(threshold, Codes(values, None, N)))
    for seed in range(30):
        values = np.zeros((4, N)) if seed % 7 == 3 else oracle(pre_activations(seed, (4, N), mean=seed / 10), 4)
        threshold = track(threshold, jnp.asarray(values, jnp.float32))
        if (values > 0).any():
            expected = (1 - rate) * expected + rate * values[values > 0].min()
        np.testing.assert_allclose(threshold, expected, rtol=1e-5, err_msg=f"batch {seed}")
    assert expected > 0


def trained(sae, steps=40):
    """The usage after some steps on random batches."""
    usage = FeatureStats.init(sae.features, len(sae.sparsifiers))
    for step in range(steps):
        usage = observe(sae, usage, pre_activations(step, (BATCH, EMBED)))
    return usage


def test_a_flat_sae_settles_as_a_jump_relu_at_the_running_threshold():
    sae = filled(lambda: FlatSAE(EMBED, N, BatchTopK(2.0, 0.2), key=jax.random.key(0)), scale=0.4)
    usage = trained(sae)
    for_inference = sae.for_inference(usage)
    assert isinstance(for_inference.sparsifier, JumpReLU) and usage.thresholds[0] > 0.1
    np.testing.assert_array_equal(for_inference.sparsifier.threshold, np.full(N, usage.thresholds[0]))
    x = pre_activations(99, (BATCH, EMBED))
    pre = np.asarray(x - sae.b_dec) @ np.asarray(sae.W_enc).T + np.asarray(sae.b_enc)
    got = forward(for_inference, x, Context()).codes
    assert got.indices is None
    np.testing.assert_allclose(got.values, np.where(pre > usage.thresholds[0], pre, 0.0), atol=1e-5)
    among_others = forward(for_inference, x.at[3:].multiply(9.0), Context()).codes.values
    np.testing.assert_array_equal(among_others[:3], got.values[:3])
    assert abs(float(got.l0().mean()) - 2.0) < 1.0
    np.testing.assert_array_equal(sae.for_inference(None).sparsifier.threshold, np.zeros(N))


def hierarchical(route, pick, child_scale=Unscaled()):  # noqa: B008
    def make():
        return HierarchicalSAE(
            EMBED, EXPERTS, 2, ATOMS, route, pick, child_scale=child_scale, biases=("encoder",), key=jax.random.key(0)
        )

    return filled(make, scale=0.4)


@pytest.mark.parametrize(
    "route, pick",
    [(TopK(2), BatchTopK(1.0, 0.1)), (BatchTopK(2.0, 0.1), BatchTopK(0.5, 0.2))],
    ids=["pick", "both"],
)
def test_a_hierarchical_sae_settles_in_either_slot_and_encodes(route, pick):
    sae = hierarchical(route, pick)
    usage = trained(sae)
    for_inference = sae.for_inference(usage)
    for slot, size, before, threshold in zip(
        (for_inference.route, for_inference.pick), (EXPERTS, 1), (route, pick), usage.thresholds, strict=True
    ):
        if isinstance(before, BatchTopK):
            assert isinstance(slot, JumpReLU) and float(threshold) > 0.01
            np.testing.assert_array_equal(slot.threshold, np.full(size, threshold))
        else:
            assert slot == before and float(threshold) == 0.0
    x = pre_activations(99, (BATCH, EMBED))
    out = forward(for_inference, x, Context())
    np.testing.assert_allclose(out.codes.dense() @ for_inference.dictionary(), out.x_hat, rtol=1e-4, atol=1e-5)
    among_others = forward(for_inference, x.at[3:].multiply(9.0), Context()).codes.dense()
    np.testing.assert_array_equal(among_others[:3], out.codes.dense()[:3])
    shapes = jax.tree.map(lambda a: a.shape, eqx.filter(sae.for_inference(None), eqx.is_array))
    assert shapes == jax.tree.map(lambda a: a.shape, eqx.filter(for_inference, eqx.is_array))


def test_the_threshold_of_the_atoms_is_in_the_unit_of_their_pre_activations():
    """The scale by the parent comes after the selection, so settling keeps L0 whatever the size of the parents."""
    sae = hierarchical(ReLU(), BatchTopK(1.0, 0.1), ScaledByParent())
    sae = eqx.tree_at(lambda s: s.b_enc, sae, jnp.full(EXPERTS, 20.0))
    x = pre_activations(99, (300, EMBED))
    before, after = (
        forward(s, x, Context(jax.random.key(0))).codes.children.l0().mean()
        for s in (sae, sae.for_inference(trained(sae)))
    )
    assert abs(float(after) - float(before)) < 0.3 * float(before)


@pytest.mark.parametrize("k, rate", [(0.0, 0.01), (-1.0, 0.01), (2.0, 0.0), (2.0, 1.5)])
def test_what_cannot_work_is_refused_by_name(k, rate):
    with pytest.raises(ValueError, match=f"k is {k}|threshold_rate is {rate}"):
        BatchTopK(k, rate)


def test_not_a_number_reaches_the_codes():
    pre = pre_activations().at[0, 3].set(jnp.nan)
    assert np.isnan(encode(BatchTopK(1.0), pre, Context())[0, 3])


@pytest.mark.parametrize("steps", [20, 100, 300])
def test_after_a_short_training_the_threshold_keeps_the_sparsity_too(steps):
    """It starts at 0, where it would let through several times as many codes as training did."""
    sae = FlatSAE(runs.EMBED, 24, BatchTopK(4.0), key=jax.random.key(0))
    x = runs.activations(2048)
    for_inference, rows = fit(sae, x, steps=steps, batch=128)
    assert abs(rows[-1]["l0"] - 4.0) < 0.1
    assert abs(float(for_inference.encode(x).l0().mean()) - 4.0) < 0.5


@pytest.mark.parametrize(("rate", "steps"), [(0.01, 1), (0.01, 50), (0.3, 2), (1.0, 3)])
def test_the_correction_undoes_the_start_at_zero(rate, steps):
    """Equal batches: whatever the number of steps, the threshold is their least code."""
    part, threshold = BatchTopK(1.0, rate), jnp.zeros(())
    for _ in range(steps):
        threshold = part.track(threshold, Codes(jnp.asarray([[0.0, 3.0, 5.0]]), None, 3))
    np.testing.assert_allclose(part.corrected(threshold, steps), 3.0, rtol=1e-5)
    assert part.corrected(jnp.zeros(()), 0) == 0
