import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import saelens
from reference.filled import filled

from jhsae.errors import UserError
from jhsae.losses import L0, DeadPreActivation, QuadraticL0, TanhL0
from jhsae.sae import FlatSAE, GatedSAE, HierarchicalSAE
from jhsae.sparsify import BatchTopK, JumpReLU, ReLU, TopK
from jhsae.usage import Context

BATCH, EMBED, FEATURES, EXPERTS = 9, 8, 20, 6
X = np.random.default_rng(1).normal(0.3, 1.0, size=(BATCH, EMBED)).astype(np.float32)
TARGET, SCALE = 4.0, 2.5
MODES = {"step": L0(), "quadratic": QuadraticL0(TARGET), "tanh": TanhL0(SCALE)}


@pytest.fixture(scope="session")
def lens():
    return saelens.load()


@eqx.filter_jit
def run(term, sae, x, dead):
    """The term and its gradient to every parameter."""
    return eqx.filter_value_and_grad(lambda sae: term(sae, sae.forward(x, Context(jax.random.key(0), dead=dead))))(sae)


def flat(part):
    sae = filled(lambda: FlatSAE(EMBED, FEATURES, part, key=jax.random.key(0)), scale=0.5)
    return eqx.tree_at(lambda s: s.sparsifier.threshold, sae, jnp.abs(sae.sparsifier.threshold))


encode = eqx.filter_jit(lambda sae, x, dead: sae.forward(jnp.asarray(x), Context(dead=dead)))


def tree(route):
    def make():
        return HierarchicalSAE(EMBED, EXPERTS, 3, 2, route, TopK(1), biases=("encoder",), key=jax.random.key(0))

    return filled(make, scale=0.5)


def compare(sae, theirs, loss, value, grads):
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    for key, want in saelens.gradients(theirs, loss).items():
        got, want = saelens.leaf(grads, key), saelens.ours_layout(key, want)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * (1 + np.abs(want).max()), err_msg=key)


@pytest.mark.parametrize(
    "mode, to_input", [("step", False), ("step", True), ("quadratic", False), ("tanh", False), ("tanh", True)]
)
def test_the_penalties_equal_saelens_in_value_and_gradients(lens, mode, to_input):
    fixed = {"jumprelu_sparsity_loss_mode": mode, "jumprelu_ste_to_input": to_input, "l0_coefficient": 1.0}
    fixed |= {"jumprelu_bandwidth": 1.0, "jumprelu_tanh_scale": SCALE, "target_l0": TARGET}
    theirs = saelens.training_sae(lens, np.random.default_rng(3), "jumprelu", EMBED, FEATURES, **fixed)
    loss = saelens.passed(lens, theirs, X, np.zeros(FEATURES, bool)).losses["l0_loss"]
    value, grads = run(MODES[mode], saelens.ours(theirs), X, None)
    compare(saelens.ours(theirs), theirs, loss, value, grads)
    assert np.any(grads.sparsifier.threshold) and np.any(grads.W_enc) == (to_input or mode == "tanh")


def test_the_pre_activation_loss_equals_saelens_for_any_dead_mask(lens):
    theirs = saelens.training_sae(
        lens, np.random.default_rng(4), "jumprelu", EMBED, FEATURES, pre_act_loss_coefficient=1.0
    )
    sae = saelens.ours(theirs)
    for kind in saelens.DEAD:
        dead = saelens.dead_mask(np.random.default_rng(5), kind, EMBED, FEATURES)
        loss = saelens.passed(lens, theirs, X, dead).losses["pre_act_loss"]
        value, grads = run(DeadPreActivation(), sae, X, jnp.asarray(dead, jnp.float32))
        compare(sae, theirs, loss, value, grads)
        assert (value > 0) == dead.any()
    assert run(DeadPreActivation(), sae, X, None)[0] == 0.0


