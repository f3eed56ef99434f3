import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import hsae as reference
from reference.filled import filled

from jhsae.codes import Codes
from jhsae.sae import HierarchicalSAE, Residual, ScaledByParent
from jhsae.schedule import Constant
from jhsae.sparsify import AbstractSparsifier, BinaryGumbelTopK, GumbelTopK, LeakyOffsetTopK, OffsetTopK, ReLU, TopK
from jhsae.usage import Context

BATCH, EMBED, EXPERTS, SUB, ATOMS, K = 7, 8, 6, 2, 4, 3
ALL_TIES, ALL_BIASES = ("router", "projectors", "atoms"), ("encoder", "decoder")
ONE = Constant(1.0)
run = eqx.filter_jit(lambda sae, x, context: sae.forward(x, context))

# name -> (route, pick, arguments of the SAE, route, pick and arguments of the oracle)
CASES = {
    "scale": (OffsetTopK(K, 0.3, "scan"), TopK(1), {}, reference.offset(K, 0.3), reference.relu(1), {}),
    "scale as published": (
        OffsetTopK(K, 0.3, "scan"),
        LeakyOffsetTopK(1, 0.3, 0.01),
        {"biases": ("decoder",)},
        reference.offset(K, 0.3),
        reference.offset(1, 0.3, 0.01),
        {},
    ),
    "geometry": (
        GumbelTopK(K, ONE),
        TopK(1),
        {"biases": ALL_BIASES, "child_input": Residual()},
        reference.relu(K),
        reference.relu(1),
        {"residual": True},
    ),
    "geometry as published": (
        BinaryGumbelTopK(K, ONE),
        BinaryGumbelTopK(1, ONE),
        {"biases": ALL_BIASES, "apply_b_dec_to_input": False},
        reference.binary(K),
        reference.binary(1),
        {"centre": False},
    ),
    "all tied": (
        TopK(K, "blocked"),
        GumbelTopK(2, ONE),
        {"tie": ALL_TIES, "biases": ("encoder",), "child_scale": ScaledByParent()},
        reference.relu(K),
        reference.relu(2),
        {"scaled": True},
    ),
    "router tied, residual, scaled": (
        TopK(K),
        LeakyOffsetTopK(2, 0.2, 0.5),
        {"tie": ("router",), "child_input": Residual(), "child_scale": ScaledByParent(), "biases": ALL_BIASES},
        reference.relu(K),
        reference.offset(2, 0.2, 0.5),
        {"residual": True, "scaled": True},
    ),
    "every expert and atom": (
        ReLU(),
        ReLU(),
        {"tie": ("projectors",), "biases": ALL_BIASES},
        reference.relu(EXPERTS),
        reference.relu(ATOMS),
        {},
    ),
}


def build(name, route=None, **how):
    """The SAE of a case, with encoders drifted from decoders and biases that are not 0."""
    its_route, pick, arguments, *_ = CASES[name]
    route = its_route if route is None else route

    def make():
        return HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, route, pick, key=jax.random.key(0), **arguments, **how)

    return filled(make, scale=0.5)


def oracle(name, sae, x):
    _, _, _, route, pick, arguments = CASES[name]
    return reference.forward(np.asarray(x, np.float64), reference.parameters(sae), route, pick, **arguments)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(2).normal(size=(BATCH, EMBED)), jnp.float32)


@pytest.fixture(scope="module", params=CASES)
def case(request, x):
    """(name, SAE, its forward pass in evaluation)."""
    sae = build(request.param)
    return request.param, sae, run(sae, x, Context())


