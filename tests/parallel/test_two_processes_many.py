"""Two real processes of four devices train several runs together, are stopped by a signal and go on."""

import signal
import time

import numpy as np
import pytest
import runs
import test_two_processes as two

from jhsae import config
from jhsae.training.config import Train
from jhsae.training.run import train

TOGETHER = "import sys, jhsae.__main__ as m; sys.exit(m.main(['train', *sys.argv[1:]]))"


@pytest.mark.slow
def test_two_processes_take_the_same_turns(tmp_path, monkeypatch):
    """Other lengths, a run that diverges, and a SIGTERM to one process that stops all runs on both."""
    monkeypatch.setattr(two, "START", TOGETHER)
    runs.store(tmp_path / "store")
    paths = [two.written(tmp_path, name, name) for name in ("batchtopk", "tree")]
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"base: tree.yaml\nout: {tmp_path}/bad\nstages: [{{name: a, steps: 30, learning_rate: 1.0e+30}}]\n")
    processes, tree = two.pair([*paths, bad], tmp_path / "first"), tmp_path / "tree"
    said = lambda log: "".join((tmp_path / f"{log}.{i}").read_text() for i in range(2))  # noqa: E731
    try:
        deadline = time.monotonic() + 400
        while not (tree / "metrics.jsonl").exists() or len(two.rows(tree)) < 12:
            assert all(p.poll() is None for p in processes) and time.monotonic() < deadline, said("first")
            time.sleep(0.02)
        processes[1].send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [143, 143], said("first")
    assert "bad has ended, the other runs go on: the loss is not finite" in said("first")
    codes = [process.wait(timeout=400) for process in two.pair([*paths, bad], tmp_path / "second")]
    assert codes == [3, 3], said("second")
    assert "1 of 3 runs failed, the others are finished" in said("second")
    for path in paths:
        alone = config.load(Train, path, [f"out={tmp_path}/alone-{path.stem}"])
        train(alone)
        together, here = (
            np.asarray([row["loss"] for row in two.rows(f)])
            for f in (tmp_path / path.stem, tmp_path / f"alone-{path.stem}")
        )
        np.testing.assert_allclose(together, here, rtol=1e-4)
