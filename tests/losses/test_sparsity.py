import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled
from reference.hsae import parameters

from jhsae.losses import L1Active, L1All, MeanL1Children, MeanL1Parents
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.schedule import Constant
from jhsae.sparsify import BinaryGumbelTopK, LeakyOffsetTopK, OffsetTopK, TopK
from jhsae.usage import Context

BATCH, EMBED, EXPERTS, SUB, ATOMS, K = 4, 8, 6, 2, 3, 4
OFFSET, SLOPE = 0.4, 0.1


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, EMBED)), jnp.float32)


def build(route=None, pick=None):
    route = OffsetTopK(K, OFFSET) if route is None else route
    pick = LeakyOffsetTopK(1, OFFSET, SLOPE) if pick is None else pick
    return filled(lambda: HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, route, pick, key=jax.random.key(0)))


def flat():
    return filled(lambda: FlatSAE(EMBED, 12, TopK(3), key=jax.random.key(0)))


run = eqx.filter_jit(lambda sae, x: sae.forward(x, Context()))


def value(term, sae, x):
    return float(term(sae, run(sae, x)))


def test_l1_active_is_the_mean_over_tokens_of_the_sum_of_magnitudes(x):
    sae = build(pick=LeakyOffsetTopK(1, 100.0, -SLOPE))  # every atom's value is negative
    dense = np.asarray(run(sae, x).codes.dense())
    assert (dense < 0).any()
    np.testing.assert_allclose(value(L1Active(), sae, x), np.abs(dense).sum(1).mean(), rtol=1e-5)
    dense = np.asarray(run(flat(), x).codes.dense())
    np.testing.assert_allclose(value(L1Active(), flat(), x), np.abs(dense).sum(1).mean(), rtol=1e-5)


def test_l1_all_covers_experts_outside_the_top_k_and_losing_atoms(x):
    sae, p = build(), parameters(build())
    total = 0.0
    for token in np.asarray(x, np.float64):
        pre = p["router_enc"] @ token
        activated = np.where(pre >= OFFSET, pre, 0.0)
        total += np.abs(activated).sum()
        for e in np.argsort(-activated, kind="stable")[:K]:  # fillers of value 0 count too
            child = p["atom_enc"][e] @ (p["down"][e] @ token)
            total += np.abs(np.where(child >= OFFSET, child, SLOPE * child)).sum()
    np.testing.assert_allclose(value(L1All(), sae, x), total / BATCH, rtol=1e-5)
    assert value(L1All(), sae, x) > value(L1Active(), sae, x)


def test_the_mean_terms_divide_by_every_parent_and_by_every_atom(x):
    sae = build()
    dense = np.abs(run(sae, x).codes.dense())
    np.testing.assert_allclose(value(MeanL1Parents(), sae, x), dense[:, :EXPERTS].mean(), rtol=1e-5)
    np.testing.assert_allclose(value(MeanL1Children(), sae, x), dense[:, EXPERTS:].mean(), rtol=1e-5)


def l1_gradient(k, x):
    """The largest gradient that an L1 over binary parents sends to the router."""
    sae = build(BinaryGumbelTopK(k, Constant(0.7)), BinaryGumbelTopK(2, Constant(0.7)))
    context = Context(key=jax.random.key(2))

    def terms(sae):
        forward = sae.forward(x, context)
        return MeanL1Parents()(sae, forward) + MeanL1Children()(sae, forward) + L1Active()(sae, forward)

    return max(float(np.abs(g).max()) for g in jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(terms))(sae)))


@pytest.mark.parametrize("k", [1, 3])
def test_over_binary_codes_it_is_constant_with_no_gradient(k, x):
    """The sum of k gates is k whatever the logits are."""
    assert l1_gradient(k, x) < 1e-6


@pytest.mark.parametrize("term", [L1All(), MeanL1Parents(), MeanL1Children()], ids=lambda term: type(term).__name__)
def test_a_flat_sae_is_refused(term, x):
    with pytest.raises(ValueError, match="hierarchical SAE"):
        term(flat(), run(flat(), x))
