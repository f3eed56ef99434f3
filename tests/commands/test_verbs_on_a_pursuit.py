"""Every verb on a pursuit, flat and as a forest of two and three levels, on tiny data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import small_worlds
import yaml

import jhsae
from jhsae import config
from jhsae.__main__ import main
from jhsae.commands import ablate, evaluate, export, report, world
from jhsae.commands.evaluate import Evaluate
from jhsae.errors import UserError
from jhsae.files.checksums import NAME
from jhsae.report.columns import COLUMNS
from jhsae.sae import PursuitSAE
from jhsae.sparsify import ExactL0, Threshold
from jhsae.training.config import Train
from jhsae.training.logs import JsonLines
from jhsae.training.run import train

PARTS = "jhsae.resampling"
FOREST = {
    "sae": {
        "_target_": "jhsae.sae.PursuitSAE", "embed": runs.EMBED, "levels": [8, 3, 2], "filled": 2,
        "budget": {"_target_": "jhsae.sparsify.MeanL0", "k": 3.0},
    },
    "objective": {"reconstruction": {"_target_": "jhsae.losses.SquaredError"},
                  "prefix": {"_target_": "jhsae.losses.Prefix"}},
    "weights": {"prefix": 0.4},
    "init": [],
    "constraint": {"_target_": "jhsae.constraint.AncestorsOut"},
    "resampling": {"_target_": f"{PARTS}.Several", "parts": [
        {"_target_": f"{PARTS}.RestartDead", "every": 2, "until": 6},
        {"_target_": f"{PARTS}.GrowLevel", "step": 4},
        {"_target_": f"{PARTS}.MergeAlike", "every": 3, "until": 6, "cosine": 0.7},
    ]},
    "stages": [{"name": "train", "steps": 8, "learning_rate": 1e-2}],
    "dead_window": 2,
    "checkpoint_every": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store, and two runs of one config: one undisturbed, one that was ended and resumed, on 8 devices."""
    folder = tmp_path_factory.mktemp("pursuit")
    runs.store(folder / "store")
    for name in ("run", "resumed"):
        path = runs.train_config(folder, folder / "store", folder / name, **FOREST)
        loaded = config.load(Train, path)
        if name == "resumed":
            with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
                patch.setattr(JsonLines, "write", _ended_at(5))
                train(loaded)
            assert not (folder / name / "sae").exists()
        train(loaded)
    return folder


def _ended_at(step):
    whole = JsonLines.write

    def write(self, row):
        if row["step"] >= step:
            raise InterruptedError
        whole(self, row)

    return write


@pytest.mark.slow
def test_a_resumed_run_is_the_undisturbed_one_and_loads_with_its_threshold(place):
    one, other = ((place / name / "sae" / "sae.safetensors").read_bytes() for name in ("run", "resumed"))
    assert one == other
    assert (place / "run" / "sae" / NAME).exists()
    sae, normalizer, _ = jhsae.load_sae(place / "run")
    assert isinstance(sae.budget, Threshold) and sae.budget.threshold > 0
    level = np.asarray(sae.forest.level_of)
    assert np.asarray(sae.occupied)[level == 2].any()  # the level that started empty has grown
    codes = sae.encode(normalizer(jnp.asarray(runs.activations(64)))[0])
    assert 0 < float(codes.l0().mean()) <= 6


def test_it_is_evaluated_and_reported_by_level(place):
    row = evaluate.run(Evaluate(str(place / "run"), str(place / "store"), rows=300))
    metrics = row["metrics"]
    assert {"l0_level_1", "dead_level_2", "to_level_1_ev_r2", "parents_only_ev_r2"} <= metrics.keys()
    assert {"sibling_cosine", "roots_after_merging", "encoder_macs", "parent_child_off_90_euclidean"} <= metrics.keys()
    html = report.run(report.Report([str(place / "run")], str(place / "report.html"))).read_text()
    for column in COLUMNS:
        if metrics.get(column.key) is not None:
            assert repr(metrics[column.key]) in html, column.key


