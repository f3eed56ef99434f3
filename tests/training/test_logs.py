import json
import resource

import pytest

from jhsae.errors import UserError
from jhsae.files.folders import append_line, write_whole
from jhsae.training.logs import JsonLines, NoLog, RunLog

METRICS = {"loss": 0.5, "l0": 3.0}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_steps(path, *steps):
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0 / step}) + "\n" for step in steps))


def test_rows_are_appended_and_on_disk_after_every_write(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl", 0)
    for step in (1, 2):
        lines.write({"step": step})
        assert rows(tmp_path / "m.jsonl")[-1] == {"step": step}
    assert len(rows(tmp_path / "m.jsonl")) == 2


def test_a_resumed_run_drops_the_rows_beyond_its_checkpoint_and_no_others(tmp_path):
    path = tmp_path / "m.jsonl"
    write_steps(path, 1, 10, 20, 30, 40)
    before = path.read_text().splitlines()
    JsonLines(path, 20).write({"step": 30, "loss": 9.0})
    assert path.read_text().splitlines()[:3] == before[:3]
    assert [row["step"] for row in rows(path)] == [1, 10, 20, 30]
    assert rows(path)[-1]["loss"] == 9.0


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', "{"])
def test_a_last_line_without_its_end_is_dropped(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    write_steps(path, 1, 2)
    path.write_text(path.read_text() + torn)
    JsonLines(path, 100).write({"step": 4})
    assert [row["step"] for row in rows(path)] == [1, 2, 4]


def test_a_run_from_the_start_begins_an_empty_file(tmp_path):
    path = tmp_path / "m.jsonl"
    write_steps(path, 1, 2)
    JsonLines(path, 0)
    assert path.read_text() == ""


def test_metrics_hold_no_time_and_timing_holds_nothing_else(tmp_path):
    log = RunLog(tmp_path)
    log.write(10, "adapt", METRICS, tokens_per_step=32)
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 10, "stage": "adapt", **METRICS}]
    (timing,) = rows(tmp_path / "timing.jsonl")
    assert timing["step"] == 10 and timing["seconds"] > 0 and timing["tokens_per_second"] > 0
    assert set(timing) == {"step", "seconds", "tokens_per_second"}


def test_the_rate_counts_the_tokens_since_the_last_row(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 2.0, 6.0])
    monkeypatch.setattr("jhsae.training.logs.time.perf_counter", lambda: next(clock))
    log = RunLog(tmp_path, step=100)
    log.write(110, "a", METRICS, 32)
    log.write(120, "a", METRICS, 32)
    assert [row["tokens_per_second"] for row in rows(tmp_path / "timing.jsonl")] == [160.0, 80.0]


def test_both_files_are_cut_when_a_run_resumes(tmp_path):
    first = RunLog(tmp_path)
    for step in (10, 20, 30):
        first.write(step, "a", METRICS, 1)
    RunLog(tmp_path, step=20).write(30, "a", METRICS, 1)
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert [row["step"] for row in rows(tmp_path / name)] == [10, 20, 30]


def test_memory_keeps_the_rows():
    log = NoLog()
    log.write(1, "fit", METRICS, 8)
    assert log.rows == [{"step": 1, "stage": "fit", **METRICS}]


def test_tensorboard_gets_every_metric(tmp_path, monkeypatch):
    tensorboard = pytest.importorskip("tensorboardX")
    writers = []

    class Kept(tensorboard.SummaryWriter):
        def __init__(self, folder):
            super().__init__(folder)
            writers.append(self)

    monkeypatch.setattr(tensorboard, "SummaryWriter", Kept)
    RunLog(tmp_path, sinks=("tensorboard",)).write(7, "a", METRICS, 1)
    writers[0].close()  # its thread writes in its own time
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert all(name.encode() in events.read_bytes() for name in METRICS)


def test_a_missing_logger_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install 'jhsae\[log\]'"):
        RunLog(tmp_path, sinks=("wandb",))


@pytest.mark.parametrize("line", ["{", '{"loss": 1.0}', "[]", '{"step": "2"}', "\x00"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "m.jsonl"
    write_steps(path, 1, 2)
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + line + "\n" + second)
    with pytest.raises(UserError, match=r"m\.jsonl, line 2"):
        JsonLines(path, 100)


def test_not_a_number_is_null_also_in_what_an_older_version_wrote(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "a": NaN}\n{"step": 2, "a": 0.5}\n')
    JsonLines(path, 100).write({"step": 3, "a": float("inf"), "b": [float("nan")]})
    assert path.read_text() == '{"step": 1, "a": null}\n{"step": 2, "a": 0.5}\n{"step": 3, "a": null, "b": [null]}\n'


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (b"", b""),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b', b'{"a": 1}\n'),
        (b"torn " * 50_000, b""),
        (b"1\n" + b"torn " * 50_000, b"1\n"),
    ],
)
def test_a_row_is_appended_behind_whole_rows_alone(tmp_path, left, expected):
    path = tmp_path / "results.jsonl"
    path.write_bytes(left)
    append_line(path, '{"c": 2}')
    assert path.read_bytes() == expected + b'{"c": 2}\n'


def test_a_disk_that_is_full_is_a_sentence(tmp_path):
    """No file may grow beyond 100 bytes: the system refuses, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "m.jsonl"
    lines = JsonLines(path, 0)
    lines.write({"step": 1})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(UserError, match=r"m\.jsonl cannot be written \(File too large"):
            lines.write({"step": 2, "a": "x" * 200})
        with pytest.raises(UserError, match=r"other cannot be written \(File too large"):
            write_whole(tmp_path / "other", "x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    JsonLines(path, 100).write({"step": 3})
    assert [row["step"] for row in rows(path)] == [1, 3]
