"""From a harvest of hooks to a trained and evaluated transcoder, crosscoder and cross-layer transcoder."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from small_lm import CONTEXT, EMBED, save_model_and_text

import jhsae
from jhsae import config as cfg
from jhsae import lm
from jhsae.activations.config import Harvest, Source
from jhsae.commands import browse, evaluate
from jhsae.commands.harvest import run as harvest
from jhsae.data import Hook, Store, open_stores, special_ids, write_array
from jhsae.errors import UserError
from jhsae.evals import Spliced
from jhsae.features.decoder import into_stream
from jhsae.lm import cross_entropy
from jhsae.parallel.preemption import StopRequest
from jhsae.training.config import Train
from jhsae.training.run import train

HOOKS = ["mlp_in.0", "mlp_out.0", "mlp_in.1", "mlp_out.1", "resid.0", "resid.1", "attn_out.1"]
FLAT = {"_target_": "jhsae.sae.Transcoder", "sparsifier": {"_target_": "jhsae.sparsify.BatchTopK", "k": 3.0}}
TREE = {
    "_target_": "jhsae.sae.HierarchicalTranscoder", "sub": 2, "atoms": 3,
    "route": {"_target_": "jhsae.sparsify.TopK", "k": 2}, "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1},
}  # fmt: skip
CROSS = {
    "_target_": "jhsae.sae.FlatSAE", "embed": 2 * EMBED, "features": 24,
    "sparsifier": {"_target_": "jhsae.sparsify.TopK", "k": 3},
    "code_unit": {"_target_": "jhsae.sae.SummedNormUnit", "layers": 2},
}  # fmt: skip
CROSS_TREE = TREE | {"_target_": "jhsae.sae.HierarchicalSAE", "embed": 2 * EMBED, "experts": 8}
ONE = (["mlp_in.1"], ["mlp_out.1"])
BOTH = (["mlp_in.0", "mlp_in.1"], ["mlp_out.0", "mlp_out.1"])
ARMS = {
    "transcoder": (FLAT | {"embed": EMBED, "features": 24}, *ONE),
    "skip": (FLAT | {"embed": EMBED, "features": 24, "skip": {"_target_": "jhsae.sae.LinearSkip"}}, *ONE),
    "transcoder-tree": (TREE | {"embed": EMBED, "experts": 8}, *ONE),
    "clt": (FLAT | {"embed": 2 * EMBED, "features": 48, "layers": 2}, *BOTH),
    "clt-tree": (TREE | {"embed": 2 * EMBED, "experts": 16, "layers": 2}, *BOTH),
    "crosscoder": (CROSS, ["resid.0", "resid.1"], []),
    "crosscoder-tree": (CROSS_TREE, ["resid.0", "resid.1"], []),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with ``lm``, ``train-HOOK`` and ``held-HOOK``."""
    folder = save_model_and_text(tmp_path_factory.mktemp("targets"), 60)
    text = {"_target_": "jhsae.data.TextFiles", "paths": str(folder / "text.txt")}
    for name, rows in (("train", 10_000), ("held", 200)):
        source = Source(str(folder / "lm"), hooks=HOOKS)
        out = str(folder / f"{name}-{{hook}}")
        harvest(Harvest(out, source, text, rows=rows, context=CONTEXT, batch=8, dtype="float32", shuffle_rows=50))
    return folder


def paths(folder: Path, which: str, hooks: list[str]):
    found = [str(folder / f"{which}-{hook}") for hook in hooks]
    return found[0] if len(found) == 1 else found or None


def config_of(folder: Path, name: str, arm: str, **changes) -> Train:
    sae, read, written = ARMS[arm]
    data = {
        "store": paths(folder, "train", read), "target": paths(folder, "train", written), "batch": 32,
        "normalize": {"_target_": "jhsae.data.CenterScale"},
    }  # fmt: skip
    top = {
        "out": str(folder / name), "data": data, "sae": sae,
        "objective": {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}},
        "stages": [{"name": "all", "steps": 30, "learning_rate": 1e-2}], "log_every": 1, "checkpoint_every": 10,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(top | changes))
    return cfg.load(Train, path)


def evaluation(folder: Path, run, arm: str, **more) -> evaluate.Evaluate:
    _, read, written = ARMS[arm]
    stores = paths(folder, "held", read), paths(folder, "held", written)
    return evaluate.Evaluate(
        str(run), stores[0], str(folder / "lm"), sequences=6, batch=3, target=stores[1], features=2, **more
    )


