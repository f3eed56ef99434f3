import jax
import numpy as np
import optax
import pytest

from jhsae.schedule import AbstractSchedule, Constant, Linear, WarmupCosine, as_schedule

SCHEDULES = [Constant(0.3), Linear(1.5, 0.7, 10), WarmupCosine(2e-3, 4, 20, start=1e-5, final=0.2)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_traced_step_gives_the_value_of_the_plain_step(schedule):
    traced = jax.jit(lambda step: schedule(step) * 1.0)
    for step in (0, 1, 3, 4, 5, 10, 20, 1000):
        np.testing.assert_allclose(traced(step), schedule(step), rtol=1e-6)


def test_linear_is_the_line_between_its_ends():
    steps = np.arange(15)
    got = [Linear(1.5, 0.7, 10)(int(s)) for s in steps]
    np.testing.assert_allclose(got, np.interp(steps, [0, 10], [1.5, 0.7]), rtol=1e-6)


@pytest.mark.parametrize("warmup", [1, 4, 19])
def test_warmup_cosine_equals_optax(warmup):
    ours = WarmupCosine(2e-3, warmup, 20, start=1e-5, final=0.1)
    theirs = optax.warmup_cosine_decay_schedule(1e-5, 2e-3, warmup, 20, end_value=2e-4)
    for step in range(25):
        np.testing.assert_allclose(ours(step), theirs(step), rtol=1e-5, atol=1e-9)


def test_without_warmup_the_cosine_begins_at_the_peak():
    schedule = WarmupCosine(1.0, 0, 10, start=1e-11, final=0.1)
    assert float(schedule(0)) == 1.0
    np.testing.assert_allclose(schedule(10), 0.1, rtol=1e-6)


def test_the_peak_is_reached_at_the_end_of_the_warmup():
    schedule = WarmupCosine(1.0, 5, 10)
    assert float(schedule(0)) == 0.0
    assert float(schedule(5)) == 1.0
    assert max(float(schedule(s)) for s in range(12)) == 1.0


@pytest.mark.parametrize("warmup, steps", [(10, 10), (11, 10), (-1, 10), (0, 0)])
def test_a_warmup_that_does_not_fit_is_an_error(warmup, steps):
    with pytest.raises(ValueError, match=f"warmup is {warmup} and steps is {steps}"):
        WarmupCosine(1.0, warmup, steps)


def test_a_ramp_of_no_steps_is_an_error():
    with pytest.raises(ValueError, match="steps is 0"):
        Linear(0.0, 1.0, 0)


def test_a_number_becomes_a_constant_and_a_schedule_stays_itself():
    assert as_schedule(0.5)(7) == 0.5
    assert as_schedule(SCHEDULES[1]) is SCHEDULES[1]
    assert isinstance(as_schedule(0.5), AbstractSchedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_hold_no_arrays(schedule):
    """They are facts of the program: no parameter, nothing to shard or to save."""
    assert jax.tree.leaves(schedule) == []
