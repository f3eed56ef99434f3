"""`fit` with `out` writes the run folder of ``jhsae train``, with the numbers that it has without."""

import json
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
import runs

from jhsae import fit, load_sae
from jhsae.__main__ import main
from jhsae.data import Batches, CenterScale, Store
from jhsae.errors import UserError
from jhsae.losses import AuxK, SquaredError
from jhsae.sae import FlatSAE, GatedSAE, HierarchicalSAE, PursuitSAE, mixture_of_experts_v2
from jhsae.schedule import WarmupCosine
from jhsae.sparsify import BatchTopK, MeanL0, TopK
from jhsae.training import given, loop
from jhsae.training.config import StageConfig
from jhsae.usage import Context

X = runs.activations(200)
KEY = jax.random.key(0)
SAES = {
    "flat": lambda: FlatSAE(runs.EMBED, 24, BatchTopK(3.0), key=KEY),
    "gated": lambda: GatedSAE(runs.EMBED, 24, key=KEY),
    "tree": lambda: HierarchicalSAE(runs.EMBED, 12, 2, 3, TopK(2), TopK(1), biases=["decoder"], key=KEY),
    "scale": lambda: mixture_of_experts_v2(runs.EMBED, experts=12, k=2, key=KEY),
    "pursuit": lambda: PursuitSAE(runs.EMBED, [8, 2], MeanL0(3.0), key=KEY),
}


def equal(a, b) -> bool:
    return bool(eqx.tree_equal(a, b))


@pytest.mark.parametrize("name", SAES)
def test_the_numbers_are_those_without_a_folder(tmp_path, name):
    options = {
        "steps": 20,
        "batch": 64,
        "log_every": 1,
        "normalizer": CenterScale().fit(given.GivenRows(*X.shape, x=X)),
    }
    sae, rows = fit(SAES[name](), X, **options)
    again, written = fit(SAES[name](), X, out=tmp_path / "run", **options)
    assert equal(sae, again)
    assert written == [{k: v for k, v in row.items() if v == v} for row in rows]
    loaded, normalizer, about = load_sae(tmp_path / "run")
    assert equal(loaded, sae) and equal(normalizer, options["normalizer"])
    assert about["reads"] == {"model": "array", "layer": 0} and about["name"] == "run"
    files = {file.name for file in (tmp_path / "run").iterdir()}
    assert files == {"config.yaml", "run.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "sae"}


def test_every_verb_reads_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fit(SAES["tree"](), X, steps=20, batch=64, out="run")
    Store.from_array(runs.activations(300)[200:], "heldout")
    for words in (
        ["evaluate", "run=run", "store=heldout"],
        ["browse", "run=run", "store=heldout", "out=page.html"],
        ["report", "report.yaml", "runs=[run]", "teacher=null", "browsers=[]", "out=report.html"],
        ["export", "run=run", "format=torch", "out=exported"],
    ):
        assert main(words) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["train", "run/config.yaml", "out=other", "mesh.data=null"]) == 2
    assert "the rows of this run were given by a script to jhsae.fit; run that script again" in capsys.readouterr().err


