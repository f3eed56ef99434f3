"""``jhsae bench loader``: on a store that is given, and on a temporary one."""

import json

import numpy as np
import pytest

from jhsae.__main__ import main
from jhsae.data import write_array

FLAGS = ["--experts", "16", "--batch", "8", "--sub", "3", "--atoms", "4", "--k", "4", "--repeats", "1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rows = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    return write_array(tmp_path_factory.mktemp("bench") / "store", rows).path


def test_rates_of_a_store(store, tmp_path, capsys):
    file = tmp_path / "loader.json"
    assert main(["bench", "loader", store, *FLAGS, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    seconds = {name: times[0] for name, times in result["seconds"].items()}
    rows = 8 * result["settings"]["batches"]
    assert result["loader_rows_per_second"]["median"] == pytest.approx(rows / seconds["loader"])
    assert result["loader_gb_per_second"] == pytest.approx(rows * 8 * 4 / seconds["loader"] / 1e9)
    assert result["both_over_step"]["median"] == pytest.approx(seconds["step"] / seconds["both"])
    assert result["settings"]["rows"] == 256 and result["settings"]["dtype"] == "float32"
    assert "rows/s" in capsys.readouterr().out


def test_a_temporary_store(capsys):
    assert main(["bench", "loader", "--embed", "8", *FLAGS]) == 0
    assert "bfloat16" in capsys.readouterr().out


def test_wrong_input_is_one_sentence(store, capsys):
    assert main(["bench", "loader", *FLAGS]) == 2
    assert "write the path of a store, or --embed" in capsys.readouterr().err
    assert main(["bench", "loader", store, "--embed", "9", *FLAGS]) == 2
    assert "--embed is 9, but" in capsys.readouterr().err