def test_the_forward_pass_equals_the_token_loop(case, x):
    name, sae, forward = case
    x_hat, coarse, codes = oracle(name, sae, x)
    np.testing.assert_allclose(forward.codes.dense(), codes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forward.x_hat_parents, coarse, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forward.x_hat, x_hat, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(forward.x, x)
    assert np.abs(x_hat - coarse).max() > 0.05 and (codes[:, EXPERTS:] != 0).any()  # the case is not trivial


def test_every_reading_of_the_codes_gives_the_reconstruction(case):
    _, sae, forward = case

    @eqx.filter_jit
    def readings(sae, codes):
        bias = 0.0 if sae.b_dec is None else sae.b_dec
        return {
            "tree": sae.decode(codes),
            "flat": sae.decode(codes.flat()),
            "dense": sae.decode(Codes(codes.dense(), None, sae.features)),
            "dictionary": codes.dense() @ sae.dictionary() + bias,
        }

    for name, x_hat in readings(sae, forward.codes).items():
        np.testing.assert_allclose(x_hat, forward.x_hat, rtol=1e-4, atol=1e-5, err_msg=name)
    assert jax.eval_shape(sae.dictionary).shape == (sae.features, sae.embed) == (EXPERTS * (1 + ATOMS), EMBED)


def test_an_atom_is_zero_where_its_parent_is_zero(case):
    _, _, forward = case
    empty = np.asarray(forward.codes.parents.values) == 0
    np.testing.assert_array_equal(np.asarray(forward.codes.children.values)[empty], 0.0)


def test_every_array_is_a_floating_parameter(case):
    _, sae, _ = case
    for leaf in jax.tree.leaves(sae):
        assert eqx.is_inexact_array(leaf), f"{leaf!r} is a leaf and not a parameter"


@pytest.mark.parametrize("name", ["scale", "every expert and atom"])
@pytest.mark.parametrize("how", [{"chunk": 3}, {"kernel": "dense"}, {"kernel": "tiles"}, {"kernel": "gather"}], ids=str)
def test_chunks_and_kernels_change_nothing(name, how, x):
    plain, other = run(build(name), x, Context()), run(build(name, **how), x, Context())
    np.testing.assert_allclose(other.x_hat, plain.x_hat, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other.codes.dense(), plain.codes.dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_pairs_sorted_by_expert_give_the_gradients_of_plain_gathers(name, x):
    """Whatever the experts read, whatever is tied, with biases and without; towards the input too."""

    def gradients(kernel):
        sae = build(name, kernel=kernel)
        params, static = eqx.partition(sae, eqx.is_inexact_array)

        def loss(params, x):
            forward = eqx.combine(params, static).forward(x, Context())
            return jnp.sum(jnp.sin(forward.x_hat)) + jnp.sum(forward.x_hat_parents**2) + 0.1 * forward.l1

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)

    for got, want in zip(jax.tree.leaves(gradients("tiles")), jax.tree.leaves(gradients("gather")), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_short_calls_are_the_forward_pass(x):
    sae = build("geometry")
    forward = run(sae, x, Context())
    x_hat, codes = eqx.filter_jit(lambda sae: (sae(x), sae.encode(x).dense()))(sae)
    np.testing.assert_allclose(x_hat, forward.x_hat, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(codes, forward.codes.dense(), rtol=1e-6, atol=1e-6)


def test_the_order_of_the_experts_does_not_matter(case, x):
    _, sae, forward = case
    order = np.random.default_rng(3).permutation(EXPERTS)

    def permute(a):
        return a[order] if a.shape[0] == EXPERTS and a.ndim > 0 else a

    b_dec = sae.b_dec
    permuted = eqx.tree_at(lambda s: s.b_dec, jax.tree.map(permute, sae), b_dec, is_leaf=lambda a: a is None)
    out = run(permuted, x, Context())
    np.testing.assert_allclose(out.x_hat, forward.x_hat, rtol=1e-4, atol=1e-5)
    codes, before = np.asarray(out.codes.dense()), np.asarray(forward.codes.dense())
    np.testing.assert_allclose(codes[:, :EXPERTS], before[:, order], rtol=1e-4, atol=1e-5)

    def by_expert(dense):
        return dense[:, EXPERTS:].reshape(BATCH, EXPERTS, ATOMS)

    np.testing.assert_allclose(by_expert(codes), by_expert(before)[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, seed", [("scale", None), ("geometry", None), ("geometry", 4), ("geometry as published", 4)]
)
def test_no_token_has_more_than_k_parents_and_one_atom_each(name, seed, x):
    codes = run(build(name), x, Context(key=None if seed is None else jax.random.key(seed))).codes
    assert (np.asarray(codes.parents.l0()) <= K).all() and (np.asarray(codes.l0()) <= 2 * K).all()
    assert (np.asarray(codes.children.l0()) <= 1).all()


def test_a_token_with_no_expert_over_the_threshold_is_the_bias(x):
    sae = build("scale as published", route=OffsetTopK(K, 100.0))
    forward = run(sae, x, Context())
    np.testing.assert_array_equal(forward.codes.l0(), 0.0)
    np.testing.assert_allclose(forward.x_hat, jnp.broadcast_to(sae.b_dec, x.shape), rtol=1e-6)


@pytest.mark.parametrize("name", ["scale as published", "router tied, residual, scaled"])
def test_the_gradient_is_the_slope_of_the_oracle(name, x):
    sae, rng = build(name), np.random.default_rng(5)
    w = rng.normal(size=x.shape)
    grads = eqx.filter_jit(eqx.filter_grad(lambda s: jnp.sum(w * s(x))))(sae)
    step = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), sae)
    slope = sum(float(np.vdot(g, s)) for g, s in zip(jax.tree.leaves(grads), jax.tree.leaves(step), strict=True))

    def value(t):
        start, along = reference.parameters(sae), reference.parameters(step)
        _, _, _, route, pick, arguments = CASES[name]
        moved = {n: start[n] + t * along[n] for n in start}
        return (w * reference.forward(np.asarray(x, np.float64), moved, route, pick, **arguments)[0]).sum()

    np.testing.assert_allclose(slope, (value(1e-6) - value(-1e-6)) / 2e-6, rtol=2e-3)


def test_a_tied_pair_is_one_parameter_that_gets_both_gradients(x):
    def make(tie):
        return HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, TopK(K), TopK(1), tie=tie, key=jax.random.key(0))

    grads = eqx.filter_jit(eqx.filter_grad(lambda s: jnp.sum((s(x) - x) ** 2)))
    tied, free = grads(make(ALL_TIES)), grads(make(()))  # both start equal
    assert len(jax.tree.leaves(make(ALL_TIES))) == len(jax.tree.leaves(tied)) == 3
    for encoder, decoder in (("router_enc", "router_dec"), ("down", "up"), ("atom_enc", "atom_dec")):
        assert np.abs(getattr(free, encoder)).max() > 1e-3
        both = getattr(free, encoder) + getattr(free, decoder)
        np.testing.assert_allclose(getattr(tied, decoder), both, rtol=1e-3, atol=1e-5, err_msg=encoder)


class Spy(AbstractSparsifier):
    """Every entry as it is; notes the key that it was given."""

    keys: list = eqx.field(static=True)

    def activate(self, pre):
        return pre

    def most_active(self, size):
        return size

    def __call__(self, pre, context):
        self.keys.append(context.key)
        return Codes(pre, None, pre.shape[-1])


def test_parents_and_atoms_draw_from_keys_of_their_own(x):
    """With one key the noise of an atom would be that of some expert."""
    spy = Spy([])
    sae = filled(lambda: HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, spy, spy, key=jax.random.key(0)))

    @jax.jit
    def keys(key):
        sae.forward(x, Context(key=key))
        return [jax.random.key_data(key) for key in spy.keys]

    route, pick = keys(jax.random.key(1))
    other, _ = keys(jax.random.key(2))
    assert (route != pick).any() and (route != other).any()