def test_a_harvest_of_hooks_is_that_of_the_model_row_by_row(place):
    model = lm.load(str(place / "lm")).model
    stores = {hook: Store.open(place / f"train-{hook}") for hook in HOOKS}
    tokens = stores["mlp_in.0"].tokens().astype(np.int32)
    hooks = [tuple(hook.split(".")) for hook in HOOKS]
    found = model.hooked(jnp.asarray(tokens), [(name, int(block)) for name, block in hooks])
    for hook, expected in zip(HOOKS, found, strict=True):
        store = stores[hook]
        sequence, position, _ = store.index(0, store.rows).T
        np.testing.assert_allclose(store.read(0, store.rows), np.asarray(expected)[sequence, position], atol=1e-5)
        assert (str(store.manifest.place), store.manifest.format) == (hook, 3 if hook.startswith("resid") else 4)
    text = stores["resid.1"].manifest.config["text"]
    how = {"rows": 10_000, "context": CONTEXT, "batch": 8, "dtype": "float32", "shuffle_rows": 50}
    alone = Store.open(harvest(Harvest(str(place / "layer"), Source(str(place / "lm"), 1), text, **how)))
    np.testing.assert_allclose(alone.read(0, alone.rows), stores["resid.1"].read(0, alone.rows), atol=1e-6)
    open_stores(alone.path, stores["mlp_in.1"].path)  # another harvest of the same rows fits too


@pytest.fixture(scope="module")
def runs(place):
    return {arm: Path(str(train(config_of(place, arm, arm)))) for arm in ARMS}


