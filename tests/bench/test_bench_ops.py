"""``jhsae bench ops``: every implementation has its row, holds equal to the first, and a wrong one shows."""

import json
from typing import get_args

import jax.numpy as jnp
import pytest

from jhsae import ops
from jhsae.__main__ import main
from jhsae.bench import ops as bench_ops
from jhsae.bench.inputs import Shape
from jhsae.bench.ops import measure

SHAPE = Shape(embed=8, experts=16, batch=12, sub=3, atoms=4, k=4)
FLAGS = ["--embed", "8", "--experts", "16", "--batch", "12", "--sub", "3", "--atoms", "4", "--k", "4", "--repeats", "1"]


@pytest.mark.slow
def test_every_alternative_has_a_row_and_is_equal(tmp_path, capsys):
    file = tmp_path / "ops.json"
    assert main(["bench", "ops", *FLAGS, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    found = {}
    for row in rows:
        found.setdefault(row["op"], set()).add(row["alternative"])
        assert row["error"] < 1e-5, row  # on CPU the approximate top-k is exact
        assert row["ms"].keys() == {"median", "min", "max"} and row["memory"]["total"] > 0
    assert found["topk"] == set(get_args(ops.Method)) - {"tpu", "gpu"}
    for name in ("encode_atoms", "decode_atoms", "decode_rows"):
        assert found[name] == found[f"{name}, gradients"] == set(get_args(ops.Kernel)) - {"tpu", "gpu"}
    assert found["gram"] == found["gram, gradients"] == {"gram", "pairs"} and found["tracker"] == {"scatter", "repeat"}
    assert "encode_atoms, gradients" in capsys.readouterr().out


def test_groups_and_alternatives_are_chosen():
    rows = measure(SHAPE, only=("tracker", "topk"), without=("repeat", "scan"), repeats=1)["rows"]
    assert {row["op"] for row in rows} == {"topk", "tracker"}
    assert not {"repeat", "scan"} & {row["alternative"] for row in rows}


def test_a_wrong_alternative_shows_its_error(monkeypatch):
    monkeypatch.setattr(bench_ops, "_pairs", lambda a, b: 1.01 * bench_ops._gram(a, b) + 0.0 * jnp.sum(a))
    rows = measure(SHAPE, only=("gram",), repeats=1)["rows"]
    assert [row["error"] > 5e-3 for row in rows] == [False, True, False, True]


@pytest.mark.parametrize("flags", ["--only topk,gran", "--without scam"])
def test_an_unknown_name_is_one_sentence(flags, capsys):
    assert main(["bench", "ops", *FLAGS, *flags.split()]) == 2
    assert "did you mean" in capsys.readouterr().err
