"""`fit` is `jhsae train` for scripts: the same steps, every key that decides the result, dead features too."""

import json
from dataclasses import fields
from inspect import signature

import jax
import numpy as np
import pytest
import runs

from jhsae import config
from jhsae.data import CenterScale, Store
from jhsae.errors import UserError
from jhsae.losses import AuxK, L1Active, Objective, SquaredError
from jhsae.optimizer import adam
from jhsae.parallel.mesh import make_mesh
from jhsae.resampling import Resample
from jhsae.sae import FlatSAE
from jhsae.schedule import Constant, Linear
from jhsae.sparsify import TopK
from jhsae.training import fit as fitting
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import StageConfig, Train
from jhsae.training.fit import fit
from jhsae.training.loop import DivergedError
from jhsae.training.recipe import build_sae
from jhsae.training.run import train
from jhsae.training.sharding import init_sharded

FEATURES, BATCH = 24, 64


def part(name, **arguments):
    return {"_target_": f"jhsae.{name}", **arguments}


def fresh(seed=0):
    return FlatSAE(runs.EMBED, FEATURES, TopK(3), key=jax.random.key(seed))


def test_every_key_of_a_run_that_decides_the_result_is_an_argument():
    files = {"out", "data", "sae", "init", "metric", "teacher", "loggers"}
    files |= {"checkpoint_every", "max_to_keep", "profile_steps", "more", "more_rate"}
    wanted = {f.name for cls in (Train, StageConfig) for f in fields(cls)} - files - {"name"}
    assert wanted <= signature(fit).parameters.keys()


def test_fit_and_train_are_the_same_steps(tmp_path):
    """Two stages, weights by a schedule, a frozen leaf, dead features, resampling: equal to the bit."""
    store = runs.store(tmp_path / "store")
    sae = part("sae.FlatSAE", embed=runs.EMBED, features=96, sparsifier=part("sparsify.TopK", k=1))
    path = runs.train_config(
        tmp_path,
        tmp_path / "store",
        tmp_path / "run",
        sae=sae,
        init=[],
        objective={"mse": part("losses.SquaredError"), "l1": part("losses.L1Active"), "auxk": part("losses.AuxK", k=4)},
        weights={"l1": part("schedule.Linear", start=0.0, end=0.01, steps=10), "auxk": 0.1},
        stages=[
            {"name": "a", "steps": 12, "learning_rate": 1e-2, "freeze": ["b_enc"], "clip": 0.5},
            {"name": "b", "steps": 8, "learning_rate": part("schedule.Constant", value=5e-3), "weights": {"l1": 0.02}},
        ],
        resampling=part("resampling.Resample", every=6, until=12),
        optimizer=part("optimizer.adam", b1=0.8),
        dead_window=3,
        feature_sampling_window=4,
        mesh={"data": 1, "expert": 8},
    )
    settings = config.load(Train, path)
    init_key, _ = jax.random.split(jax.random.key(0))
    start = init_sharded(lambda: build_sae(settings, init_key), make_mesh(settings.mesh))
    train(settings)
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained, mine = fit(
        start,
        Store.open(tmp_path / "store"),
        batch=BATCH,
        objective={"mse": SquaredError(), "l1": L1Active(), "auxk": AuxK(4)},
        weights={"l1": Linear(0.0, 0.01, 10), "auxk": 0.1},
        stages=[
            StageConfig("a", 12, 1e-2, freeze=["b_enc"], clip=0.5),
            StageConfig("b", 8, Constant(5e-3), weights={"l1": 0.02}),
        ],
        resampling=Resample(6, 12),
        optimizer=adam(b1=0.8),
        normalizer=CenterScale().fit(store),
        dead_window=3,
        feature_sampling_window=4,
        log_every=1,
        mesh=fitting.MeshShape(1, 8),
    )
    finite = [{k: v for k, v in row.items() if v == v} for row in mine]
    assert finite == rows
    assert any(row["dead"] > 0 for row in rows) and any(row["auxk"] > 0 for row in rows)
    loaded, _, _ = load_sae(tmp_path / "run")
    np.testing.assert_array_equal(loaded.W_dec, trained.W_dec)


def test_a_term_about_dead_features_acts_in_a_short_run():
    x = runs.activations()
    objective = Objective({"mse": SquaredError(), "auxk": AuxK()}, {"auxk": 0.1})
    sae = FlatSAE(runs.EMBED, 96, TopK(1), key=jax.random.key(0))
    _, rows = fit(sae, x, steps=60, batch=BATCH, objective=objective)
    assert rows[-1]["dead"] > 0 and any(row["auxk"] > 0 for row in rows)
    with pytest.warns(UserWarning, match="no feature can be dead in 20 steps with a dead window of 1000, so that auxk"):
        _, rows = fit(sae, x, steps=20, batch=BATCH, objective=objective, dead_window=1000)
    assert all(row["auxk"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "neither steps nor stages; write steps=1000"),
        ({"steps": 0}, "fit: steps is 0, expected at least 1"),
        ({"steps": 3, "batch": 0}, "fit: batch is 0, expected at least 1"),
        ({"steps": 3, "learning_rate": -0.1}, "fit: learning_rate is -0.1, expected at least 0"),
        ({"steps": 3, "learning_rate": Linear(0.1, -0.1, 2)}, "learning_rate is -0.1 at step 2, expected at least 0"),
        ({"steps": 3, "clip": 0.0}, "fit: clip is 0.0, expected more than 0"),
        ({"steps": 3, "weights": {"reconstruction": 0.0}}, "nothing to minimise"),
        ({"steps": 3, "weights": {"recon": 1.0}}, "did you mean 'reconstruction'"),
        ({"steps": 3, "objective": {}}, "fit: objective is {}, expected at least one entry"),
        ({"steps": 3, "freeze": ["nothing"]}, "pattern 'nothing' matches no parameter"),
        ({"steps": 3, "stages": [StageConfig("a", 3, 0.1)]}, "stages and steps; write them inside"),
        ({"stages": []}, "fit: stages is \\[\\], expected at least one entry"),
        ({"steps": 3, "seed": -1}, "fit: seed is -1, expected at least 0"),
        ({"steps": 3, "dead_window": 0}, "fit: dead_window is 0, expected at least 1"),
        ({"steps": 3, "log_every": 0}, "fit: log_every is 0, expected at least 1"),
    ],
)
def test_nonsense_is_refused_here_too(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(fresh(), runs.activations(128), **arguments)


def test_a_diverging_fit_speaks_of_no_checkpoint():
    with pytest.raises(DivergedError) as ended:
        fit(fresh(), runs.activations(128), steps=4, batch=64, learning_rate=1e38, clip=None, log_every=1)
    assert "not finite" in str(ended.value) and "checkpoint" not in str(ended.value)
