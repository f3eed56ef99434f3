"""Programs are timed in turn, in an order that alternates; a clock of our own says how long each takes."""

import pytest

from jhsae.bench.measurement import MedianRange, interleave
from jhsae.errors import UserError


class Machine:
    """A clock, and programs that move it by a number of seconds of their own, in every round another."""

    def __init__(self, **seconds):
        self.now, self.seconds, self.ran = 0.0, seconds, []

    def clock(self):
        return self.now

    def program(self, name):
        def run():
            count = sum(other == name for other in self.ran)
            self.ran.append(name)
            self.now += self.seconds[name][count % len(self.seconds[name])]

        return run

    def interleave(self, repeats, seconds=1e9, **options):
        return interleave({n: self.program(n) for n in self.seconds}, repeats, seconds, clock=self.clock, **options)


def test_rounds_alternate_after_one_that_is_not_counted():
    machine = Machine(a=[100.0, 1.0, 2.0, 3.0], b=[50.0, 4.0, 4.0, 9.0])
    times = machine.interleave(3)
    assert machine.ran == ["b", "a", *"ab", *"ba", *"ab"]
    assert times.seconds == {"a": [1.0, 2.0, 3.0], "b": [4.0, 4.0, 9.0]} and times.rounds == 3


def test_medians_and_extremes_of_times_ratios_and_rates():
    times = Machine(a=[9.0, 1.0, 2.0, 3.0], b=[9.0, 4.0, 4.0, 9.0]).interleave(3)
    assert times.milliseconds("a") == MedianRange(2000.0, 1000.0, 3000.0)
    assert times.ratio("b", "a") == MedianRange(3.0, 2.0, 4.0), "round by round, not of medians"
    assert times.per_second("b", 36) == MedianRange(9.0, 4.0, 9.0)


def test_no_round_begins_after_the_time_is_up_but_three_are_made():
    assert Machine(a=[10.0]).interleave(20, seconds=45.0).rounds == 5
    assert Machine(a=[10.0]).interleave(20, seconds=1.0).rounds == 3
    assert Machine(a=[10.0]).interleave(2, seconds=1.0).rounds == 2


def test_preparation_is_off_the_clock():
    machine = Machine(a=[1.0], b=[2.0])

    def prepare():
        machine.now += 100.0

    times = machine.interleave(2, prepare={"b": prepare})
    assert times.seconds == {"a": [1.0, 1.0], "b": [2.0, 2.0]} and machine.now == 3 * 103.0


@pytest.mark.parametrize(("repeats", "seconds", "says"), [(0, 1.0, "--repeats"), (1, 0.0, "--seconds")])
def test_no_rounds_and_no_time_are_refused(repeats, seconds, says):
    with pytest.raises(UserError, match=says):
        Machine(a=[1.0]).interleave(repeats, seconds)
