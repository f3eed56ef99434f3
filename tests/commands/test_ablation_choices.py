"""Sizes and learning rates of an ablation: solved budgets, pilots of an L0, and the search at the edge of a list."""

import pytest

from jhsae.commands.ablation import rates, sizes
from jhsae.errors import UserError
from jhsae.training.config import Data, StageConfig, Train


def test_a_size_is_the_nearest_of_all():
    def cost(size):
        return 7.0 * size + 3 if size <= 1000 else None

    for target in (10, 24, 500, 6999):
        every = min(range(1, 1001), key=lambda size: abs(cost(size) - target))
        for start in (1, 40, 1000):
            assert sizes.solved(cost, start, target, 0.2, "it") == every, (target, start)


def test_no_size_is_a_sentence():
    with pytest.raises(UserError, match=r"it has no size with 9,000 \(the nearest is 703, at 100\); name another key"):
        sizes.solved(lambda size: 7.0 * size + 3 if size <= 100 else None, 4, 9000, 0.1, "it")
    with pytest.raises(UserError, match="no size builds"):
        sizes.solved(lambda size: None, 4, 9000, 0.1, "it")


def found(l0_of, start, target, key="sae.route.k", off=0.1):
    """The sizes that are tried until one is near enough, with their L0."""
    tried = []
    while not any(abs(l0 / target - 1) <= off for _, l0 in tried):
        size = sizes.next_size(tried, start, target, key)
        if size is None:
            return tried, False
        tried.append((size, float(l0_of(size))))
    return tried, True


@pytest.mark.parametrize(
    ("l0_of", "start", "target"),
    [
        (lambda k: 2.0 * k, 8, 33),
        (lambda k: 2.0 * k, 64, 6),
        (lambda k: 16 * (1 - 2.0 ** (-k / 6)), 3, 12),  # saturates, as an offset does
        (lambda k: 3 * k**0.5, 100, 9.5),
        (lambda k: 0.0 if k < 10 else 0.5 * k, 4, 30),  # nothing is active at first
    ],
)
def test_pilots_find_a_whole_number(l0_of, start, target):
    tried, done = found(l0_of, start, target)
    assert done and len(tried) <= sizes.PILOTS and all(isinstance(size, int) for size, _ in tried)


def test_pilots_find_a_weight_of_a_penalty_which_lowers_the_l0():
    tried, done = found(lambda w: 0.05 / w**0.7, 1e-3, 12.0, "weights.l1")
    assert done and len(tried) <= 3


def test_pilots_give_up_where_whole_numbers_are_too_coarse():
    tried, done = found(lambda k: 10.0 * k, 1, 15, off=0.05)
    assert not done and {size for size, _ in tried} == {1, 2} and sizes.nearest(tried, 16) == (2, 20.0)


def searched(value_of, listed, more=2, l0=None):
    """All peaks that are tried, and the best."""
    tried = {}
    while wanted := rates.next_rates(tried, listed, more, l0, 0.1):
        tried |= {rate: value_of(rate) for rate in wanted}
    return sorted(tried), rates.best_rate(tried, l0, 0.1)


def test_the_list_is_extended_while_the_best_is_at_its_edge():
    def peaked(best):
        return lambda rate: (-abs(rate - best), 8.0)

    assert searched(peaked(2.0), [1.0, 2.0, 4.0]) == ([1.0, 2.0, 4.0], 2.0)
    assert searched(peaked(8.0), [1.0, 2.0, 4.0]) == ([1.0, 2.0, 4.0, 8.0, 16.0], 8.0)
    assert searched(peaked(1e9), [1.0, 2.0, 4.0]) == ([1.0, 2.0, 4.0, 8.0, 16.0], 16.0), "at most two more"
    assert searched(peaked(0.0), [1.0, 2.0, 4.0], more=1) == ([0.5, 1.0, 2.0, 4.0], 0.5)
    assert searched(peaked(2.0), [1.0]) == ([0.5, 1.0, 2.0, 4.0], 2.0), "one peak alone is both edges"
    assert searched(peaked(9.0), [1.0, 2.0], more=0) == ([1.0, 2.0], 2.0)


def test_a_rate_that_misses_the_l0_is_not_taken_while_another_keeps_it():
    values = {1.0: (0.7, 8.0), 2.0: (0.8, 8.5), 4.0: (0.95, 20.0)}
    assert rates.best_rate(values, 8.0, 0.1) == 2.0
    assert rates.best_rate(values, None, 0.1) == 2.0, "the median without a target"
    assert rates.best_rate(values, 100.0, 0.1) == 4.0, "the best of all where none keeps it"


def test_rates_at_which_training_diverges():
    assert rates.best_rate({1.0: (0.5, 8.0), 2.0: None}, None, 0.1) == 1.0
    assert rates.best_rate({1.0: None, 2.0: None}, None, 0.1) is None
    tried, best = searched(lambda rate: (0.5, 8.0) if rate < 1 else None, [1.0, 2.0])
    assert tried == [0.25, 0.5, 1.0, 2.0] and best in (0.25, 0.5), "lower ones are tried"


def config(*learning_rates):
    stages = [StageConfig(f"s{i}", 10, rate) for i, rate in enumerate(learning_rates)]
    sae = {"_target_": "jhsae.sae.FlatSAE", "embed": 4, "features": 8}
    return Train("o", Data(4, "s"), sae, {"r": {"_target_": "jhsae.losses.SquaredError"}}, stages)


def test_all_stages_are_scaled_alike():
    cosine = {"_target_": "jhsae.schedule.WarmupCosine", "start": 1e-5, "peak": 4e-3, "warmup": 2, "steps": 10}
    whole = config(cosine, 1e-3)
    assert rates.peak_of(whole) == 4e-3
    first, second = rates.at_peak(whole, 8e-3)
    assert first.learning_rate == cosine | {"start": 2e-5, "peak": 8e-3} and second.learning_rate == 2e-3
    with pytest.raises(UserError, match="none of peak, value, start, end above 0"):
        rates.peak_of(config({"_target_": "my.Schedule", "highest": 3}))


def test_tokens_are_matched_by_steps():
    assert sizes.tokens(config(1e-3, 1e-3)) == 80
    assert sizes.scaled_steps(config(1e-3, 1e-3), 240) == ["stages.0.steps=30", "stages.1.steps=30"]


def test_a_key_that_no_arm_has_is_a_sentence():
    assert sizes.key_of(config(1e-3), ["sae.route.k", "sae.features"], "it") == "sae.features"
    assert sizes.value_at({"stages": [{"steps": 5, "on": True}]}, "stages.0.steps") == 5
    assert sizes.value_at({"stages": [{"steps": 5, "on": True}]}, "stages.0.on") is None
    with pytest.raises(UserError, match="it has none of the keys of solve"):
        sizes.key_of(config(1e-3), ["sae.route.k"], "it")