def test_killed_it_is_resumed_by_the_same_call(tmp_path, monkeypatch):
    call = {"steps": 30, "batch": 64, "checkpoint_every": 7, "log_every": 1, "seed": 3}
    whole, rows = fit(SAES["tree"](), X, **call, out=tmp_path / "whole")
    check = loop._check_finite

    def kill(state, step, *rest):
        if step == 21:
            raise KeyboardInterrupt
        check(state, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_check_finite", kill)
        with pytest.raises(KeyboardInterrupt):
            fit(SAES["tree"](), X, **call, out=tmp_path / "cut")
    again, continued = fit(SAES["tree"](), X, **call, out=tmp_path / "cut")
    assert equal(again, whole) and continued == rows
    for file in ("metrics.jsonl", "sae/sae.safetensors"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    before = (tmp_path / "cut" / "metrics.jsonl").stat().st_mtime_ns
    finished, known = fit(SAES["tree"](), X, **call, out=tmp_path / "cut")
    assert equal(finished, whole) and known == rows
    assert (tmp_path / "cut" / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_call_does_not_continue_it(tmp_path):
    call = {"steps": 5, "batch": 64, "out": tmp_path / "run"}
    fit(SAES["tree"](), X, **call)
    moved = eqx.tree_at(lambda s: s.b_dec, SAES["tree"](), np.ones(runs.EMBED, np.float32))
    for sae, x, changes, sentence in (
        (moved, X, {}, "init.0.sha256 is"),
        (SAES["tree"](), X + 1, {}, "data.live.sha256 is"),
        (SAES["tree"](), X, {"steps": 6}, "stages.0.steps is 5 there, 6 here"),
        (SAES["flat"](), X, {}, "holds a run of another config"),
        (
            SAES["tree"](),
            X,
            {"resume": False},
            "exists already and is never overwritten; write another out=..., or resume",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            fit(sae, x, **{**call, **changes})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UserError, match="is not a run folder"):
        fit(SAES["tree"](), X, steps=5, out=tmp_path / "other")


def test_an_optimizer_is_recorded_by_its_slot(tmp_path):
    with pytest.raises(UserError, match=r"optimizer is an optax transformation.*write its slot, such as optimizer=\{"):
        fit(SAES["tree"](), X, steps=5, optimizer=optax.scale_by_adam(), out=tmp_path / "run")
    slot = {"_target_": "jhsae.optimizer.adam", "b1": 0.5}
    found, _ = fit(SAES["tree"](), X, steps=5, optimizer=slot, out=tmp_path / "run")
    assert equal(found, fit(SAES["tree"](), X, steps=5, optimizer=slot)[0])
    assert not equal(found, fit(SAES["tree"](), X, steps=5)[0])
    assert "b1: 0.5" in (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"loggers is .*, which write into the run folder; write out="):
        fit(SAES["tree"](), X, steps=5, loggers=["tensorboard"])


def test_loggers_write_into_it(tmp_path):
    pytest.importorskip("tensorboardX")
    fit(SAES["tree"](), X, steps=5, loggers=["tensorboard"], out=tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_store_is_read_as_it_goes(tmp_path):
    """In the order of ``jhsae train``, in memory and with a folder; parts of every kind are recorded."""
    store = Store.from_array(X, tmp_path / "store", shard_rows=64, chunk_rows=16)
    options = {
        "batch": 32,
        "objective": {"mse": SquaredError(), "auxk": AuxK(4)},
        "weights": {"auxk": 0.1},
        "stages": [StageConfig("a", 5, WarmupCosine(1e-2, 2, 12), freeze=["b_enc"]), StageConfig("b", 7, 1e-3)],
        "seed": 1,
    }
    found, rows = fit(SAES["flat"](), store, **options)
    again, _ = fit(SAES["flat"](), store, **options, out=tmp_path / "run")
    assert equal(found, again) and rows[-1]["step"] == 12
    batches = Batches(store, 32, 1)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    x = batches[0].astype(np.float32)
    x_hat = SAES["flat"]().forward(jax.numpy.asarray(x), Context()).x_hat
    explained = 1 - np.sum((x - np.asarray(x_hat)) ** 2) / np.sum((x - x.mean(axis=0)) ** 2)
    assert first["explained_variance"] == pytest.approx(explained, rel=1e-4)
    with pytest.raises(UserError, match=r"sae.embed is 5, but the store .* holds vectors of 16"):
        fit(FlatSAE(5, 8, TopK(2), key=KEY), store, steps=3)


def test_rows_are_drawn_epoch_by_epoch_from_any_place():
    source = given.GivenRows(10, 1, x=np.arange(10, dtype=np.float32)[:, None])
    rng, expected = np.random.default_rng(5), []
    for _ in range(4):
        order = rng.permutation(10)
        expected += [order[0:4], order[4:8]]
    batches = source.batches(4, 5)
    for number, rows in enumerate(expected):
        assert batches.get_state() == {"batches": number}
        np.testing.assert_array_equal(next(batches)[:, 0], rows)
        there = source.batches(4, 5)
        there.set_state({"batches": number})
        np.testing.assert_array_equal(next(there)[:, 0], rows)


EXAMPLE = """
store = jhsae.Store.from_array(acts, "stores/mine", tokens=ids)  # [docs, positions, embed]; ids are optional
sae = jhsae.mixture_of_experts_v2(embed=64, experts=64, k=4, key=jax.random.key(0))
sae, metrics = jhsae.fit(sae, store, steps=300, batch=256, out="runs/mine")
jhsae.save_sae("saes/mine", sae)
codes = jhsae.load_sae("saes/mine")[0].encode(acts[:2])  # of every position: values [2, positions, slots]
"""


def test_five_lines(tmp_path, monkeypatch):
    """Your own activations, as the README writes it, at a small size; and the command that does the same."""
    monkeypatch.chdir(tmp_path)
    acts, ids = np.tile(runs.activations(64), 4).reshape(8, 8, 64), np.arange(64).reshape(8, 8)
    scope = {"acts": acts, "ids": ids, "jax": jax, "jhsae": __import__("jhsae")}
    exec(EXAMPLE.replace("steps=300, batch=256", "steps=4, batch=16"), scope)
    assert scope["codes"].parents.values.shape == (2, 8, 4) and len(scope["metrics"]) == 4
    assert Path("runs/mine/sae/sae.json").exists()
    np.save("acts.npy", acts)
    np.save("ids.npy", ids)
    assert main(["store", "acts.npy", "tokens=ids.npy", "out=stores/same"]) == 0
    one, other = Store.open("stores/same"), Store.open("stores/mine")
    np.testing.assert_array_equal(one.read(0, 64), other.read(0, 64))
    assert main(["evaluate", "run=runs/mine", "store=stores/same"]) == 0