def test_the_values_equal_a_loop_over_tokens_and_features():
    sae = flat(JumpReLU(0.1, 1.0))
    pre = np.asarray(encode(sae, X, None).pre, np.float64)
    t, norms = np.asarray(sae.sparsifier.threshold), np.linalg.norm(sae.W_dec, axis=1)
    count = np.array([sum(p > ti for p, ti in zip(row, t, strict=True)) for row in pre])
    tanh = [sum(np.tanh(SCALE * p * n) for p, ti, n in zip(row, t, norms, strict=True) if p > ti) for row in pre]
    wants = {"step": count.mean(), "quadratic": (2 / TARGET * (count - TARGET) ** 2).mean(), "tanh": np.mean(tanh)}
    for mode, want in wants.items():
        np.testing.assert_allclose(run(MODES[mode], sae, X, None)[0], want, rtol=1e-5, err_msg=mode)
    assert 0 < count.min() < count.max()


def test_the_pre_activation_loss_lifts_the_dead_towards_their_threshold():
    """One step against the gradient: a dead feature that is under its threshold rises, none that lives moves."""
    sae, dead = flat(JumpReLU(0.1, 1.0)), jnp.asarray(np.arange(FEATURES) % 3 == 0, jnp.float32)
    _, grads = run(DeadPreActivation(), sae, X, dead)
    moved = eqx.apply_updates(sae, jax.tree.map(lambda g: -1e-3 * g, grads))
    moved = eqx.tree_at(lambda s: s.b_dec, moved, sae.b_dec)  # shared by all features
    before, after = (np.asarray(encode(s, X, None).pre) for s in (sae, moved))
    gone = np.asarray(dead) > 0
    assert ((after - before)[:, gone].mean(0) > 0).all()
    np.testing.assert_array_equal(after[:, ~gone], before[:, ~gone])
    assert (moved.sparsifier.threshold <= sae.sparsifier.threshold).all()


def test_of_a_hierarchical_sae_they_read_the_experts():
    sae = tree(JumpReLU(0.1, 1.0))
    pre = np.asarray(encode(sae, X, None).pre)
    over = pre > np.asarray(sae.route.threshold)
    dead = np.zeros(sae.features, np.float32)
    dead[[0, 3]], dead[EXPERTS:] = 1.0, 1.0
    norms, forward = np.linalg.norm(sae.router_dec, axis=1), encode(sae, X, jnp.asarray(dead))
    np.testing.assert_allclose(L0()(sae, forward), over.sum(1).mean(), rtol=1e-6)
    below = np.maximum(np.asarray(sae.route.threshold) - pre, 0.0) * dead[:EXPERTS]
    np.testing.assert_allclose(DeadPreActivation()(sae, forward), (below * norms).sum(1).mean(), rtol=1e-5)
    tanh = np.tanh(SCALE * np.where(over, pre, 0) * norms).sum(1).mean()
    np.testing.assert_allclose(TanhL0(SCALE)(sae, forward), tanh, rtol=1e-5)


@pytest.mark.parametrize("term", [L0(), QuadraticL0(3.0), DeadPreActivation()], ids=lambda term: type(term).__name__)
def test_what_has_no_thresholds_is_refused(term):
    gated = GatedSAE(EMBED, FEATURES, key=jax.random.key(0))
    others = [filled(lambda p=part: FlatSAE(EMBED, FEATURES, p, key=jax.random.key(0))) for part in (ReLU(), TopK(2))]
    for sae, named in ((gated, "GatedSAE"), (others[0], "ReLU"), (others[1], "TopK"), (tree(BatchTopK(2.0)), "Batch")):
        with pytest.raises(UserError, match=f"needs thresholds.*{named}.*write jhsae.sparsify.JumpReLU"):
            eqx.filter_eval_shape(run, term, sae, X, None)


@pytest.mark.parametrize("target", [0.0, -3.0])
def test_a_target_that_cannot_be_reached_is_refused(target):
    with pytest.raises(ValueError, match=f"target is {target}.*more than 0"):
        QuadraticL0(target)
