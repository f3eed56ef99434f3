"""``jhsae bench step`` end to end on a tiny shape; a side that computes something else is noticed."""

import json

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.__main__ import main
from jhsae.bench import ours
from jhsae.bench.inputs import Build, Shape, make_batch, random_rows
from jhsae.bench.original import OriginalTraining
from jhsae.bench.step import Errors, StepBench, compare_gradients, measure, to_original
from jhsae.losses import Objective, SquaredError

SHAPE = Shape(embed=12, experts=24, batch=32, sub=3, atoms=5, k=4)
FLAGS = [
    "--embed",
    "12",
    "--experts",
    "24",
    "--batch",
    "32",
    "--sub",
    "3",
    "--atoms",
    "5",
    "--k",
    "4",
    "--repeats",
    "2",
]
SPREAD = {"median", "min", "max"}


@pytest.mark.slow
def test_the_verb_writes_its_numbers(tmp_path, capsys):
    file = tmp_path / "step.json"
    assert main(["bench", "step", *FLAGS, "--variants", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["shape"] == {"embed": 12, "experts": 24, "batch": 32, "sub": 3, "atoms": 5, "k": 4}
    for name in ("ours", "original", "scale", "flat", "flat_6"):
        assert result[f"{name}_ms"].keys() == SPREAD and len(result["seconds"][name]) == 2
        memory = result["memory"][name]
        assert memory["total"] == memory["argument"] + memory["output"] + memory["temp"] - memory["alias"] > 0
    for name in ("speedup", "over_flat", "under_flat_6", "scale_over_ours"):
        assert 0 < result[f"{name}_min"] <= result[name] <= result[f"{name}_max"]
    pairs = zip(result["seconds"]["original"], result["seconds"]["ours"], strict=True)
    assert result["speedup"] == pytest.approx(np.median([a / b for a, b in pairs]))
    memory = result["memory"]
    assert result["memory_ratio"] == memory["original"]["total"] / memory["ours"]["total"]
    assert result["temp_ratio"] == memory["original"]["temp"] / memory["ours"]["temp"]
    assert memory["ours"]["alias"] > 0 and memory["original"]["alias"] == 0, "ours donates its state, theirs does not"
    assert result["equal"] and result["loss_error"] < 1e-6 and 0 < result["gradient_error"] < 1e-5
    assert result["gradient_error"] == max(result["gradient_errors"].values())
    assert result["tokens_per_second"] == pytest.approx(32000 / result["ours_ms"]["median"])
    for key in ("load_before", "load_after", "cpu_count", "device_kind", "platform", "versions", "commit", "settings"):
        assert key in result
    out = capsys.readouterr().out
    assert "equal" in out and "speedup" in out and "tokens/s" in out


@pytest.mark.slow
def test_the_original_may_have_a_batch_of_its_own():
    result = measure(StepBench(SHAPE, repeats=1, original_batch=8))
    times = result["seconds"]
    assert result["tokens"] == {"ours": 32, "original": 8}
    assert result["speedup"] == pytest.approx(4 * times["original"][0] / times["ours"][0])
    whole = measure(StepBench(SHAPE, repeats=1))
    assert result["memory"]["original"]["temp"] == whole["memory"]["original"]["temp"], "memory is that of all tokens"


def test_ours_alone():
    result = measure(StepBench(SHAPE, repeats=1, original_batch=0))
    assert "speedup" not in result and result["seconds"].keys() == {"ours"}


@pytest.mark.parametrize("topk", ["lax", "scan"])
def test_both_sides_are_equal_to_rounding(topk):
    start = ours.faithful(SHAPE, Build(topk=topk))
    sae, objective = start.sae, start.modules.objective
    errors = compare_gradients(sae, objective, jnp.asarray(make_batch(SHAPE, sae)[0]), SHAPE.k)
    assert errors.loss <= 1e-6 and errors.gradient <= 1e-6


def test_both_sides_train_alike():
    """Three updates: clipping, Adam, renormalisation and the tracker, beyond the gradients."""
    start = ours.faithful(SHAPE, Build())
    sae = start.sae
    x = jnp.asarray(make_batch(SHAPE, sae)[0])
    here, there = ours.Training(start, x), OriginalTraining(to_original(sae), x, SHAPE.k)
    for _ in range(3):
        here()
        there()
    trained = to_original(here.state.sae)
    for name, leaf in trained._asdict().items():
        np.testing.assert_allclose(leaf, getattr(there.state.params, name), atol=1e-5, err_msg=name)
        assert np.abs(leaf - getattr(to_original(sae), name)).max() > 1e-4, name
    assert there.state.tracker.sum() > 0


def test_another_function_is_not_equal():
    start = ours.faithful(SHAPE, Build())
    sae, objective = start.sae, start.modules.objective
    x = jnp.asarray(make_batch(SHAPE, sae)[0])
    assert compare_gradients(sae, objective, x, SHAPE.k).equal
    other = Objective({"reconstruction": SquaredError()})
    assert not compare_gradients(sae, other, x, SHAPE.k).equal
    nan = eqx.tree_at(lambda s: s.up, sae, sae.up * jnp.nan)
    assert not compare_gradients(nan, objective, x, SHAPE.k).equal
    assert not Errors(0.0, {"a": 1e-3, "b": 0.0}).equal


def test_every_leaf_is_mapped_to_its_own_place():
    sae = ours.faithful(SHAPE, Build()).sae
    theirs = to_original(sae)
    np.testing.assert_array_equal(theirs.router_decoder, np.asarray(sae.router_dec).T)
    np.testing.assert_array_equal(theirs.W_up[3], np.asarray(sae.up[3]).T)
    np.testing.assert_array_equal(theirs.expert_decoder[3], np.asarray(sae.atom_dec[3]).T)
    np.testing.assert_array_equal(theirs.W_down, sae.down)


def test_the_batch_is_unit_rows_whose_selections_are_clear():
    sae = ours.faithful(SHAPE, Build()).sae
    x, load = make_batch(SHAPE, sae)
    assert x.shape == (32, 12)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, rtol=1e-5)
    pre = x @ np.asarray(sae.router_enc).T
    over = pre >= SHAPE.offset
    assert load.experts_over_threshold == pytest.approx(over.sum(1).mean())
    assert load.parents_per_token == pytest.approx(np.minimum(over.sum(1), SHAPE.k).mean())
    drawn = random_rows(41, 12)
    closest = np.sort(np.abs(drawn @ np.asarray(sae.router_enc).T - SHAPE.offset).min(1))
    assert np.abs(pre - SHAPE.offset).min() > closest[0], "the row nearest to the threshold is left out"
    np.testing.assert_array_equal(random_rows(41, 12), drawn)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--embed 0 --experts 4 --batch 8", "embed is 0, expected at least 1"),
        ("--embed 8 --experts 4 --batch 8 --k 5", "k is 5 but there are 4 experts; write --k 4 or less"),
        ("--embed 8 --experts 1 --batch 8 --k 1", "experts is 1"),
        ("--embed 8 --experts 4 --batch 8 --k 2 --kernel fast", "kernel is 'fast', expected one of"),
        ("--embed 8 --experts 4 --batch 8 --k 2 --topk best", "topk is 'best', expected one of"),
        ("--embed 8 --experts 4 --batch 8 --k 2 --chunk 0", "chunk is 0"),
        ("--embed 8 --experts 4 --batch 8 --k 2 --repeats 0", "repeats is 0"),
        ("--embed 8 --experts 4 --batch 8 --k 2 --original-batch 9", "original-batch is 9, expected 0 to 8"),
        ("--embed 8 --experts 4 --batch 8 --k 2 --json nowhere/x.json", "there is no folder nowhere"),
    ],
)
def test_wrong_input_is_one_sentence(flags, says, capsys):
    assert main(["bench", "step", *flags.split()]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
