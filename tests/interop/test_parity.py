"""The originals' golden numbers are reproduced, a wrong number is noticed, and other files are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from jhsae.__main__ import main
from jhsae.errors import UserError
from jhsae.parity import compare as parity
from jhsae.parity.golden import compare, read, same_sets

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["moe_v2", "moe_v2_fillers", "polytope"])
def test_every_row_passes(name, tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert main(["parity", str(GOLDEN / f"{name}.npz"), "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert all(row["passed"] for row in rows)
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in rows) and f"{len(rows)} of {len(rows)} pass" in printed


@pytest.mark.slow
def test_every_computed_array_of_the_files_is_compared():
    inputs = ("init/", "meta/", "batches", "model/", "geometry/unembedding", "geometry/a", "geometry/b", "x")
    inputs += ("lda/pos", "lda/neg", "lda/child_pos")
    for name in ("moe_v2_fillers", "polytope"):
        arrays = read(GOLDEN / f"{name}.npz")
        computed = {k for k in arrays if not any(k == i or (i.endswith("/") and k.startswith(i)) for i in inputs)}
        assert {row.name for row in parity.rows(arrays, name)} == computed


@pytest.mark.slow
def test_a_changed_number_fails_its_row(tmp_path):
    arrays = read(GOLDEN / "moe_v2_fillers.npz")
    arrays["grads/W_up"] = arrays["grads/W_up"] * 1.001
    np.savez(tmp_path / "changed.npz", **arrays)
    assert main(["parity", str(tmp_path / "changed.npz")]) == 1


def test_nan_and_other_shapes_never_pass():
    one = np.ones(3)
    assert not compare("nan", one * np.nan, one, 1e-5).passed
    assert not compare("shape", np.ones(4), one, 1e-5).passed
    assert not same_sets("sets", np.array([[0, 1]]), np.array([[0, 2]])).passed
    assert same_sets("sets", np.array([[1, 0]]), np.array([[0, 1]])).passed


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    with pytest.raises(UserError, match="no known kind"):
        parity.run(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("not arrays")
    with pytest.raises(UserError, match="not an npz file"):
        parity.run(tmp_path / "text.npz")
    with pytest.raises(UserError, match="no file"):
        parity.run(tmp_path / "absent.npz")
