"""`profile_steps`: a trace of the named steps in the run folder, and the same numbers as without it."""

import pytest
import runs

from jhsae import config
from jhsae.errors import UserError
from jhsae.training import profile
from jhsae.training.config import Train
from jhsae.training.run import train


def load(place, out, *overrides):
    stages = [{"name": "a", "steps": 6, "learning_rate": 1e-2}]
    path = runs.train_config(place, place / "store", place / out, stages=stages, checkpoint_every=3)
    return config.load(Train, path, overrides)


@pytest.mark.slow
def test_a_trace_of_the_steps_appears_and_no_number_changes(tmp_path, monkeypatch):
    runs.store(tmp_path / "store")
    asked = []
    start, stop = profile.jax.profiler.start_trace, profile.jax.profiler.stop_trace
    monkeypatch.setattr(profile.jax.profiler, "start_trace", lambda *a: (asked.append("start"), start(*a))[1])
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", lambda: (asked.append("stop"), stop())[1])
    plain, traced = load(tmp_path, "plain"), load(tmp_path, "traced", "profile_steps=[3,4]")
    train(plain)
    assert asked == [] and not (tmp_path / "plain" / "profile").exists()
    train(traced)
    assert asked == ["start", "stop"]
    (trace,) = (tmp_path / "traced" / "profile").rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"train" in content and b"step_num" in content
    for name in ("metrics.jsonl", "sae/sae.safetensors"):
        assert (tmp_path / "traced" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert config.config_hash(traced) == config.config_hash(plain)


def test_a_trace_ends_with_a_run_that_ends_early(tmp_path):
    with pytest.raises(KeyError), profile.StepProfiler(tmp_path / "profile", [2, 9]) as profiler:
        profiler.before(2)
        profiler.after(2, ())
        raise KeyError
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_resumed_run_traces_what_is_left(tmp_path):
    with profile.StepProfiler(tmp_path / "profile", [2, 4]) as profiler:
        profiler.before(4)
        profiler.after(4, ())
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["[0,2]", "[3,2]", "[1,7]", "[1]", "[1,2,3]"])
def test_steps_that_cannot_be_traced_are_refused(tmp_path, steps):
    with pytest.raises(UserError, match="profile_steps"):
        load(tmp_path, "x", f"profile_steps={steps}")