def test_the_start_ties_encoders_to_decoders_and_gives_unit_rows_inside():
    sae = HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, TopK(K), TopK(1), biases=ALL_BIASES, key=jax.random.key(0))
    for a, b in ((sae.router_enc, sae.router_dec), (sae.down, sae.up), (sae.atom_enc, sae.atom_dec)):
        np.testing.assert_array_equal(a, b)
    for rows in (sae.up, sae.atom_dec):
        np.testing.assert_allclose(jnp.linalg.norm(rows, axis=-1), 1.0, rtol=1e-5)
    assert np.abs(sae.router_dec).max() <= (6 / EMBED) ** 0.5
    for bias in (sae.b_enc, sae.b_atom, sae.b_dec):
        np.testing.assert_array_equal(bias, 0.0)
    assert (sae.experts, sae.sub, sae.atoms, sae.embed) == (EXPERTS, SUB, ATOMS, EMBED)


def test_the_key_decides_the_start():
    def make(seed):
        return HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, TopK(1), TopK(1), key=jax.random.key(seed))

    np.testing.assert_array_equal(make(0).up, make(0).up)
    assert (np.asarray(make(0).up) != np.asarray(make(1).up)).any()


@pytest.mark.parametrize(
    "route, pick, message",
    [
        (TopK(EXPERTS + 1), TopK(1), rf"route: k is {EXPERTS + 1}.*{EXPERTS} experts"),
        (TopK(1), GumbelTopK(ATOMS + 1, ONE), rf"pick: k is {ATOMS + 1}.*{ATOMS} atoms"),
    ],
)
def test_a_k_that_is_too_large_is_an_error_before_any_compute(route, pick, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, route, pick, key=jax.random.key(0))


@pytest.mark.parametrize("size", ["embed", "experts", "sub", "atoms"])
def test_a_size_below_one_is_an_error_that_names_it(size):
    sizes = {"embed": EMBED, "experts": EXPERTS, "sub": SUB, "atoms": ATOMS} | {size: 0}
    with pytest.raises(ValueError, match=f"{size} is 0"):
        HierarchicalSAE(**sizes, route=TopK(1), pick=TopK(1), key=jax.random.key(0))
