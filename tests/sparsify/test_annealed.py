import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import hsae as reference

from jhsae.sae import FlatSAE
from jhsae.sparsify import AnnealedTopK, TopK
from jhsae.usage import Context, FeatureStats

N, K, START, STEPS = 12, 3, 9, 10
PART = AnnealedTopK(K, START, STEPS)
encode = eqx.filter_jit(lambda part, pre, context: part(pre, context))
PRE = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.0, size=(7, N)), jnp.float32)


def oracle(k):
    out = np.zeros(PRE.shape)
    for row, pre in zip(out, np.asarray(PRE), strict=True):
        chosen, values = reference.relu(k)(pre)
        row[chosen] = values
    return out


@pytest.mark.parametrize("step", [0, 1, 4, 5, 9, 10, 999])
def test_in_training_k_falls_linearly_from_start_to_k(step):
    k = round(START + (K - START) * min(step / STEPS, 1.0))
    codes = encode(PART, PRE, Context(jax.random.key(0), jnp.asarray(step)))
    np.testing.assert_allclose(codes.dense(), oracle(k), rtol=1e-6)
    assert codes.values.shape[-1] == START == PART.most_active(N)


def test_in_evaluation_k_is_the_last_one_whatever_the_step():
    np.testing.assert_allclose(encode(PART, PRE, Context()).dense(), oracle(K), rtol=1e-6)


def test_slots_that_are_emptied_get_no_gradient():
    def total(pre):
        return jnp.sum(PART(pre, Context(jax.random.key(0), jnp.asarray(STEPS))).values)

    np.testing.assert_array_equal(eqx.filter_jit(jax.grad(total))(PRE) != 0, oracle(K) != 0)


def test_it_settles_as_topk():
    sae = FlatSAE(4, N, AnnealedTopK(K, START, STEPS, "scan"), key=jax.random.key(0))
    for usage in (None, FeatureStats.init(N)):
        assert sae.for_inference(usage).sparsifier == TopK(K, "scan")
    x = PRE[:, :4]
    np.testing.assert_array_equal(sae.for_inference(None).encode(x).dense(), sae.encode(x).dense())


@pytest.mark.parametrize("k, start, steps", [(4, 3, 10), (3, 9, 0), (0, 9, 10)])
def test_what_cannot_work_is_refused_by_name(k, start, steps):
    with pytest.raises(ValueError, match=f"(k|steps) is 0, expected at least 1|start is {start} and k {k}; write"):
        AnnealedTopK(k, start, steps)


def test_a_start_beyond_the_features_is_refused():
    with pytest.raises(ValueError, match=rf"k is {N + 1} but there are {N} features"):
        FlatSAE(4, N, AnnealedTopK(K, N + 1, STEPS), key=jax.random.key(0))
