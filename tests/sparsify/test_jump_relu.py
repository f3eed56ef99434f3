import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.leaf import describe
from jhsae.sae import FlatSAE
from jhsae.sparsify import JumpReLU
from jhsae.usage import Context

N = 6
encode = eqx.filter_jit(lambda part, pre: part(pre, Context()))


@eqx.filter_jit
def gradients(part, pre, w, what):
    """Of sum(w * codes) or sum(w * over_threshold), to the part's thresholds and to pre."""

    def weighted(parts):
        part, pre = parts
        return jnp.sum(w * (part(pre, Context()).dense() if what == "codes" else part.over_threshold(pre)))

    part_gradient, pre_gradient = eqx.filter_grad(weighted)((part, pre))
    return part_gradient.threshold, pre_gradient


def drawn(seed=0, **options):
    """A part of bandwidth 1 with thresholds from 0 to 1, pre-activations, weights."""
    rng = np.random.default_rng(seed)
    part = JumpReLU(0.1, 1.0, **options).sized(N)
    part = eqx.tree_at(lambda p: p.threshold, part, jnp.asarray(rng.random(N), jnp.float32))
    return part, *(jnp.asarray(rng.normal(size=(5, N)), jnp.float32) for _ in range(2))


def test_the_codes_are_dense_and_what_exceeds_its_own_threshold():
    part, pre, _ = drawn()
    codes = encode(part, pre)
    assert codes.indices is None and codes.size == N == part.most_active(N)
    np.testing.assert_array_equal(codes.values, np.where(pre > part.threshold, pre, 0.0))
    np.testing.assert_array_equal(codes.values, part.activate(pre))
    np.testing.assert_array_equal(part.over_threshold(pre), (pre > part.threshold).astype(np.float32))


def test_what_equals_the_threshold_is_off_and_a_threshold_of_zero_is_a_relu():
    np.testing.assert_array_equal(encode(JumpReLU(0.5), jnp.array([[0.5, 0.75, -1.0]])).values, [[0.0, 0.75, 0.0]])
    np.testing.assert_array_equal(encode(JumpReLU(0.0), jnp.array([[0.0, 0.75, -1.0]])).values, [[0.0, 0.75, 0.0]])


@pytest.mark.parametrize("gradient_to", ["threshold", "threshold_and_input"])
@pytest.mark.parametrize("what", ["codes", "count"])
def test_gradient_to_says_whether_the_rectangle_reaches_the_input(what, gradient_to):
    part, pre, w = drawn(gradient_to=gradient_to)
    near, over, t = np.abs(pre - part.threshold) < 0.5, np.asarray(pre > part.threshold), np.asarray(part.threshold)
    height = near * (t if what == "codes" else 1.0)
    to_threshold, to_pre = gradients(part, pre, w, what)
    np.testing.assert_allclose(to_threshold, -(w * height).sum(0), rtol=1e-5, atol=1e-6)
    both = gradient_to == "threshold_and_input"
    np.testing.assert_allclose(to_pre, w * (over * (what == "codes") + both * height), rtol=1e-5, atol=1e-6)
    assert near.any() and not near.all()


@pytest.mark.parametrize("initial", [0.25, 0.0])
def test_it_owns_one_threshold_per_feature_a_parameter_kept_from_below_zero(initial):
    sae = FlatSAE(4, N, JumpReLU(initial), key=jax.random.key(0))
    threshold = sae.sparsifier.threshold
    np.testing.assert_array_equal(threshold, np.full(N, initial, np.float32))
    assert threshold.dtype == jnp.float32 and not threshold.weak_type, "the step would be compiled twice"
    leaf = describe(eqx.filter(sae, eqx.is_inexact_array)).sparsifier.threshold
    assert (leaf.path, leaf.axes, leaf.nonnegative) == ("sparsifier.threshold", ("features",), True)
    others = [leaf for leaf in jax.tree.leaves(describe(sae)) if leaf.path != "sparsifier.threshold"]
    assert not any(leaf.nonnegative for leaf in others)


def test_it_settles_as_itself_and_keeps_its_thresholds():
    part, _, _ = drawn()
    assert part.for_inference(jnp.asarray(3.0)) is part
    assert part.track(jnp.asarray(3.0), encode(part, jnp.ones((2, N)))) == 3.0
    np.testing.assert_array_equal(part.sized(N).threshold, part.threshold)


def test_leading_axes_are_independent():
    part, pre, _ = drawn()
    np.testing.assert_array_equal(encode(part, pre.reshape(5, 1, N)).values[:, 0], encode(part, pre).values)


@pytest.mark.parametrize("initial, bandwidth", [(-0.1, 0.05), (0.1, 0.0), (0.1, -1.0)])
def test_what_cannot_work_is_refused_by_name(initial, bandwidth):
    with pytest.raises(ValueError, match=f"initial is {initial}, expected at|bandwidth is {bandwidth}, expected more"):
        JumpReLU(initial, bandwidth)
