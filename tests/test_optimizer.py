import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference.filled import filled
from reference.training import Explicit

from jhsae.constraint import ProjectAndRenormalize, Renormalize, Unconstrained
from jhsae.leaf import matching
from jhsae.metric import Euclidean, Whitened
from jhsae.optimizer import adam, adam_mini, chain
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.sparsify import JumpReLU, TopK

EMBED, SUB = 6, 3
MATRIX = np.random.default_rng(0).normal(size=(EMBED, EMBED)) + 2 * np.eye(EMBED)
WHITENED = Whitened(jnp.asarray(MATRIX, jnp.float32))
NAMES = ("router_enc", "router_dec", "down", "up", "atom_enc", "atom_dec", "b_dec")
MARKED = {"router_dec": np.eye(EMBED), "atom_dec": np.eye(SUB)}


def new(seed=0, scale=1.0):
    def make():
        return HierarchicalSAE(EMBED, 4, SUB, 2, TopK(1), TopK(1), biases=("decoder",), key=jax.random.key(0))

    return filled(make, seed, scale)


def arrays(sae):
    return {name: np.asarray(getattr(sae, name)) for name in NAMES}


def apply(transform, grads, state, params):
    updates, state = transform.update(grads, state, params)
    return optax.apply_updates(params, updates), state


apply_jit = jax.jit(
    lambda grads, state, params, rate: apply(
        chain(adam(b1=0.8), rate, ProjectAndRenormalize(), None, 0.75), grads, state, params
    )
)


def test_it_equals_the_explicit_project_clip_adam_renormalise():
    params = new()
    explicit = Explicit(arrays(params), MARKED, b1=0.8)
    state = chain(adam(b1=0.8), 0.0, Unconstrained()).init(params)
    for step in range(6):
        grads = new(step + 1, scale=0.02 if step == 3 else 1.0)  # one step stays under the clip
        rate = 0.002 * (step + 1)
        params, state = apply_jit(grads, state, params, rate)
        explicit.update(arrays(grads), rate, clip=0.75)
    for name in NAMES:
        np.testing.assert_allclose(getattr(params, name), explicit.params[name], atol=1e-6, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "constraint, unit, project",
    [
        (ProjectAndRenormalize(WHITENED), MARKED | {"router_dec": MATRIX}, True),
        (Renormalize(Euclidean()), MARKED, False),
    ],
    ids=["whitened", "renormalise alone"],
)
def test_stages_share_their_moments(constraint, unit, project):
    """A frozen stage, then one that adapts with another clip: Adam's moments and count carry over."""
    params = new()
    explicit = Explicit(arrays(params), unit)
    frozen = matching(params, ["*_dec", "up"])
    stages = [(frozen, 0.5, ("router_dec", "atom_dec", "b_dec", "up")), (None, None, ())]
    state = chain(adam(), 0.0, Unconstrained()).init(params)
    for number, (mask, clip, names) in enumerate(stages):
        update = jax.jit(
            lambda g, s, p, mask=mask, clip=clip: apply(chain(adam(), 0.01, constraint, mask, clip), g, s, p)
        )
        for step in range(3):
            grads = new(10 * number + step + 1)
            params, state = update(grads, state, params)
            explicit.update(arrays(grads), 0.01, clip, names, project)
    for name in NAMES:
        np.testing.assert_allclose(getattr(params, name), explicit.params[name], atol=2e-6, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("momentum, close", [("float32", 1e-5), ("bfloat16", 2**-7)])
def test_adam_mini_has_one_second_moment_for_each_row(momentum, close):
    """Ten lines of NumPy."""
    b1, b2, eps, params, mu, nu = 0.8, 0.95, 1e-3, new(), {}, {}
    optimizer = adam_mini(b1, b2, eps, momentum=momentum)
    state = optimizer.init(params)
    for step in range(1, 5):
        grads = new(step)
        updates, state = jax.jit(optimizer.update)(grads, state)
        for name, g in arrays(grads).items():
            square = g**2 if g.ndim < 2 else (g**2).mean(-1, keepdims=True)
            mu[name] = b1 * mu.get(name, 0) + (1 - b1) * g
            nu[name] = b2 * nu.get(name, 0) + (1 - b2) * square
            want = mu[name] / (1 - b1**step) / (np.sqrt(nu[name] / (1 - b2**step)) + eps)
            np.testing.assert_allclose(getattr(updates, name), want, rtol=close, atol=close * np.abs(want).max())
    assert {a.dtype.name for a in jax.tree.leaves(state.mu)} == {momentum}
    assert state.nu.up.shape == (4, SUB, 1) and state.nu.b_dec.shape == (EMBED,)
    assert {a.dtype.name for a in jax.tree.leaves(state.nu)} == {"float32"}


def test_adam_mini_is_adam_where_the_entries_of_a_row_have_equal_squares():
    params = new()
    signs = jax.tree.map(lambda a: jnp.sign(a) * (1 + jnp.arange(len(a)).reshape(-1, *(1,) * (a.ndim - 1))), params)
    one, other = (optimizer.update(signs, optimizer.init(params), params)[0] for optimizer in (adam(), adam_mini()))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    "direction",
    [adam(), adam(weight_decay=0.1), adam_mini(weight_decay=0.1)],
    ids=["adam", "adamw", "adam-mini"],
)
def test_frozen_leaves_stay_bit_identical(direction):
    """Not even renormalised: the decoder rows of `new()` are not of unit norm."""
    params = start = new()
    frozen = matching(params, ["router_*", "atom_dec", "b_dec"])
    transform = chain(direction, 0.01, ProjectAndRenormalize(), frozen, 1.0)
    update, state = jax.jit(lambda g, s, p: apply(transform, g, s, p)), transform.init(params)
    for step in range(20):
        params, state = update(new(step + 1), state, params)
    for name in NAMES:
        same = getattr(params, name).tobytes() == getattr(start, name).tobytes()
        assert same == (name in ("router_enc", "router_dec", "atom_dec", "b_dec")), name