@pytest.mark.slow
def test_it_is_evaluated_on_a_known_world(place):
    world.run(small_worlds.config(str(place / "world")))
    changes = FOREST | {
        "sae": FOREST["sae"] | {"embed": 24},
        "stages": [{"name": "t", "steps": 6, "learning_rate": 0.01}],
    }
    data = {"batch": 64, "live": {"_target_": "jhsae.worlds.WorldActivations", "path": str(place / "world")}}
    path = runs.train_config(place, place / "store", place / "on_world", **changes | {"data": data})
    train(config.load(Train, path))
    row = evaluate.run(Evaluate(str(place / "on_world"), truth=str(place / "world"), rows=600))
    assert [level["level"] for level in row["truth"]["levels"]] == [0, 1, 2]
    assert row["truth"]["edges"] is not None and row["metrics"]["roots"] <= 8


@pytest.mark.parametrize("format", ["torch", "folder", "delphi"])
def test_formats_that_hold_a_pursuit(place, format):
    store = {"store": str(place / "store"), "rows": 200}
    out = export.run(export.Export(str(place / "run"), format, str(place / f"out_{format}"), **store))
    assert any(out.iterdir())
    if format == "folder":
        found, here = jhsae.load_sae(out)[0], jhsae.load_sae(place / "run")[0]
        np.testing.assert_array_equal(found.rows, here.rows)


def test_saelens_has_no_place_for_it(place):
    with pytest.raises(UserError, match=r"PursuitSAE has no single encoder.*write format=torch"):
        export.run(export.Export(str(place / "run"), "saelens", str(place / "out_saelens")))


@pytest.mark.slow
def test_a_plan_counts_its_parameters(place, capsys):
    words = ["--topology", "cpu:2", "--mesh", "data=2,expert=1", "--json", str(place / "plan.json")]
    assert main(["plan", str(place / "run.yaml"), *words]) == 0
    found = json.loads((place / "plan.json").read_text())
    assert found["memory"]["parameters"] == 4 * (80 * runs.EMBED + runs.EMBED)
    assert found["fits"] is True and "data 2 x expert 1" in capsys.readouterr().out


@pytest.mark.slow
def test_budgets_and_candidates_are_axes_of_an_ablation(place, monkeypatch):
    runs_of = {
        "out": str(place / "ablation"),
        "train": str(place / "run.yaml"),
        "store": str(place / "store"),
        "lm": "embedded",
        "seeds": [0],
        "axes": {
            "budget": {"exact": ["sae.budget={_target_: jhsae.sparsify.ExactL0, k: 3}"]},
            "depth": {"one level": ["sae.levels=[24]", "sae.filled=null", "objective.prefix=null",
                                    "weights.prefix=null",
                                    "resampling={_target_: jhsae.resampling.RestartDead, every: 2, until: 6}"]},
        },
    }  # fmt: skip
    (place / "ablate.yaml").write_text(yaml.safe_dump(runs_of))
    whole = evaluate.run  # the store of this test belongs to no language model
    monkeypatch.setattr(ablate.evaluate, "run", lambda c: whole(Evaluate(c.run, c.store, rows=200)))
    out = ablate.run(config.load(ablate.Ablate, place / "ablate.yaml"))
    table = (out / "table.md").read_text()
    assert "| budget | exact | 1 |" in table and "| depth | one level | 1 |" in table


@pytest.mark.slow
def test_bfloat16_products_give_nearly_the_same_run():
    x = runs.activations(128)
    saes = [
        jhsae.fit(PursuitSAE(runs.EMBED, (8, 3), ExactL0(3, 1), key=jax.random.key(0)), x, steps=3, batch=64,
                  precision=precision)[1][-1]
        for precision in ("float32", "bfloat16")
    ]  # fmt: skip
    assert saes[0]["loss"] != saes[1]["loss"] == pytest.approx(saes[0]["loss"], rel=0.05)
