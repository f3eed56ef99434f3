import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jhsae.sae import mixture_of_experts_v2, teacher_initialized
from jhsae.sparsify import GumbelTopK, OffsetTopK
from jhsae.usage import Context


def test_the_scale_preset_is_the_published_shape():
    """379.6 million parameters at embed 2304 (16,384 experts, sub 4, 16 atoms): nothing is allocated."""

    def make():
        return mixture_of_experts_v2(2304, key=jax.random.key(0))

    sae = eqx.filter_eval_shape(make)
    assert sum(leaf.size for leaf in jax.tree.leaves(sae)) == 2 * (16384 * 2304 + 16384 * 4 * 2304 + 16384 * 16 * 4)
    assert isinstance(sae.route, OffsetTopK)
    assert (sae.route.k, sae.route.topk) == (32, "auto")
    np.testing.assert_allclose(sae.route.offset, 1 / 48)
    assert sae.pick.k == 1 and sae.b_dec is None and sae.b_enc is None
    assert sae.features == 278_528


def test_the_geometry_preset_anneals_its_routing_and_has_biases():
    def make():
        return teacher_initialized(64, 20, 8, 4, 2, steps=100, key=jax.random.key(0))

    sae = eqx.filter_eval_shape(make)
    assert isinstance(sae.route, GumbelTopK)
    assert [float(sae.route.temperature(step)) for step in (0, 100)] == [1.5, np.float32(0.7)]
    assert (sae.experts, sae.sub, sae.atoms, sae.route.k, sae.pick.k) == (20, 8, 4, 2, 1)
    assert all(bias is not None for bias in (sae.b_enc, sae.b_atom, sae.b_dec))


def test_both_presets_reconstruct_a_batch():
    x = jnp.zeros((5, 16))
    for make in (
        lambda: mixture_of_experts_v2(16, 12, 2, 4, 3, key=jax.random.key(0)),
        lambda: teacher_initialized(16, 12, 4, 4, 3, key=jax.random.key(0), chunk=2),
    ):
        forward = eqx.filter_eval_shape(lambda make=make: make().forward(x, Context(key=jax.random.key(1))))
        assert forward.x_hat.shape == forward.x_hat_parents.shape == x.shape
        assert forward.codes.parents.values.shape == (5, 3) and forward.codes.children.values.shape == (5, 3, 1)
