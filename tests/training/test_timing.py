"""Times of a run: seconds of waiting by row, and the summary of timing.jsonl."""

import json

import numpy as np
import pytest

from jhsae.errors import UserError
from jhsae.training.logs import RunLog
from jhsae.training.timing import TimedBatches, input_share, timing


def write_rows(folder, *rows):
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(step: int, seconds: float, rate: float, **more: float):
    return {"step": step, "seconds": seconds, "tokens_per_second": rate, **more}


def test_waiting_is_the_time_inside_of_next():
    clock = iter([0.0, 2.0, 10.0, 10.5])
    batches = TimedBatches(iter(np.eye(2)), lambda: next(clock))
    assert next(batches)[0] == 1 and batches.seconds == 2.0
    assert next(batches)[1] == 1 and batches.seconds == 2.5


def test_a_row_has_the_waiting_since_the_row_before(tmp_path):
    waited = iter([1.0, 1.5])
    log = RunLog(tmp_path, waited=lambda: next(waited))
    log.write(10, "a", {}, 32)
    log.write(20, "a", {}, 32)
    found = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [row["input_seconds"] for row in found] == [1.0, 0.5]


def test_the_first_row_is_left_out(tmp_path):
    write_rows(
        tmp_path,
        row(1, 8.0, 1.0, input_seconds=5.0),
        row(10, 10.0, 100.0, input_seconds=0.5),
        row(20, 12.0, 300.0, input_seconds=1.5),
    )
    assert timing(tmp_path) == {"train_seconds": 12.0, "tokens_per_second": 200.0}
    assert input_share(tmp_path) == 0.5


def test_a_run_that_did_not_measure_it_has_no_share(tmp_path):
    assert timing(tmp_path) == {} and input_share(tmp_path) is None
    write_rows(tmp_path, row(1, 8.0, 1.0))
    assert input_share(tmp_path) is None
    write_rows(tmp_path, row(1, 8.0, 1.0), row(2, 9.0, 1.0))
    assert input_share(tmp_path) is None


def test_a_damaged_row_is_named(tmp_path):
    write_rows(tmp_path, row(1, 8.0, 1.0, input_seconds="long"))
    with pytest.raises(UserError, match="row 1"):
        input_share(tmp_path)
