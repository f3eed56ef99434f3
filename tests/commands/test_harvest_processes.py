"""Two processes write one store together, go on where one was cut off, and draw the live batches of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import quick_compile
import yaml
from small_lm import VOCAB, save_language_model
from test_harvest_resume import SmallShards, config, cut

from jhsae import config as cfg
from jhsae.activations.live import LiveActivations
from jhsae.commands import harvest
from jhsae.data import CenterScale, Store, TextFiles
from jhsae.parallel.mesh import MeshShape, make_mesh

TESTS = Path(__file__).parents[1]


def together(folder: Path) -> None:
    """Runs ``harvest_together.py`` as two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {
        "PYTHONPATH": str(TESTS.parent),
        "XLA_FLAGS": quick_compile.on_devices(4),
        "JHSAE_COORDINATOR": f"localhost:{port}",
        "JHSAE_PROCESSES": "2",
    }
    logs = [folder / f"log-{process}" for process in "01"]
    running = []
    for process, log in zip("01", logs, strict=True):
        command = [sys.executable, str(TESTS / "harvest_together.py"), str(folder), process]
        with log.open("w") as out:
            running.append(subprocess.Popen(command, env=shared | {"JHSAE_PROCESS": process}, stdout=out, stderr=out))
    try:
        codes = [process.wait(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def test_two_processes_make_the_store_and_the_batches_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(harvest, "Writer", SmallShards)
    save_language_model(tmp_path / "lm")
    rng = np.random.default_rng(1)
    documents = [" ".join(f"w{w}" for w in rng.integers(4, VOCAB, rng.integers(4, 12))) for _ in range(250)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    one = Store.open(harvest.run(config(tmp_path, "one")))
    with monkeypatch.context() as patch:
        cut(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            harvest.run(config(tmp_path, "two"))
    (tmp_path / "harvest.yaml").write_text(yaml.safe_dump(cfg.to_dict(config(tmp_path, "two"))))
    together(tmp_path)
    two = Store.open(tmp_path / "two")
    assert one.manifest.writers == [1] and two.manifest.writers == [1, 2]
    np.testing.assert_array_equal(two.index(0, 300), one.index(0, 300))
    np.testing.assert_allclose(two.read(0, 300), one.read(0, 300), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(two.manifest.mean, one.manifest.mean, rtol=1e-5, atol=1e-6)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    _same_batches(tmp_path)


def _same_batches(folder: Path) -> None:
    text, mesh = TextFiles(str(folder / "text.txt")), make_mesh(MeshShape())
    live = LiveActivations(str(folder / "lm"), 1, text, 2000, 10, 8, 512, dtype="float32", mesh=mesh)
    batches = live.batches(32, 0)
    for step in range(3):
        parts = [np.load(folder / f"live-{step}-{process}.npz") for process in "01"]
        rows = {int(name): part[name] for part in parts for name in part.files if name != "mean"}
        found = np.concatenate([rows[start] for start in sorted(rows)])
        np.testing.assert_allclose(found, next(batches), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(parts[0]["mean"], parts[1]["mean"])
    np.testing.assert_allclose(parts[0]["mean"], CenterScale().fit(live).mean, rtol=1e-4, atol=1e-5)