@pytest.mark.parametrize("arm", ARMS)
def test_each_is_trained_and_evaluated(place, runs, arm):
    row = evaluate.run(evaluation(place, runs[arm], arm))
    metrics, (_, read, written) = row["metrics"], ARMS[arm]
    sae, normalizer, about = jhsae.load_sae(runs[arm])
    held = open_stores(paths(place, "held", read), paths(place, "held", written))
    rows = held.read(0, held.rows)
    x, y = rows[:, : sae.embed], rows[:, sae.embed :] if written else rows
    inside, token = normalizer(jnp.asarray(x))
    y_hat = np.asarray(normalizer.undo(sae(inside), token))
    expected = 1 - np.sum((y - y_hat) ** 2) / np.sum((y - y.mean(axis=0)) ** 2)
    assert metrics["ev_r2"] == pytest.approx(expected, abs=1e-4) and metrics["ev_r2"] > 0.05
    if len(written or read) > 1:
        assert len(metrics["ev_r2_by_layer"]) == 2
        part = slice(EMBED, 2 * EMBED)
        own = 1 - np.sum((y - y_hat)[:, part] ** 2) / np.sum((y - y.mean(axis=0))[:, part] ** 2)
        assert metrics["ev_r2_by_layer"][1] == pytest.approx(own, abs=1e-4)
    assert np.isfinite(metrics["ce_recovered"]) and metrics["kl"] > 1e-4 and metrics["ce"] != metrics["ce_model"]
    assert ("writes" in about) == bool(written) and (runs[arm] / "contexts.json").exists()
    logged = [json.loads(line) for line in (runs[arm] / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["loss"] < logged[0]["loss"]


def test_the_mlp_is_replaced_at_ordinary_tokens(place, runs):
    """The cross-entropy is that of a pass in which the block is written out by hand."""
    loaded = lm.load(str(place / "lm"))
    model, special = loaded.model, special_ids(loaded.tokenizer)
    metrics = evaluate.run(evaluation(place, runs["skip"], "skip"))["metrics"]
    tokens = Store.open(place / "held-mlp_in.1").tokens()[:6].astype(np.int32)
    spliced = Spliced(*jhsae.load_sae(runs["skip"])[:2])
    residual, mlp_in, mlp_out = model.hooked(jnp.asarray(tokens), [("resid", 2), ("mlp_in", 1), ("mlp_out", 1)])
    written = spliced(mlp_in.reshape(-1, EMBED)).reshape(mlp_out.shape)
    change = jnp.where(np.isin(tokens, list(special))[..., None], 0, written - mlp_out)
    logits = model.logits_from(residual + change, 2)
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    assert metrics["ce"] == pytest.approx(float(jnp.sum(cross_entropy(logits, jnp.asarray(tokens)))) / count, abs=1e-4)


def test_layers_of_a_cross_layer_transcoder_read_what_the_replaced_ones_left(place, runs):
    loaded = lm.load(str(place / "lm"))
    model, special = loaded.model, special_ids(loaded.tokenizer)
    metrics = evaluate.run(evaluation(place, runs["clt"], "clt"))["metrics"]
    tokens = Store.open(place / "held-mlp_in.1").tokens()[:6].astype(np.int32)
    spliced = eqx.filter_jit(Spliced(*jhsae.load_sae(runs["clt"])[:2]))
    keep, read = np.isin(tokens, list(special))[..., None], {}

    def first(name, value):
        if name == "mlp_in":
            read[0] = value
        x = jnp.concatenate([value, jnp.zeros_like(value)], axis=-1) if name == "mlp_in" else None
        if x is not None:
            read["y0"] = spliced(x.reshape(-1, 2 * EMBED))[:, :EMBED].reshape(value.shape)
        return jnp.where(keep, value, read["y0"]) if name == "mlp_out" else value

    def second(name, value):
        if name == "mlp_in":
            both = jnp.concatenate([read[0], value], axis=-1).reshape(-1, 2 * EMBED)
            read["y1"] = spliced(both)[:, EMBED:].reshape(value.shape)
        return jnp.where(keep, value, read["y1"]) if name == "mlp_out" else value

    logits = model.edited(jnp.asarray(tokens), {0: first, 1: second})
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    assert metrics["ce"] == pytest.approx(float(jnp.sum(cross_entropy(logits, jnp.asarray(tokens)))) / count, abs=1e-4)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(place, monkeypatch):
    train(config_of(place, "whole", "clt-tree"))
    config = config_of(place, "stopped", "clt-tree")

    def due(self, step):
        self.signal = signal.SIGTERM
        return step == 13

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(StopRequest, "due", due)
        train(config)
    train(config)
    a, b = (jhsae.load_sae(place / name)[0] for name in ("stopped", "whole"))
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def test_stores_that_do_not_hold_the_same_tokens_are_refused(place, tmp_path):
    text = Store.open(place / "train-mlp_in.1").manifest.config["text"]

    def other(name, **changes):
        given = {"rows": 10_000, "context": CONTEXT, "batch": 8, "dtype": "float32", "shuffle_rows": 50} | changes
        path = given.pop("path", str(place / "lm"))
        return str(harvest(Harvest(str(tmp_path / name), Source(path, hooks=["mlp_out.1"]), text, **given)))

    (tmp_path / "changed").mkdir()
    save_model_and_text(tmp_path / "changed", 60)
    config = json.loads((tmp_path / "changed" / "lm" / "config.json").read_text())
    config["query_pre_attn_scalar"] = 9
    (tmp_path / "changed" / "lm" / "config.json").write_text(json.dumps(config))
    store = str(place / "train-mlp_in.1")
    few = str(tmp_path / "350")
    source = Source(str(place / "lm"), hooks=["mlp_in.1"])
    harvest(Harvest(few, source, text, rows=350, context=CONTEXT, batch=8, dtype="float32", shuffle_rows=50))
    for target, message in (
        (other("few", rows=100), r"has \d+ rows and .*few 100, expected as many; harvest both in one pass"),
        (other("seed", rows=350, seed=1), "holds another text than"),
        (
            other("model", path=str(tmp_path / "changed" / "lm")),
            "holds activations of .* and .* of .*, expected one mod",
        ),
    ):
        with pytest.raises(UserError, match=message):
            open_stores(few if target.endswith("seed") else store, target)
    one, other_order = (str(write_array(tmp_path / f"a{i}", np.eye(9), seed=i).path) for i in range(2))
    with pytest.raises(UserError, match=r"the same tokens in another order, or other ones than .*, so row i is not of"):
        open_stores(one, other_order)


@pytest.mark.parametrize(
    ("arm", "changes", "message"),
    [
        ("transcoder", {"target": None}, "writes something else than it reads, and there is no target; write data.tar"),
        ("crosscoder", {"target": "mlp_out.1"}, "a FlatSAE reconstructs what it reads, but data.target is"),
        ("transcoder", {"normalize": {"_target_": "jhsae.data.UnitNorm"}}, "UnitNorm scales every token by a number"),
        ("transcoder", {"sae.embed": 8}, "the SAE reads 8 numbers, but .* hold 16; write sae.embed=16"),
        ("transcoder", {"sae.output": 8}, "the SAE writes 8 numbers, but .* hold 16; write sae.output=16"),
        ("transcoder", {"sae.layers": 2}, "sae.layers is 2, but data.target names 1 stores"),
        ("transcoder", {"live": True}, "names a target of live, which reads one hook"),
        ("transcoder", {"resampling": True}, "points encoder and decoder of a dead feature the same way"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(place, tmp_path, arm, changes, message):
    config = cfg.to_dict(config_of(place, "refused", arm)) | {"out": str(tmp_path / "run")}
    for key, value in changes.items():
        if key == "resampling":
            value = {"_target_": "jhsae.resampling.Resample", "every": 5, "until": 20}
        if key == "live":
            value = {"_target_": "jhsae.worlds.WorldActivations", "path": "x"}
        section, _, name = key.rpartition(".")
        where = config if key == "resampling" else config[section or "data"]
        where[name] = str(place / f"train-{value}") if key == "target" and value else value
    path = tmp_path / "refused.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=message):
        train(cfg.load(Train, path))


def test_an_evaluation_on_other_places_is_refused(place, runs):
    run = str(runs["transcoder"])
    at = lambda hook: str(place / f"held-{hook}")  # noqa: E731
    for store, target, message in (
        (at("mlp_in.1"), None, "writes something else than it reads; write target=FOLDER"),
        (at("mlp_in.0"), at("mlp_out.1"), r"reads .* mlp_in.1, but .* holds .* mlp_in.0; harvest held-out text"),
        (at("mlp_in.1"), at("mlp_out.0"), r"writes .* mlp_out.1, but"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.run(evaluate.Evaluate(run, store, None, target=target))
    with pytest.raises(UserError, match="steer is 2, which is about an SAE that reconstructs a residual stream"):
        evaluate.run(evaluation(place, runs["transcoder"], "transcoder", steer=2))
    with pytest.raises(UserError, match="names a target without a store"):
        evaluate.Evaluate(run, truth="world", target="x")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"hooks": ["mlp.2"]}, "a hook is 'mlp.2', expected one of resid, attn_out, mlp_normalized, mlp_in, mlp_out"),
        ({"hooks": ["mlp_in.-1"]}, "a hook is 'mlp_in.-1'"),
        ({"hooks": ["mlp_in.1", "mlp_in.1"]}, "lm.hooks is .* expected different ones"),
        ({"hooks": ["mlp_in.1"], "layer": 1}, "names both of layer and hooks"),
        ({}, "names neither of layer and hooks"),
    ],
)
def test_hooks_that_cannot_be_read_are_refused(source, message):
    with pytest.raises(UserError, match=message):
        Source("lm", **source)


def test_several_hooks_need_several_folders():
    with pytest.raises(UserError, match=r"names 2 hooks, but out=x one store; write \{hook\}"):
        Harvest("x", Source("lm", hooks=["mlp_in.1", "mlp_out.1"]), {"_target_": "jhsae.data.WordNetGlosses"}, rows=1)


@pytest.mark.parametrize("arm", ["transcoder-tree", "clt"])
def test_a_page_shows_what_fires_where_it_reads_and_what_it_writes_into_the_stream(place, tmp_path, arm):
    train(config_of(tmp_path, "run", arm, data=cfg.to_dict(config_of(place, f"{arm}-page", arm))["data"]))
    _, read, written = ARMS[arm]
    stores = paths(place, "held", read), paths(place, "held", written)
    config = browse.Browse(
        str(tmp_path / "run"), stores[0], str(tmp_path / "page.html"), str(place / "lm"), target=stores[1], neighbours=2
    )
    text = browse.run(config).read_text()
    assert f"{' and '.join(read)} to {' and '.join(written)}" in text
    with pytest.raises(UserError, match="writes something else than it reads; write target=FOLDER"):
        browse.run(replace(config, target=None))


def test_rows_of_several_layers_add_up_where_modules_write_and_not_where_streams_are_read():
    rows = np.arange(12, dtype=np.float32).reshape(2, 6)
    modules, streams = ([Hook(name, i) for i in range(2)] for name in ("mlp_out", "resid"))
    np.testing.assert_array_equal(into_stream(rows, modules), rows[:, :3] + rows[:, 3:])
    np.testing.assert_array_equal(into_stream(rows, streams), rows[:, 3:])
    np.testing.assert_array_equal(into_stream(rows, streams[:1]), rows)
