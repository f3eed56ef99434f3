"""Progress without a terminal: lines of the log at the right times, with the numbers that a fake clock gives."""

import logging
import sys

import pytest

from jhsae.errors import UserError
from jhsae.parallel import progress
from jhsae.parallel.progress import Progress, ProgressLines


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "jhsae.parallel.progress"]


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, "jhsae")
    return caplog


def test_a_line_every_30_seconds_with_rate_and_remaining_time(logged):
    """The first update starts the clock, so that the compilation before it does not count."""
    clock = Clock()
    with Progress("train", 5000, 1000, clock=clock) as shown:
        clock.now += 500
        for _ in range(200):
            shown.show(ev=0.7812, l0=15.72)
            shown.update(tokens=1024)
            clock.now += 1
    assert lines(logged) == [
        f"step {1001 + done}/5000  ev 0.781  l0 15.7  1.0k tokens/s  ETA 1.1 h" for done in range(30, 200, 30)
    ]


def test_rows_of_a_harvest_and_their_units(logged):
    clock = Clock()
    with Progress("harvest", 10_000_000, unit="row", clock=clock) as shown:
        for _ in range(3):
            shown.update(1_000_000, tokens=1_000_000)
            clock.now += 31
    assert lines(logged)[0] == "row 2000000/10000000  32k tokens/s  ETA 4 min"


@pytest.mark.parametrize(
    ("rate", "eta", "line"),
    [
        (1, 7200, "1 tokens/s  ETA 2.0 h"),
        (2_500_000, 59, "2.5M tokens/s  ETA 59 s"),
        (3e9, 60, "3.0G tokens/s  ETA 1 min"),
    ],
)
def test_units_of_rates_and_times(rate, eta, line, logged):
    clock = Clock()
    with Progress("train", 1 + 30 + eta, clock=clock) as shown:
        shown.update()
        for _ in range(30):
            clock.now += 1
            shown.update(tokens=int(rate))
    assert lines(logged)[0].endswith(line)


def test_the_time_between_lines_is_a_variable_of_the_environment(logged, monkeypatch):
    monkeypatch.setenv("JHSAE_PROGRESS_SECONDS", "0.5")
    clock = Clock()
    with Progress("train", 10, clock=clock) as shown:
        for _ in range(4):
            shown.update()
            clock.now += 0.5
    assert len(lines(logged)) == 3
    monkeypatch.setenv("JHSAE_PROGRESS_SECONDS", "never")
    with pytest.raises(UserError, match="JHSAE_PROGRESS_SECONDS is 'never', expected a number of seconds above 0"):
        Progress("train", 10)


class Terminal:
    """Standard error that is a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_a_terminal_has_the_bar_and_no_lines(logged, monkeypatch):
    terminal, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("geometry", 3, clock=clock) as shown:
        for _ in range(3):
            shown.show(ev=0.78)
            shown.update()
            clock.now += 60
    assert "geometry" in terminal.text and "3/3" in terminal.text and "ev=0.78" in terminal.text
    assert lines(logged) == []


def test_a_notebook_has_the_bar_though_it_has_no_terminal(logged, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with Progress("fit", 2) as shown:
        shown.update(2)
    assert "fit: 100%" in capsys.readouterr().err and lines(logged) == []


def test_other_processes_show_nothing(logged, monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_main", lambda: False)
    clock = Clock()
    with Progress("train", 10, clock=clock) as shown:
        for _ in range(10):
            shown.update()
            clock.now += 60
    assert lines(logged) == [] and capsys.readouterr().err == ""


def test_several_loops_have_a_line_each_in_one_record(logged):
    clock = Clock()
    with ProgressLines(["early", "a longer name"], clock=clock) as view:
        first, second = view.of("early", 40), view.of("a longer name", 100, 50)
        with first, second:
            for _ in range(32):
                first.show(ev=0.5)
                first.update(tokens=100)
                second.update(tokens=200)
                clock.now += 1
        first.update()
        second.update()
        clock.now += 31
        second.update()
    assert lines(logged)[0].splitlines() == [
        "early          step 31/40  ev 0.5  100 tokens/s  ETA 9 s",
        "a longer name  step 80/100  193 tokens/s  ETA 21 s",
    ]
    assert [line.split()[-1] for line in lines(logged)[1].splitlines()] == ["stopped", "stopped"]


def test_a_terminal_has_a_bar_for_each_loop(logged, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressLines(["early", "late"]) as view, view.of("early", 2) as first, view.of("late", 3) as second:
        first.update(2)
        second.update(3)
    assert "early: 100%" in terminal.text and "late : 100%" in terminal.text and "2/2" in terminal.text
    assert lines(logged) == []
