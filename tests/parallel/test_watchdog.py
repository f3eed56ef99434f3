"""What a process does when another is gone, with a coordinator in memory. Real processes: test_two_processes."""

import time

import jax
import pytest

from jhsae.errors import UserError
from jhsae.parallel import watchdog as peers
from jhsae.parallel.watchdog import LOST, Watchdog


class Coordinator:
    """The key-value store; `gone` when its process is."""

    def __init__(self):
        self.values, self.gone = {}, False

    def key_value_set(self, key, value, allow_overwrite):
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        if self.gone:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]


@pytest.fixture
def coordinator(monkeypatch):
    """Process 0 of several, which loses patience after a tenth of a second."""
    found = Coordinator()
    monkeypatch.setattr(peers, "coordinator", lambda: found)
    monkeypatch.setattr(peers, "several", lambda: True)
    monkeypatch.setattr(peers, "timeout", lambda: 0.1)
    return found


def watched(until, beat=lambda: None):
    """Runs a block until `until` says so; the exit codes with which the process would have ended."""
    codes = []
    with Watchdog(codes.append) as watching:
        deadline = time.monotonic() + 20
        while not until(codes) and time.monotonic() < deadline:
            beat()
            time.sleep(0.005)
        watching._stop.set()
    return codes


def test_a_process_that_falls_silent_ends_the_others(coordinator, caplog):
    coordinator.values["jhsae/peers/3"] = "17"
    assert watched(lambda codes: codes)[0] == LOST == 75
    said = caplog.text
    assert "error in process 0: process 3 has given no sign of life for 0.1 seconds; every finished checkpoint" in said
    assert "start all processes again" in said


def test_a_process_that_is_alive_or_done_ends_nobody(coordinator):
    count = iter(range(10**6))
    start = time.monotonic()

    def beat():
        coordinator.values |= {"jhsae/peers/1": str(next(count)), "jhsae/peers/2": "done"}

    assert watched(lambda codes: codes or time.monotonic() > start + 0.5, beat) == []
    assert coordinator.values["jhsae/peers/0"] == "done"


def test_a_process_that_failed_says_why(coordinator, caplog):
    coordinator.values["jhsae/peers/1"] = "failed: the shard is gone"
    assert watched(lambda codes: codes)[0] == LOST
    assert "process 1 failed (the shard is gone); every finished checkpoint is intact" in caplog.text


def test_without_a_coordinator_the_process_ends(coordinator, caplog):
    coordinator.gone = True
    assert watched(lambda codes: codes) == [LOST]
    assert "process 0 cannot be reached any more (UNAVAILABLE: Socket closed)" in caplog.text


def test_a_loop_that_stands_still_ends_the_process(coordinator, monkeypatch, caplog):
    monkeypatch.setattr(peers, "PATIENCE", 2)
    codes = []
    with Watchdog(codes.append) as watching:
        watching.progress()
        while not codes:
            time.sleep(0.005)
    assert codes[0] == LOST
    assert "no step has finished for 0.2 seconds" in caplog.text


@pytest.mark.parametrize(("error", "code"), [(UserError("write batch=8"), 2), (RuntimeError("odd"), 1)])
def test_a_block_that_fails_tells_the_others_and_ends_at_once(coordinator, caplog, error, code):
    codes = []
    with pytest.raises(type(error)), Watchdog(codes.append):
        raise error
    assert codes == [code]
    assert coordinator.values["jhsae/peers/0"] == f"failed: {error}"
    assert f"error in process 0: {'' if code == 2 else 'RuntimeError: '}{error}" in caplog.text


def test_a_saved_stop_is_no_failure(coordinator):
    codes = []
    with pytest.raises(SystemExit), Watchdog(codes.append):
        raise SystemExit(143)
    assert codes == [] and coordinator.values["jhsae/peers/0"] == "done"


def test_alone_nothing_is_watched():
    with Watchdog() as watching:
        watching.progress()
    assert watching._thread is None