def test_the_clip_bounds_the_norm_of_live_gradients_alone():
    params, grads = new(), new(1)
    huge = eqx.tree_at(lambda g: (g.router_dec, g.b_dec), grads, (1e6 * grads.router_dec, 1e6 * grads.b_dec))
    transform = chain(optax.identity(), 1.0, Unconstrained(), matching(params, ["router_dec", "b_dec"]), 0.5)
    updates, _ = transform.update(huge, transform.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.5, rtol=1e-4)
    small = jax.tree.map(lambda g: 1e-4 * g, grads)
    updates, _ = transform.update(small, transform.init(params), params)
    np.testing.assert_allclose(updates.up, -small.up, atol=1e-6)


def test_the_clip_counts_gradients_after_the_projection():
    params = ProjectAndRenormalize().retract(new())
    radial = eqx.tree_at(lambda p: p.router_dec, jax.tree.map(jnp.zeros_like, params), 1e3 * params.router_dec)
    grads = eqx.tree_at(lambda g: g.b_dec, radial, jnp.full(EMBED, 0.1))
    transform = chain(optax.identity(), 1.0, ProjectAndRenormalize(), None, 1.0)
    updates, _ = transform.update(grads, transform.init(params), params)
    np.testing.assert_allclose(updates.b_dec, -0.1, rtol=1e-3)


def test_marked_rows_have_unit_norm_after_every_update():
    params = new()
    transform = chain(adam(), 0.1, ProjectAndRenormalize(WHITENED))
    state = transform.init(params)
    for step in range(2):
        params, state = apply(transform, new(step), state, params)
        for rows, matrix in ((params.router_dec, MATRIX), (params.atom_dec, np.eye(SUB))):
            np.testing.assert_allclose(np.linalg.norm(rows @ matrix.T, axis=-1), 1.0, rtol=2e-6)


def test_weight_decay_is_decoupled():
    params = new()
    ours = chain(adam(weight_decay=0.1), 0.01, Unconstrained(), None, None)
    theirs = optax.adamw(0.01, weight_decay=0.1)
    ours_state, theirs_state, p, q = ours.init(params), theirs.init(params), params, params
    for step in range(3):
        p, ours_state = apply(ours, new(step + 1), ours_state, p)
        q, theirs_state = apply(theirs, new(step + 1), theirs_state, q)
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_state_has_one_structure_for_every_stage():
    params = new()
    chains = [
        chain(adam(), 0.1, constraint, frozen, clip)
        for constraint in (Unconstrained(), ProjectAndRenormalize(WHITENED))
        for frozen in (None, matching(params, ["up"]))
        for clip in (None, 1.0)
    ]
    assert len({jax.tree.structure(transform.init(params)) for transform in chains}) == 1


def jump_sae():
    sae = filled(lambda: FlatSAE(EMBED, 8, JumpReLU(0.01), key=jax.random.key(0)))
    return eqx.tree_at(lambda s: s.sparsifier.threshold, sae, jnp.linspace(0.0, 0.1, 8))


@pytest.mark.parametrize(
    "constraint", [Unconstrained(), Renormalize(), ProjectAndRenormalize(WHITENED)], ids=lambda c: type(c).__name__
)
def test_what_is_declared_nonnegative_never_falls_below_zero(constraint):
    """Under any constraint, also where Adam pushes on; and it rises again as soon as the gradient turns."""
    params = jump_sae()
    transform = chain(adam(), 0.03, constraint)
    state, update = transform.init(params), jax.jit(lambda g, s, p: apply(transform, g, s, p))
    rng = np.random.default_rng(0)
    touched = np.zeros(8, bool)
    for step in range(25):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
        push = jnp.full(8, 1.0) if step < 10 else jnp.full(8, -5.0)
        grads = eqx.tree_at(lambda g: g.sparsifier.threshold, grads, push)
        params, state = update(grads, state, params)
        threshold = np.asarray(params.sparsifier.threshold)
        assert (threshold >= 0).all()
        touched |= threshold == 0
    assert touched.all() and (threshold > 0).all() and np.any(np.asarray(params.b_enc) < 0)


def test_a_frozen_threshold_stays_bit_identical():
    params = jump_sae()
    transform = chain(adam(), 0.03, Unconstrained(), matching(params, ["sparsifier.threshold"]))
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params), params)
    np.testing.assert_array_equal(updates.sparsifier.threshold, 0.0)
    assert np.any(updates.b_enc)
