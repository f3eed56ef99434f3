import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import ops

BATCH, EMBED, FEATURES, K = 22, 5, 30, 4
PARTS = {"plain": (), "bias": ("bias",), "centred": ("bias", "centre"), "scaled": ("bias", "centre", "scale")}


def arrays(parts):
    rng = np.random.default_rng(0)
    sizes = {"x": (BATCH, EMBED), "weight": (FEATURES, EMBED), "bias": FEATURES, "centre": EMBED, "scale": FEATURES}
    made = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    made["scale"] = 1 + np.abs(made["scale"])
    return {name: jnp.asarray(a) for name, a in made.items() if name in ("x", "weight", *parts)}


def activate(pre):
    return jnp.where(pre >= 0.3, pre, 0.1 * pre)


def plain(encoder):
    """Every pre-activation, then the k largest."""
    pre = encoder.dense()
    indices = jax.lax.top_k(activate(pre), K)[1]
    return jnp.take_along_axis(pre, indices, -1), indices, jnp.sum(jnp.abs(activate(pre)))


def routed(chunk):
    return lambda encoder: ops.route(encoder, lambda pre, _: jax.lax.top_k(activate(pre), K)[1], activate, chunk)


def run(form, parts):
    def loss(a):
        pre, indices, l1, *_ = form(ops.Encoder(**a))
        return jnp.sum(jnp.sin(pre) * jnp.arange(1.0, K + 1)) + 0.3 * l1, (pre, indices, l1)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays(parts))


@pytest.mark.parametrize("chunk", [None, 1, 5, 11, 22])  # 5 leaves a remainder of 2
@pytest.mark.parametrize("parts", PARTS)
def test_equals_the_dense_encoder_with_all_gradients(parts, chunk):
    (_, want), want_gradients = run(plain, PARTS[parts])
    (_, got), gradients = run(routed(chunk), PARTS[parts])
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[2], want[2], rtol=1e-5)
    assert gradients.keys() == want_gradients.keys()
    for name, gradient in want_gradients.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-4, atol=1e-4, err_msg=name)


def test_no_array_of_all_pre_activations_is_left_nor_work_for_an_unread_penalty():
    batch, features = 4096, 1024
    x, weight = jnp.zeros((batch, 8)), jnp.zeros((features, 8))

    def compiled(use_l1):
        def loss(weight):
            pre, _, l1, _ = ops.route(ops.Encoder(x, weight), lambda pre, _: jax.lax.top_k(pre, 2)[1], jax.nn.relu, 32)
            return jnp.sum(pre) + (l1 if use_l1 else 0.0)

        return jax.jit(jax.grad(loss)).lower(weight).compile()

    with_l1, without = compiled(True), compiled(False)
    assert with_l1.memory_analysis().temp_size_in_bytes < 4 * batch * features / 4
    per_chunk = 2 * 32 * features * 8  # the compiler counts a loop's body once
    assert with_l1.cost_analysis()["flops"] - without.cost_analysis()["flops"] > 0.9 * per_chunk


def test_the_encoder_of_some_features_is_a_part_of_the_whole():
    encoder = ops.Encoder(**arrays(PARTS["scaled"]))
    some = jnp.asarray([3, 0, 29])
    for whole in (encoder, encoder.evaluated(), ops.Encoder.from_preactivations(encoder.dense())):
        np.testing.assert_allclose(whole.rows(some).dense(), encoder.dense()[:, some], rtol=1e-5, atol=1e-6)
        assert whole.size == FEATURES
