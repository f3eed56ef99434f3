"""The prepared script of the headline step runs at a tiny size on a CPU, the kernels in Pallas' interpreter."""

import importlib.util
import json
from pathlib import Path

import pytest

from jhsae.bench.measurement import Timings
from jhsae.ops.pallas import wide_gpu

SCRIPT = Path(__file__).parents[2] / "experiments" / "bench" / "gpu_headline.py"
TINY = ["--embed", "128", "--experts", "64", "--batch", "8", "--original-batch", "4", "--rounds", "1"]


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_headline", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    token = wide_gpu.INTERPRET.set(True)
    yield lambda *words: monkeypatch.setattr("sys.argv", ["gpu_headline.py", *words]) or module
    wide_gpu.INTERPRET.reset(token)


def test_kernels_are_timed_beside_plain_xla_and_the_original(script, tmp_path, capsys):
    names = ["float32, plain", "float32, experts"]
    words = [*TINY, "--kernel", "gpu", "--only", *names, "--json", str(tmp_path / "found.json")]
    assert script(*words).main() == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["steps"]) == [*names, "original"] and found["left_out"] == []
    assert 0 < found["errors"]["float32"] < 1e-5 and 0 < found["errors"]["bfloat16"] < 2**-6
    assert all(step["ms"]["median"] > 0 and step["memory"]["total"] > 0 for step in found["steps"].values())
    assert found["advice"][0].startswith("float32: ") and found["advice"][0] in capsys.readouterr().out


def test_a_wrong_kernel_is_not_advised(script, monkeypatch):
    module = script()
    seconds = {"float32, plain": [3.0, 3.0], "float32, experts": [1.0, 2.9], "float32, all rows": [2.0, 3.1]}
    assert module.advice(Timings(seconds), True, "gpu") == ["float32: set sae.kernel=gpu: 0.65 of plain's time"]
    keep = "float32: keep plain XLA, nothing was faster in every round"
    assert module.advice(Timings(seconds), False, "gpu") == [keep]
    monkeypatch.setattr(module, "LIMITS", {"float32": 1e-5})
    right = wide_gpu.spread
    monkeypatch.setattr(wide_gpu, "spread", lambda *arrays: 1.01 * right(*arrays))
    assert module.errors("gpu", module.Shape(128, 40, 8))["float32"] > 5e-3


def test_a_kernel_that_the_platform_lacks_is_named(script, capsys):
    with pytest.raises(SystemExit, match="2"):
        script("--only", "float32, experts").main()
    assert "names a kernel, but cpu has none; write --kernel gpu or tpu" in capsys.readouterr().err
