import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.filled import filled

from jhsae.constraint import ProjectAndRenormalize, Unconstrained
from jhsae.data import Identity
from jhsae.leaf import matching
from jhsae.losses import Objective, SquaredError
from jhsae.optimizer import adam, adam_mini, chain
from jhsae.resampling import NoResampling, Resample
from jhsae.sae import FlatSAE, GatedSAE, HierarchicalSAE
from jhsae.schedule import Constant
from jhsae.sparsify import JumpReLU, ReLU, TopK
from jhsae.training.step import StageModules, TrainState, make_step
from jhsae.usage import Context

BATCH, EMBED, TOP, EVERY, UNTIL = 32, 8, 12, 5, 20
REVIVAL = Resample(EVERY, UNTIL)
OPTIMIZER = chain(adam(), 1e-3, Unconstrained())
BIASES = ("encoder", "decoder")


def hierarchical(**how):
    return HierarchicalSAE(EMBED, TOP, 2, 3, TopK(3), TopK(1), biases=BIASES, key=jax.random.key(0), **how)


KINDS = {
    "flat": lambda: FlatSAE(EMBED, TOP, ReLU(), key=jax.random.key(0)),
    "gated": lambda: GatedSAE(EMBED, TOP, key=jax.random.key(0)),
    "hierarchical": hierarchical,
    "jump": lambda: FlatSAE(EMBED, TOP, JumpReLU(0.01), key=jax.random.key(0)),
    "tied": lambda: hierarchical(tie=("router",)),
}
ENCODERS = {"flat": "W_enc", "gated": "W_enc", "hierarchical": "router_enc"}


def setup(kind, dead_share=0.4, seed=0):
    """(sae, Adam state with moments everywhere, forward pass, dead mask over the top features)."""
    rng = np.random.default_rng(seed)
    sae = filled(KINDS[kind], seed)
    params = eqx.filter(sae, eqx.is_inexact_array)
    opt_state = jax.tree.map(
        lambda a: jnp.asarray(rng.random(a.shape) + 1, a.dtype) if a.ndim else a, OPTIMIZER.init(params)
    )
    dead = np.zeros(sae.features, np.float32)
    dead[:TOP] = rng.permutation(TOP) < dead_share * TOP
    dead[TOP:] = 1.0  # atoms, where there are any: none of its business
    x = jnp.asarray(rng.normal(1.0, 1.0, size=(BATCH, EMBED)), jnp.float32)
    forward = eqx.filter_jit(lambda s, x: s.forward(x, Context(jax.random.key(0), dead=jnp.asarray(dead))))(sae, x)
    return sae, opt_state, forward, dead[:TOP] > 0


@eqx.filter_jit
def resample_jit(resampling, sae, opt_state, forward, step, key):
    return resampling(sae, opt_state, OPTIMIZER, forward, step, key)


def resample(resampling, sae, opt_state, forward, step, seed=0):
    return resample_jit(resampling, sae, opt_state, forward, jnp.asarray(step), jax.random.key(seed))


def unit_rows(a):
    return np.asarray(a) / np.linalg.norm(a, axis=1, keepdims=True)


