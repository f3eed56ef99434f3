"""The budgets of a pursuit, by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.sparsify import ExactL0, MeanL0, Threshold
from jhsae.usage import Context, FeatureStats


def scores(batch=8, picks=6, seed=0):
    """Falling scores of each token's picks, some of them empty, and the one at which it was left."""
    rng = np.random.default_rng(seed)
    found = -np.sort(-rng.random((batch, picks + 1)), axis=1)
    return np.where(rng.random(found.shape) < 0.2, 0, found).astype(np.float32)


def test_the_running_threshold_is_the_mean_of_those_that_give_k_per_token():
    budget, running, seen = MeanL0(2.5, 6, 0.1), jnp.zeros(()), []
    for step in range(5):
        own = scores(seed=step)
        seen.append(np.sort(own.reshape(-1))[::-1][20 - 1])
        context = Context(step=step, usage=FeatureStats.init(3).update(Codes(jnp.ones((2, 1)), None, 1), (running,)))
        weights = 0.9 ** np.arange(step)[::-1]
        want = weights @ seen[:-1] / weights.sum() if step else 0.0
        np.testing.assert_allclose(budget.least(context), want, rtol=1e-5)
        running = budget.track(running, Codes(jnp.asarray(own), None, 7))
    weights = 0.9 ** np.arange(5)[::-1]
    settled = budget.for_inference(budget.corrected(running, 5))
    assert isinstance(settled, Threshold) and settled.picks == budget.picks == 6
    np.testing.assert_allclose(settled.least(Context()), weights @ seen / weights.sum(), rtol=1e-5)
    assert budget.corrected(jnp.zeros(()), 0) == 0 == budget.least(Context())


def test_a_batch_that_has_fewer_rows_than_were_asked_for_lowers_the_threshold_to_zero_and_is_reported():
    budget = MeanL0(5.0)
    few = jnp.zeros((8, 11)).at[:, :3].set(1.0)
    assert budget.track(jnp.asarray(1.0), Codes(few, None, 11)) == pytest.approx(0.95)
    assert budget.unmet(4.6) is None and "asked for 5 active features" in budget.unmet(3.0)
    assert ExactL0(3).unmet(0.0) is None
    assert "though the threshold has fallen to 0.0001" in budget.starved(1e-4, 4.4, 60, lambda: 1.0)
    fed = [(1e-4, 4.4, 59, 1.0), (1e-4, 4.6, 60, 1.0), (1e-2, 4.4, 60, 1.0), (1e-4, 4.4, 60, 1e-3)]
    # too early, met, on its way, of small inputs
    assert all(budget.starved(*case, lambda size=size: size) is None for *case, size in fed)
    assert ExactL0(3).starved(0.0, 0.0, 999, lambda: 1.0) is None


def test_picks_and_what_stays_of_them():
    assert (MeanL0(2.5).picks, MeanL0(2.5, 9).picks, MeanL0(2.5).keep) == (5, 9, None)
    assert (ExactL0(4).picks, ExactL0(4).keep, ExactL0(4, 0).picks, ExactL0(4).most_active(99)) == (8, 4, 4, 4)
    assert float(ExactL0(4).least(Context())) == 0 and MeanL0(4.0).batch_k(0) == 4
    assert jax.tree.leaves(Threshold(0.5, 3)) == [0.5]


@pytest.mark.parametrize("make, words", [
    (lambda: MeanL0(4.0, 3), "most is 3 and k 4.0"),
    (lambda: MeanL0(0.0), "k is 0.0, expected more than 0"),
    (lambda: MeanL0(3.0, None, 0.0), "threshold_rate is 0.0"),
    (lambda: ExactL0(0), "k is 0, expected at least 1"),
    (lambda: ExactL0(3, -1), "extra is -1, expected at least 0"),
    (lambda: Threshold(-0.5, 3), "threshold is -0.5"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
