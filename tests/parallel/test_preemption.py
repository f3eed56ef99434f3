"""Signals are noted, not obeyed, while a run can still save; the second one is obeyed."""

import signal
import threading

import pytest

from jhsae.parallel import preemption
from jhsae.parallel.preemption import StopRequest


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also in a job that a shell has started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_found_after_the_step(kind):
    before = signal.getsignal(kind)
    with StopRequest() as stop:
        assert not stop.due(1)
        signal.raise_signal(kind)
        assert stop.due(2) and stop.signal is kind
        assert signal.getsignal(kind) is before, "a second one acts at once"
    assert signal.getsignal(kind) is before


def test_a_second_interrupt_interrupts(interruptible):
    with pytest.raises(KeyboardInterrupt), StopRequest():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_several_processes_stop_at_the_step_that_jax_agrees_on(monkeypatch):
    asked, terminated = [], []
    monkeypatch.setattr(preemption, "several", lambda: True)
    monkeypatch.setattr(preemption, "reached_preemption_sync_point", lambda step: asked.append(step) or step == 3)
    before = signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert terminated, "JAX's service listens to SIGTERM alone"
            assert [stop.due(step) for step in (1, 2, 3)] == [False, False, True]
        assert asked == [1, 2, 3] and stop.signal is signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_than_the_main_one_hears_nothing():
    found = []

    def run():
        with StopRequest() as stop:
            found.append(stop.due(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
