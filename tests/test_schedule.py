import jax
import numpy as np
import optax
import pytest

from jhsae.schedule import (
    AbstractSchedule,
    Constant,
    CosineAnnealing,
    CosineRestarts,
    Linear,
    Trapezoid,
    Warmup,
    WarmupCosine,
    WarmupDecay,
    as_schedule,
)

SCHEDULES = [
    Constant(0.3),
    Linear(1.5, 0.7, 10),
    WarmupCosine(2e-3, 4, 20, start=1e-5, final=0.2),
    Warmup(0.5, 4),
    WarmupDecay(2e-3, 20, warmup=4, decay=5),
    CosineAnnealing(2e-3, 20, warmup=4, decay=5),
    CosineRestarts(2e-3, 20, cycles=2, warmup=4, decay=5),
    Trapezoid(2e-3, 20, warmup=4, decay=5),
]
ENDS = [(0, 0), (1, 0), (7, 0), (0, 5), (1, 1), (7, 5)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_traced_step_gives_the_value_of_the_plain_step(schedule):
    traced = jax.jit(lambda step: schedule(step) * 1.0)
    for step in (0, 1, 3, 4, 5, 10, 20, 1000):
        np.testing.assert_allclose(traced(step), schedule(step), rtol=1e-6, atol=1e-9)


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
    with pytest.raises(
        ValueError,
        match=rf"warmup is {warmup} and steps is {steps}|(warmup is -1|steps is 0), expec",
    ):
        WarmupCosine(1.0, warmup, steps)


def test_a_ramp_of_no_steps_is_an_error():
    with pytest.raises(ValueError, match="steps is 0"):
        Linear(0.0, 1.0, 0)


def saelens(kind: str, peak: float, steps: int, warmup: int, decay: int, final: float, cycles: int) -> list[float]:
    """The learning rates that SAELens's scheduler sets for `steps` steps, and the one after them."""
    optim = pytest.importorskip("sae_lens.training.optim")
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = optim.get_lr_scheduler(kind, optimizer, steps, peak, warmup, decay, final * peak, cycles)
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("warmup", "decay"), ENDS)
@pytest.mark.parametrize("steps", [40, 43])
def test_warmup_decay_equals_saelens_step_for_step(steps, warmup, decay):
    ours = WarmupDecay(3e-4, steps, warmup, decay)
    expected = saelens("constant", 3e-4, steps, warmup, decay, 0.1, 1)
    np.testing.assert_allclose([ours(s) for s in range(steps + 1)], expected, rtol=1e-6, atol=1e-6 * 3e-4)


@pytest.mark.parametrize(("warmup", "decay"), ENDS)
@pytest.mark.parametrize("final", [0.1, 0.5])
def test_cosine_annealing_equals_saelens_step_for_step(warmup, decay, final):
    ours = CosineAnnealing(3e-4, 43, warmup, decay, final)
    expected = saelens("cosineannealing", 3e-4, 43, warmup, decay, final, 1)
    np.testing.assert_allclose([ours(s) for s in range(44)], expected, rtol=1e-6, atol=1e-6 * 3e-4)


def test_cosine_annealing_to_zero_equals_saelens():
    ours = CosineAnnealing(1.0, 43, warmup=3, final=0.0)
    expected = saelens("cosineannealing", 1.0, 43, 3, 0, 0.0, 1)
    np.testing.assert_allclose([ours(s) for s in range(44)], expected, atol=1e-6)


@pytest.mark.parametrize(("warmup", "decay"), ENDS)
@pytest.mark.parametrize("cycles", [1, 2, 4])
@pytest.mark.parametrize("steps", [40, 43])
def test_cosine_restarts_equal_saelens_step_for_step(steps, cycles, warmup, decay):
    ours = CosineRestarts(3e-4, steps, cycles, warmup, decay, final=0.2)
    expected = saelens("cosineannealingwarmrestarts", 3e-4, steps, warmup, decay, 0.2, cycles)
    np.testing.assert_allclose([ours(s) for s in range(steps + 1)], expected, rtol=1e-6, atol=1e-6 * 3e-4)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_warmup_equals_the_coefficients_of_saelens(steps):
    theirs = pytest.importorskip("sae_lens.training.optim").CoefficientScheduler(steps, 5.0)
    np.testing.assert_allclose(
        [Warmup(5.0, steps)(s) for s in range(15)], [theirs.step() for _ in range(15)], rtol=1e-6
    )


@pytest.mark.parametrize(("warmup", "decay"), [(0, 0), (1, 4), (7, 0), (7, 12)])
def test_trapezoid_is_the_schedule_of_dictionary_learning(warmup, decay):
    """Its definition in words: step / warmup, then 1, then (steps - step) / (steps - decay_start)."""
    points = [(0, 0.0)] * (warmup > 0) + [(warmup, 1.0), (30 - decay, 1.0)] + [(30, 0.0)] * (decay > 0)
    expected = np.interp(np.arange(31), *zip(*points, strict=True))
    np.testing.assert_allclose([Trapezoid(2.0, 30, warmup, decay)(s) for s in range(31)], 2 * expected, atol=1e-6)


def test_restarts_return_to_the_peak():
    rates = [float(CosineRestarts(1.0, 40, cycles=4, final=0.0)(s)) for s in range(40)]
    assert [s for s, rate in enumerate(rates) if rate == 1.0] == [0, 10, 20, 30]


def test_after_a_decay_nothing_moves_again():
    for schedule in SCHEDULES[4:]:
        assert float(schedule(20)) == 0.0 == float(schedule(1000))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Warmup(1.0, 0), "Warmup: steps is 0, expected at least 1"),
        (lambda: WarmupDecay(1.0, 10, 6, 5), "WarmupDecay: steps is 10, warmup 6 and decay 5.*leaves -1 steps"),
        (lambda: WarmupDecay(1.0, 10, -1), "WarmupDecay: warmup is -1, expected at least 0"),
        (lambda: WarmupDecay(1.0, 0), "WarmupDecay: steps is 0"),
        (lambda: CosineAnnealing(1.0, 10, 5, 5), "leaves 0 steps between them, expected at least 1"),
        (
            lambda: CosineAnnealing(1.0, 10, final=1.5),
            "CosineAnnealing: final is 1.5, expected at least 0 and at mo",
        ),
        (lambda: CosineAnnealing(1.0, 10, decay=5, final=0.0), "last 5 steps would fall from 0 to 0; write decay=0"),
        (lambda: CosineRestarts(1.0, 10, 0), "cycles is 0, expected at least 1"),
        (lambda: CosineRestarts(1.0, 10, 4, 5, 2), "leaves 3 steps between them, expected at least 4"),
        (lambda: Trapezoid(1.0, 10, 0, 11), "Trapezoid: steps is 10"),
    ],
)
def test_what_cannot_be_is_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_number_becomes_a_constant_and_a_schedule_stays_itself():
    assert as_schedule(0.5)(7) == 0.5
    assert as_schedule(SCHEDULES[1]) is SCHEDULES[1]
    assert isinstance(as_schedule(0.5), AbstractSchedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_hold_no_arrays(schedule):
    """They are facts of the program: no parameter, nothing to shard or to save."""
    assert jax.tree.leaves(schedule) == []
