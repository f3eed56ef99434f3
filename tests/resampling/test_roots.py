"""Parts that find the roots a forest lacks, and rows that are no roots; and that fill empty slots."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom
from test_forests import EMBED, run

from jhsae.errors import UserError
from jhsae.resampling import FillEmpty, PromoteAlike, RemoveContained
from jhsae.resampling.roots import _at_least, _nearest
from jhsae.sae import PursuitSAE
from jhsae.sparsify import Threshold

AXES = np.eye(EMBED, dtype=np.float32)
TOKENS = np.arange(64)
REMOVE, PROMOTE = RemoveContained(0.6, every=4, until=8), PromoteAlike(0.6, 0.6, every=4, until=8)


def by_hand(levels, axes):
    """A pursuit without bias whose slots hold these axes; the other slots are empty."""
    sae = PursuitSAE(EMBED, levels, Threshold(0.3, 6), key=jax.random.key(0))
    rows = np.zeros(sae.rows.shape, np.float32)
    rows[list(axes)] = AXES[list(axes.values())]
    return eqx.tree_at(lambda s: s.rows, sae, jnp.asarray(rows))


def tokens(*on):
    """Tokens in which axis i has the value 1 where `on[i]` is true."""
    x = np.zeros((len(TOKENS), EMBED), np.float32)
    for axis, where in enumerate(on):
        x[where, axis] = 1
    return jnp.asarray(x)


def test_a_root_that_fires_only_where_a_more_common_one_does_is_removed_with_all_below_it():
    """Root 1 lies within root 0; root 2 fires by itself, and all lie within root 3, which is always on."""
    sae = by_hand((4, 2), {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 6: 6, 7: 7})
    x = tokens(TOKENS < 32, TOKENS < 16, TOKENS % 2 == 0, TOKENS >= 0)
    new, moments, marked, _ = run(REMOVE, sae, x=x)
    np.testing.assert_array_equal(np.flatnonzero(marked), [1, 6, 7])
    assert not np.any(np.asarray(new.rows)[marked]) and not moments[marked].any()
    np.testing.assert_array_equal(new.rows[~marked], sae.rows[~marked])


@pytest.mark.parametrize("other, alpha, least", [(12, 0.001, 5), (30, 0.001, 11), (12, 0.05, 3), (30, 0.05, 6)])
def test_by_chance_no_root_is_removed(other, alpha, least):
    """All of its tokens are those of a root on 12 or 30 of 64, which is so by chance with (12 / 64)^own; four roots."""
    sae, part = by_hand((4, 2), {0: 0, 1: 1}), RemoveContained(0.6, alpha, every=4, until=8)
    assert (other / 64) ** least < alpha / 4 < (other / 64) ** (least - 1)
    for own in (least - 1, least):
        assert run(part, sae, x=tokens(other > TOKENS, own > TOKENS))[2].any() == (own == least)


def test_a_root_with_more_tokens_apart_than_its_share_allows_stays():
    sae, part = by_hand((4, 2), {0: 0, 1: 1}), RemoveContained(0.9, every=4, until=8)
    for last, removed in ((13, True), (14, False)):  # 12 of 13 or of 14, and neither by chance
        both = tokens((TOKENS < 12) | (TOKENS > 55), last > TOKENS)
        assert run(part, sae, x=both)[2].any() == removed


def test_the_probability_of_so_many_hits_is_that_of_the_binomial_distribution():
    hits, trials = np.meshgrid(np.arange(9.0), np.arange(9.0))
    inside = hits <= trials
    for p in (0.1, 0.6):
        got = np.asarray(_at_least(*map(jnp.float32, (hits, trials, np.full_like(hits, p)))))
        np.testing.assert_allclose(got[inside], binom.sf(hits - 1, trials, p)[inside], rtol=1e-4)


def alone(where):
    """Axis 2 is a child of both roots, and what it fires with is `where`."""
    sae = by_hand((4, 2), {0: 0, 1: 1, 4: 2, 6: 2, 7: 5})
    return sae, tokens(TOKENS < 24, (TOKENS >= 24) & (TOKENS < 40), where)


def test_alike_rows_below_two_roots_become_a_root_where_they_fire_by_themselves_too():
    sae, x = alone(TOKENS % 2 == 0)
    new, moments, marked, _ = run(PROMOTE, sae, x=x)
    np.testing.assert_allclose(new.rows[2], AXES[2], atol=1e-5)  # the first empty root
    np.testing.assert_array_equal(np.flatnonzero(marked), [2, 4, 6, 8, 9])  # both rows, and the slots below the root
    assert not moments[marked].any()
    np.testing.assert_allclose(np.linalg.norm(np.asarray(new.rows)[marked], axis=1), 1, rtol=1e-5)
    assert np.all(np.abs(np.asarray(new.rows)[[4, 6], 2]) < 0.9)  # they no longer are what became a root
    np.testing.assert_array_equal(new.rows[~marked], sae.rows[~marked])


def test_alike_rows_that_fire_only_with_one_root_start_again_and_become_none():
    sae, x = alone(TOKENS < 26)
    new, _, marked, _ = run(PROMOTE, sae, x=x)
    np.testing.assert_array_equal(np.flatnonzero(marked), [4, 6])
    assert not np.any(new.rows[2:4])


def test_nothing_becomes_a_root_without_an_empty_slot_or_on_few_tokens():
    sae, x = alone(TOKENS % 2 == 0)
    full = eqx.tree_at(lambda s: s.rows, sae, sae.rows.at[2:4].set(AXES[8:10]))
    assert not run(PROMOTE, full, x=x)[2].any()
    sae, x = alone(TOKENS % 10 == 0)
    assert not run(PROMOTE, sae, x=x)[2].any()


def test_the_nearest_row_below_another_root_is_that_of_a_loop():
    sae = PursuitSAE(EMBED, (3, 2, 2), Threshold(0.1, 4), key=jax.random.key(1))
    sae = eqx.tree_at(lambda s: s.rows, sae, sae.rows.at[5].set(0.0))
    rows, tops = np.asarray(sae.rows), sae.forest.tops
    np.testing.assert_array_equal(tops[:9], [0, 1, 2, 0, 0, 1, 1, 2, 2])
    cosines, nearest = _nearest(sae)
    for i in range(len(rows)):
        others = [j for j in range(3, len(rows)) if tops[j] != tops[i] and i >= 3]
        best = max((float(rows[i] @ rows[j]) for j in others), default=0.0)
        assert float(cosines[i]) == pytest.approx(max(best, 0.0), abs=1e-6)
        if best > 0:
            assert float(rows[i] @ rows[nearest[i]]) == pytest.approx(best, abs=1e-6)


def test_empty_slots_below_rows_are_filled_on_every_level_and_none_below_an_empty_root():
    sae = PursuitSAE(EMBED, (3, 2, 2), Threshold(0.05, 6), key=jax.random.key(1))
    sae = eqx.tree_at(lambda s: s.rows, sae, sae.rows.at[jnp.asarray([1, 5, 6, 13, 14, 15, 16, 4, 11])].set(0.0))
    new, moments, marked, _ = run(FillEmpty(every=4, until=8), sae)
    np.testing.assert_array_equal(np.flatnonzero(marked), [4, 11])
    np.testing.assert_allclose(np.linalg.norm(np.asarray(new.rows)[marked], axis=1), 1, rtol=1e-5)
    assert not moments[marked].any() and not np.any(new.rows[jnp.asarray([1, 5, 6, 13])])


@pytest.mark.parametrize("kind", [RemoveContained, PromoteAlike, FillEmpty])
def test_a_part_is_due_from_begin_to_until(kind):
    part = kind(every=4, begin=6, until=9)
    assert [step for step in range(20) if part.due(jnp.asarray(step))] == [7]
    with pytest.raises(UserError, match="until"):
        kind(every=4, begin=6, until=5)
