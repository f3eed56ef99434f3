import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled
from reference.hsae import parameters

from jhsae.losses import AnnealedLp, Contributions, L1Active, L1All, MeanL1Children, MeanL1Parents, Objective, TanhL0
from jhsae.sae import DecoderNormUnit, FlatSAE, HierarchicalSAE, PlainUnit
from jhsae.schedule import Constant, Linear
from jhsae.sparsify import BinaryGumbelTopK, LeakyOffsetTopK, OffsetTopK, ReLU, TopK
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
    with pytest.raises(ValueError, match=r"needs a HierarchicalSAE, got a FlatSAE; .*drop the term"):
        Objective({"l1": term}).check(flat())


@eqx.filter_jit
def differentiated(term, sae, x, step):
    context = Context(jax.random.key(0), step)
    return eqx.filter_value_and_grad(lambda sae: term(sae, sae.forward(x, context)))(sae)


def of_features(part, **how):
    return filled(lambda: FlatSAE(EMBED, 12, part, key=jax.random.key(0), **how))


CONTRIBUTING = {
    "dense": lambda: of_features(ReLU()),
    "sparse": flat,
    "rescaled": lambda: of_features(TopK(3), code_unit=DecoderNormUnit()),
    "hierarchical": lambda: build(TopK(K), TopK(1)),
}


@pytest.mark.parametrize("p", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("kind", CONTRIBUTING)
def test_contributions_are_the_p_norm_of_code_times_row_norm(kind, p, x):
    sae = CONTRIBUTING[kind]()
    sizes = np.abs(run(sae, x).codes.dense()) * np.linalg.norm(sae.dictionary(), axis=1)
    want = np.mean([np.sum(row[row > 0].astype(np.float64) ** p) ** (1 / p) for row in sizes])
    np.testing.assert_allclose(value(Contributions(p), sae, x), want, rtol=1e-5)


@pytest.mark.parametrize("p", [1.0, 0.5, 2.0])
def test_a_feature_cannot_hide_behind_a_long_decoder_row(p, x):
    """The same reconstruction from codes a hundredth the size costs the same; L1Active falls for it."""
    sae = of_features(ReLU())
    hidden = eqx.tree_at(
        lambda s: (s.W_enc, s.b_enc, s.W_dec), sae, (sae.W_enc / 100, sae.b_enc / 100, sae.W_dec * 100)
    )
    np.testing.assert_allclose(value(Contributions(p), hidden, x), value(Contributions(p), sae, x), rtol=1e-5)
    assert value(L1Active(), hidden, x) < 0.02 * value(L1Active(), sae, x)


TERMS = [Contributions(0.5), Contributions(1.0), Contributions(2.0), AnnealedLp(Linear(1.0, 0.2, 10))]


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_their_gradients_are_finite_where_codes_are_zero(term, x):
    """Also of a token without any code, and of features that no token has."""
    sae = of_features(ReLU())
    sae = eqx.tree_at(lambda s: s.b_enc, sae, sae.b_enc.at[:4].set(-1e3))
    tokens = x.at[0].set(sae.b_dec)  # its pre-activations are the biases
    for silent in (sae, eqx.tree_at(lambda s: s.b_enc, sae, jnp.full(12, -1e3))):
        sizes = np.asarray(run(silent, tokens).codes.dense())
        assert (sizes[:, :4] == 0).all()
        result, grads = differentiated(term, silent, tokens, jnp.asarray(7))
        assert np.isfinite(result) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
        assert np.any(grads.W_enc) == (sizes > 0).any()
        np.testing.assert_array_equal(grads.W_enc[:4], 0.0)


def test_annealed_at_p_of_one_is_l1_and_its_size_is_l1_for_every_p(x):
    term, sae = AnnealedLp(Linear(1.0, 0.2, 10)), of_features(ReLU())
    l1, gradient = differentiated(Contributions(), sae, x, jnp.asarray(0))
    for step in (0, 3, 10, 99):
        result, grads = differentiated(term, sae, x, jnp.asarray(step))
        np.testing.assert_allclose(result, l1, rtol=1e-5)
        if step == 0:
            for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(gradient), strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step, p", [(5, 0.6), (10, 0.2)])
def test_annealed_gradients_are_those_of_the_power_times_a_constant(step, p, x):
    sae = of_features(ReLU())
    codes, norms = np.asarray(run(sae, x).codes.values, np.float64), np.linalg.norm(sae.W_dec, axis=1)
    sizes = codes * norms
    ratio = sizes.sum() / (sizes[sizes > 0] ** p).sum()
    slope = np.where(sizes > 0, ratio * p * np.where(sizes > 0, sizes, 1.0) ** (p - 1), 0.0) * norms / BATCH
    _, grads = differentiated(AnnealedLp(Linear(1.0, 0.2, 10)), sae, x, jnp.asarray(step))
    np.testing.assert_allclose(grads.b_enc, slope.sum(0), rtol=1e-4)
    np.testing.assert_allclose(grads.W_enc, slope.T @ np.asarray(x - sae.b_dec), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("p", [0.0, -1.0])
def test_a_p_that_is_no_norm_is_refused(p):
    with pytest.raises(ValueError, match=f"p is {p}, expected more than 0"):
        Contributions(p)


@pytest.mark.parametrize("unit", [PlainUnit(), DecoderNormUnit()], ids=["plain", "norm"])
@pytest.mark.parametrize("term", [Contributions(), Contributions(0.5), AnnealedLp(Constant(0.5)), TanhL0()], ids=repr)
def test_a_decoder_row_of_zeros_has_a_finite_gradient(x, term, unit):
    sae = filled(lambda: FlatSAE(EMBED, 12, ReLU(), code_unit=unit, key=jax.random.key(0)))
    sae = eqx.tree_at(lambda s: (s.W_dec, s.b_enc), sae, (sae.W_dec.at[3].set(0.0), sae.b_enc.at[3].set(9.0)))
    params, static = eqx.partition(sae, eqx.is_inexact_array)

    def loss(params):
        model = eqx.combine(params, static)
        forward = model.forward(x, Context())
        return term(model, forward) + jnp.sum(forward.x_hat**2)

    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
