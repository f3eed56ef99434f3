"""The parts that change the rows of a pursuit's forest: restarts, growth, mergings, and several of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pursuits import roots_left
from reference.jaxprs import largest

from jhsae.constraint import AncestorsOut, Unconstrained
from jhsae.errors import UserError
from jhsae.optimizer import adam, chain
from jhsae.resampling import FillEmpty, GrowLevel, MergeAlike, Resample, RestartDead, Several
from jhsae.resampling.restart import _drawn
from jhsae.sae import FlatSAE, PursuitSAE
from jhsae.sparsify import Threshold, TopK
from jhsae.usage import Context, FeatureStats

EMBED, OPTIMIZER = 12, chain(adam(), 1e-3, Unconstrained())


def forest(levels=(4, 3, 2), filled=None):
    sae = PursuitSAE(EMBED, levels, Threshold(0.05, 6), filled=filled, key=jax.random.key(0))
    params, static = eqx.partition(sae, eqx.is_inexact_array)
    return eqx.combine(AncestorsOut().retract(params), static)


@eqx.filter_jit
def applied(part, sae, opt_state, forward, step, key):
    return part(sae, opt_state, OPTIMIZER, forward, step, key)


def run(part, sae, dead=None, step=3, fires=None, x=None):
    """The SAE after the part, Adam's first moment, the marks and the forward pass; moments start as row number + 1."""
    number = jnp.broadcast_to(jnp.arange(sae.features, dtype=jnp.float32)[:, None], sae.rows.shape) + 1
    params = eqx.filter(sae, eqx.is_inexact_array)
    filled = eqx.tree_at(lambda p: p.rows, jax.tree.map(jnp.ones_like, params), number)
    opt_state = optax.tree_map_params(OPTIMIZER, lambda _, m: m, OPTIMIZER.init(params), filled)
    x = jax.random.normal(jax.random.key(1), (64, EMBED)) if x is None else x
    usage = FeatureStats.init(sae.features)
    usage = eqx.tree_at(lambda u: u.fires, usage, jnp.zeros(sae.features) if fires is None else jnp.asarray(fires))
    dead = jnp.zeros(sae.features) if dead is None else jnp.asarray(dead, jnp.float32)
    context = Context(jax.random.key(0), usage=usage, dead=dead)
    forward = eqx.filter_jit(lambda s, x: s.forward(x, context))(sae, x)
    new, opt_state, marked = applied(part, sae, opt_state, forward, jnp.asarray(step), jax.random.key(2))
    (state,) = [s for s in jax.tree.leaves(opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    return new, np.asarray(state.mu.rows[:, 0]), np.asarray(marked), forward


def unit(a):
    return np.asarray(a) / np.linalg.norm(a, axis=-1, keepdims=True)


def test_dead_rows_restart_roots_at_tokens_children_at_residuals_under_their_parent():
    sae = forest(filled=2)
    dead = np.zeros(sae.features)
    dead[[1, 5, 6, 12, 17]] = 1  # a root, two siblings, a child of the dead root's neighbour, an empty slot
    new, moments, marked, forward = run(RestartDead(4, 8), sae, dead)
    np.testing.assert_array_equal(np.flatnonzero(marked), [1, 5, 6, 12])
    np.testing.assert_array_equal(np.any(np.asarray(new.rows != sae.rows), axis=1), marked)
    np.testing.assert_array_equal(moments, np.where(marked, 0, np.arange(sae.features) + 1))
    np.testing.assert_allclose(np.max(unit(forward.x) @ new.rows[1]), 1, atol=1e-5)
    residual, active = unit(forward.x - forward.x_hat), np.asarray(forward.codes.dense() > 0)
    chosen = {row: int(np.argmax(residual @ np.asarray(new.rows[row]))) for row in (5, 6, 12)}
    for row, token in chosen.items():
        np.testing.assert_allclose(residual[token] @ np.asarray(new.rows[row]), 1, atol=1e-5)
        assert active[token, sae.forest.parents[row]]
    assert chosen[5] != chosen[6]
    assert not np.any(new.rows[16:])


def test_a_child_whose_parent_is_in_no_code_stays_dead():
    sae = forest(filled=2)
    sae = eqx.tree_at(lambda s: s.rows, sae, sae.rows.at[1].set(0.0))  # never active
    dead = np.zeros(sae.features)
    dead[[7, 8]] = 1
    new, _, marked, _ = run(RestartDead(4, 8), sae, dead)
    assert not marked.any() and np.array_equal(new.rows, sae.rows)


@pytest.mark.few(1)
@pytest.mark.parametrize("part", [RestartDead(4, 8), MergeAlike(0.01, every=4, begin=4, until=8), GrowLevel(4)])
def test_nothing_happens_at_other_steps(part):
    sae = forest(filled=2)
    for step in (0, 4, 11):
        new, _, marked, _ = run(part, sae, np.ones(sae.features), step=step)
        assert not marked.any() and np.array_equal(new.rows, sae.rows)
    assert run(part, sae, np.ones(sae.features), step=3)[2].any()


def test_the_last_level_grows_below_every_row_that_there_is():
    sae = forest(filled=2)
    sae = eqx.tree_at(lambda s: s.rows, sae, sae.rows.at[9].set(0.0))
    new, moments, marked, _ = run(GrowLevel(4), sae)
    below_empty = np.flatnonzero(sae.forest.parents == 9)
    np.testing.assert_array_equal(np.flatnonzero(marked), np.setdiff1d(np.arange(16, 40), below_empty))
    np.testing.assert_allclose(np.linalg.norm(np.asarray(new.rows)[marked], axis=1), 1, rtol=1e-5)
    pairs = np.asarray(new.rows[16:]).reshape(-1, 2, EMBED)
    assert np.all(np.sum(pairs[:, 0] * pairs[:, 1], axis=1) < 0.999), "siblings took the same token"
    assert not np.any(new.rows[jnp.asarray(below_empty)]) and not moments[marked].any()


def test_alike_siblings_become_one_row_and_their_children_are_pooled():
    """Roots 0 and 2, of which 2 fired more; of their 3 + 3 children the 3 that fired most stay, with their own."""
    sae = forest()
    rows = sae.rows.at[2].set(jnp.asarray(unit(0.9 * sae.rows[0] + 0.3 * sae.rows[3])))
    rows = rows.at[:4].set(jnp.where(jnp.arange(4)[:, None] % 2 == 0, rows[:4], jnp.eye(EMBED)[-4:]))
    sae = eqx.tree_at(lambda s: s.rows, sae, rows)
    fires = np.ones(sae.features)
    fires[[0, 2]] = 1000, 3000
    fires[4:7], fires[10:13] = [500, 100, 700], [200, 600, 300]  # of 0: 4 and 6 stay; of 2: 11
    quiet = jnp.zeros((64, EMBED))  # no token that fires
    new, moments, marked, _ = run(MergeAlike(0.9, every=4, until=8), sae, fires=fires, x=quiet)
    mean = unit(1000 * np.asarray(rows[0]) + 3000 * np.asarray(rows[2]))
    np.testing.assert_allclose(new.rows[2], mean, atol=1e-5)
    assert not np.any(new.rows[0]) and not np.any(new.rows[4:7])
    order = [6, 11, 4]
    np.testing.assert_array_equal(new.rows[10:13], rows[jnp.asarray(order)])
    np.testing.assert_array_equal(moments[10:13], np.asarray(order) + 1)
    grandchildren = [c for row in order for c in np.flatnonzero(sae.forest.parents == row)]
    np.testing.assert_array_equal(new.rows[28:34], rows[jnp.asarray(grandchildren)])
    np.testing.assert_array_equal(moments[28:34], np.asarray(grandchildren) + 1)
    assert moments[0] == moments[2] == 0 and not np.any(new.rows[16:22])
    np.testing.assert_array_equal(new.rows[jnp.asarray([1, 3])], rows[jnp.asarray([1, 3])])
    assert marked[[0, 2, *range(4, 7), 10, 12]].all() and not marked[[1, 3, 7, 8, 9, 11, 13, 14, 15]].any()
    assert roots_left(sae, 0.9) == 3 and roots_left(sae, 0.999) == 4


def test_merging_goes_on_within_every_family_until_no_two_are_alike():
    sae = forest((5, 4))
    new, _, _, _ = run(MergeAlike(0.1, every=4, until=8), sae)
    for family in (range(5), *(range(5 + 4 * i, 9 + 4 * i) for i in range(5))):
        rows = np.asarray(new.rows)[list(family)]
        cosines = np.triu(rows @ rows.T, 1)
        assert cosines.max() <= 0.1 + 1e-6
    left = np.any(np.asarray(new.rows) != 0, axis=1)
    assert left[:5].sum() == roots_left(sae, 0.1) < 5
    assert not left[5:][~np.repeat(left[:5], 4)].any()


def test_several_run_in_order_and_mark_together():
    sae = forest(filled=2)
    dead = np.zeros(sae.features)
    dead[1] = 1
    part = Several([RestartDead(4, 8), GrowLevel(4)])
    new, _, marked, _ = run(part, sae, dead)
    assert marked[1] and marked[16:].all() and marked.sum() == 25 and np.any(new.rows[16:], axis=1).all()
    assert part.reads_dead and not Several([GrowLevel(4)]).reads_dead


def test_resample_restarts_every_row_of_a_pursuit():
    sae = forest(filled=2)
    dead = np.zeros(sae.features)
    dead[[0, 9]] = 1
    new, _, marked, _ = run(Resample(4, 8), sae, dead)
    np.testing.assert_array_equal(np.any(np.asarray(new.rows != sae.rows), axis=1), dead > 0)
    np.testing.assert_array_equal(marked, dead > 0)


@pytest.mark.parametrize("make, words", [
    (lambda: RestartDead(5, 4), "every is 5 and until 4"),
    (lambda: MergeAlike(0.4, every=5, until=4), "every is 5, begin 0 and until 4"),
    (lambda: MergeAlike(1.0, every=5, until=9), "cosine is 1.0, expected"),
    (lambda: Several([]), "parts is .*at least one entry"),
])  # fmt: skip
def test_what_cannot_work_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_another_sae_is_refused():
    flat = FlatSAE(EMBED, 40, TopK(2), key=jax.random.key(0))
    forward = flat.forward(jnp.ones((2, EMBED)), Context())
    with pytest.raises(
        UserError, match=r"GrowLevel needs a PursuitSAE, got a FlatSAE; write jhsae.resampling.Resample"
    ):
        GrowLevel(4)(flat, None, OPTIMIZER, forward, jnp.asarray(3), jax.random.key(0))


def test_a_restart_holds_no_array_of_tokens_by_rows():
    """At 65,536 rows and a batch of 32,512 tokens one such array is 8.5 GB."""
    sae = forest((40, 5))
    x = jax.random.normal(jax.random.key(1), (512, EMBED))
    forward = sae.forward(x, Context(jax.random.key(0), usage=FeatureStats.init(sae.features)))
    for part in (RestartDead(4, 8), FillEmpty(every=4, until=8)):
        made = jax.make_jaxpr(lambda forward, part=part: part.change(sae, forward, jax.random.key(2)))(forward)
        assert len(x) * EMBED <= largest(made) < len(x) * sae.features / 4


def test_tokens_are_drawn_like_the_largest_of_all_weights_with_noise():
    """The oracle holds tokens x features; its draws for a feature are its `most` largest, in order."""
    batch, slots, size, most = 40, 5, 9, 6
    indices = jax.vmap(lambda key: jax.random.permutation(key, size)[:slots])(
        jax.random.split(jax.random.key(0), batch)
    )
    values = jax.random.uniform(jax.random.key(1), (batch, slots)) * jax.random.bernoulli(
        jax.random.key(2), 0.6, (batch, slots)
    )
    values = jnp.where(indices == 3, 0.0, values)  # on no token
    values = jnp.where((indices == 4) & (jnp.arange(batch)[:, None] > 5), 0.0, values)  # on few
    error = jax.random.uniform(jax.random.key(3), (batch,)).at[::7].set(0.0)
    tokens, found = _drawn(values, indices, size, error, jax.random.key(4), most)

    noise = np.asarray(jax.random.gumbel(jax.random.key(4), (batch, slots)))
    weights = np.full((batch, size), -np.inf)
    for token, slot in np.argwhere((np.asarray(values) > 0) & (np.asarray(error) > 0)[:, None]):
        weights[token, indices[token, slot]] = 2 * np.log(error[token] + 1e-12) + noise[token, slot]
    order = np.argsort(-weights, axis=0)[:most]
    np.testing.assert_array_equal(found, np.take_along_axis(weights, order, 0) > -np.inf)
    np.testing.assert_array_equal(np.where(found, tokens, -1), np.where(found, order, -1))
    assert not found[:, 3].any() and 0 < found[:, 4].sum() < most