def adam_moments(opt_state):
    (state,) = [s for s in jax.tree.leaves(opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    return state.mu, state.nu


def of_top(kind, sae):
    """The names of the parameters with one row per top feature."""
    names = {"flat": ["W_enc", "W_dec", "b_enc"], "gated": ["W_enc", "W_dec", "b_gate", "r_mag", "b_mag"]}
    return names.get(kind, ["router_dec", "b_enc"] + ([] if kind == "tied" else ["router_enc"]))


@pytest.mark.parametrize("kind", ["flat", "gated", "hierarchical", "tied"])
def test_only_the_rows_of_dead_features_change_and_as_the_paper_says(kind):
    sae, opt_state, forward, dead = setup(kind)
    new, new_state, resampled = resample(REVIVAL, sae, opt_state, forward, EVERY - 1)
    np.testing.assert_array_equal(resampled, dead)
    names = of_top(kind, sae)
    for name in eqx.filter(sae, eqx.is_inexact_array).__dataclass_fields__:
        before, after = getattr(sae, name), getattr(new, name)
        if not eqx.is_inexact_array(before):
            continue
        rows = np.any(np.asarray(before != after).reshape(len(before), -1), axis=1)
        np.testing.assert_array_equal(rows, dead if name in names else np.zeros(len(before), bool), err_msg=name)
    for name in names:
        if getattr(sae, name).ndim == 1:
            np.testing.assert_array_equal(np.asarray(getattr(new, name))[dead], 0.0, err_msg=name)
    decoder = np.asarray(new.router_dec if kind in ("hierarchical", "tied") else new.W_dec)
    old = np.asarray(sae.router_dec if kind in ("hierarchical", "tied") else sae.W_dec)
    np.testing.assert_allclose(np.linalg.norm(decoder, axis=1), np.linalg.norm(old, axis=1), rtol=1e-5)
    directions = unit_rows(forward.x - sae.b_dec)
    units = unit_rows(decoder[dead])
    assert np.all((units @ directions.T).max(1) > 1 - 1e-5)
    if kind in ENCODERS:
        encoder, was = np.asarray(getattr(new, ENCODERS[kind])), np.asarray(getattr(sae, ENCODERS[kind]))
        length = 0.2 * np.linalg.norm(was[~dead], axis=1).mean()
        np.testing.assert_allclose(encoder[dead], length * units, rtol=1e-4, atol=1e-5)
    for moment, fresh in zip(adam_moments(opt_state), adam_moments(new_state), strict=True):
        for name in eqx.filter(sae, eqx.is_inexact_array).__dataclass_fields__:
            before, after = getattr(moment, name), getattr(fresh, name)
            if not eqx.is_inexact_array(before):
                continue
            want = np.array(before)
            want[dead if name in names else np.zeros(len(want), bool)] = 0.0
            np.testing.assert_array_equal(after, want, err_msg=name)


def test_the_second_moments_of_rows_are_forgotten_too():
    sae, _, forward, dead = setup("hierarchical")
    optimizer = chain(adam_mini(), 1e-3, Unconstrained())
    state = jax.tree.map(lambda a: a + 1, optimizer.init(eqx.filter(sae, eqx.is_inexact_array)))
    run = eqx.filter_jit(lambda *a: REVIVAL(sae, state, optimizer, *a))
    _, nu = adam_moments(run(forward, jnp.asarray(EVERY - 1), jax.random.key(0))[1])
    np.testing.assert_array_equal(nu.router_dec[:, 0], np.where(dead, 0, 1))
    np.testing.assert_array_equal(nu.b_enc, np.where(dead, 0, 1))
    assert np.all(np.asarray(nu.up) == 1)


def unchanged(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_it_happens_every_so_many_steps_until_the_last_time_and_not_where_nothing_is_dead():
    sae, opt_state, forward, dead = setup("flat")
    for step in range(30):
        new, new_state, resampled = resample(REVIVAL, sae, opt_state, forward, step)
        due = (step + 1) % EVERY == 0 and step + 1 <= UNTIL
        assert unchanged((sae, opt_state), (new, new_state)) != due, step
        np.testing.assert_array_equal(resampled, dead & due)
    living = eqx.tree_at(lambda f: f.context.dead, forward, jnp.zeros(TOP))
    new, new_state, resampled = resample(REVIVAL, sae, opt_state, living, EVERY - 1)
    assert unchanged((sae, opt_state), (new, new_state)) and not resampled.any()


def test_never_leaves_everything_alone():
    sae, opt_state, forward, _ = setup("flat")
    new, new_state, resampled = resample(NoResampling(), sae, opt_state, forward, EVERY - 1)
    assert unchanged((sae, opt_state), (new, new_state)) and not resampled.any() and resampled.shape == (TOP,)


def test_inputs_are_drawn_in_proportion_to_their_squared_error_squared():
    sae, opt_state, forward, dead = setup("flat", dead_share=1.0)
    error = np.asarray(((forward.x - forward.x_hat) ** 2).sum(1), np.float64)
    directions = unit_rows(forward.x - sae.b_dec)
    seen = np.zeros(BATCH)
    for seed in range(150):
        new, _, _ = resample(REVIVAL, sae, opt_state, forward, EVERY - 1, seed)
        np.add.at(seen, (unit_rows(new.W_dec) @ directions.T).argmax(1), 1)
    np.testing.assert_allclose(seen / seen.sum(), error**2 / (error**2).sum(), atol=0.03)
    assert dead.all() and seen.sum() == 150 * TOP


def test_where_nothing_lives_the_encoders_do_not_become_zero():
    sae, opt_state, forward, _ = setup("flat", dead_share=1.0)
    new, _, _ = resample(REVIVAL, sae, opt_state, forward, EVERY - 1)
    length = 0.2 * np.linalg.norm(sae.W_enc, axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(new.W_enc, axis=1), length, rtol=1e-5)


@pytest.mark.parametrize("every, until", [(0, 10), (10, 9), (-1, 5)])
def test_what_cannot_work_is_refused_by_name(every, until):
    with pytest.raises(ValueError, match=f"every is {every}(, expected at least 1| and until {until})"):
        Resample(every, until)


STEP = make_step(adam(), dead_window=4)


def train(resampling, steps, step=STEP):
    """State and the dead fraction after every step, on inputs that live in a few directions."""
    modules = StageModules(
        Objective({"r": SquaredError()}), Constant(3e-3), ProjectAndRenormalize(), Identity(), resampling
    )
    state, dead = TrainState.init(small(), adam(), jax.random.key(0)), []
    rng = np.random.default_rng(1)
    for _ in range(steps):
        codes = rng.random((64, 6)) * (rng.random((64, 6)) < 0.4)
        x = jnp.asarray(codes @ np.eye(6, EMBED) + 0.05 * rng.normal(size=(64, EMBED)), jnp.float32)
        state, metrics = step((modules, x), state)
        dead.append(float(metrics["dead"]))
    return state, dead


def small():
    """A flat SAE, two thirds of whose features are dead from the start."""
    sae = filled(lambda: FlatSAE(EMBED, TOP, TopK(3), key=jax.random.key(0)))
    rows = jnp.asarray(unit_rows(sae.W_dec))
    bias = jnp.where(jnp.arange(TOP) % 3 == 0, 0.0, -50.0)
    return eqx.tree_at(lambda s: (s.W_enc, s.W_dec, s.b_enc, s.b_dec), sae, (rows, rows, bias, jnp.zeros(EMBED)))


@pytest.mark.slow
def test_in_training_it_lowers_the_dead_fraction_and_twice_the_same_bit_for_bit():
    without, left = train(NoResampling(), 40)
    state, dead = train(Resample(5, 30), 40)
    again, _ = train(Resample(5, 30), 40)
    assert left[-1] > 0.5 and dead[-1] < 0.25 and dead[3] == left[3]
    assert dead[4] == 0.0, "`since_fired` of the resampled was not reset"
    assert [a.tobytes() for a in jax.tree.leaves(state.sae)] == [a.tobytes() for a in jax.tree.leaves(again.sae)]
    np.testing.assert_allclose(np.linalg.norm(state.sae.W_dec, axis=1), 1.0, rtol=1e-5)
    assert without.sae.W_dec.tobytes() != state.sae.W_dec.tobytes()


def test_frozen_parameters_stay():
    step = make_step(adam(), matching(small(), ["W_dec"]), dead_window=4)
    state, _ = train(Resample(5, 30), 6, step)
    np.testing.assert_array_equal(state.sae.W_dec, small().W_dec)


def test_a_reborn_feature_of_a_jump_relu_does_not_keep_a_threshold_that_nothing_clears():
    sae, _, forward, dead = setup("jump")
    sae = eqx.tree_at(lambda s: s.sparsifier.threshold, sae, jnp.where(jnp.asarray(dead), 50.0, 0.01))
    opt_state = OPTIMIZER.init(eqx.filter(sae, eqx.is_inexact_array))
    new, _, _ = resample(REVIVAL, sae, opt_state, forward, EVERY - 1)
    fires = np.asarray(new.encode(forward.x).dense() > 0).any(0)
    assert fires[dead].all()
