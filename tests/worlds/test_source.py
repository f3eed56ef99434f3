"""Training straight from a world: the stream is exact to resume, on any mesh, and what it says of itself is true."""

import json
import shutil
from itertools import islice

import equinox as eqx
import jax
import numpy as np
import pytest
import runs
from small_worlds import config, world

from jhsae import config as cfg
from jhsae.data import Standardize
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape, make_mesh
from jhsae.training.checkpoint import load_sae
from jhsae.training.config import Train
from jhsae.training.run import train
from jhsae.worlds import Hierarchy, WorldActivations, build_world, save_world, source

BATCH, EMBED = 32, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    built, generators = build_world(config(noise=0.1))
    return save_world(built, tmp_path_factory.mktemp("worlds") / "world", generators)


def live(folder, devices: int = 8, **options) -> WorldActivations:
    return WorldActivations(str(folder), **{"sample_rows": 500} | options, mesh=make_mesh(MeshShape(), devices))


@pytest.fixture(scope="module")
def stream(folder) -> np.ndarray:
    return np.stack([np.asarray(x) for x in islice(live(folder).batches(BATCH, 0), 6)])


def test_batches_are_the_world_s_and_never_come_twice(folder, stream):
    assert stream.shape == (6, BATCH, EMBED) and stream.dtype == np.float32
    assert len(np.unique(stream.reshape(-1, EMBED), axis=0)) == 6 * BATCH
    w = live(folder).world
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), source.STREAM), 2)
    np.testing.assert_allclose(stream[2], w.sample(key, BATCH)[0], rtol=1e-5, atol=1e-5)


def test_resuming_is_exact(folder, stream):
    fresh = live(folder).batches(BATCH, 0)
    next(fresh)
    fresh.set_state(json.loads(json.dumps({"next_index": 3})))
    np.testing.assert_array_equal(np.stack([np.asarray(x) for x in islice(fresh, 3)]), stream[3:])
    assert fresh.get_state() == {"next_index": 6}


@pytest.mark.slow
def test_other_meshes_give_the_same_batches_and_another_seed_others(folder, stream):
    found = next(live(folder, 2).batches(BATCH, 0))
    np.testing.assert_allclose(found, stream[0], rtol=1e-5, atol=1e-5)
    assert not np.allclose(next(live(folder).batches(BATCH, 1)), stream[0])
    with pytest.raises(UserError, match="batch is 20, which 8 devices cannot share"):
        live(folder).batches(20, 0)


def test_rows_are_drawn_on_their_devices(folder):
    """Without one collective, and split as a batch is."""
    batches = live(folder).batches(BATCH, 0)
    assert next(batches).sharding.spec == jax.P(("host", "data"))
    program = batches._draw.lower(batches._world, batches._put(np.uint32(0))).compile().as_text()
    assert not [word for word in ("all-gather", "all-reduce", "all-to-all", "collective") if word in program]


def test_blocks_give_the_rows_of_the_whole(folder, monkeypatch):
    """Where the codes of a batch would take much memory."""
    w = live(folder).world
    keys = jax.random.split(jax.random.key(0), 30)
    whole = eqx.filter_jit(source.activations)(w, keys)
    for codes, some in ((7 * w.size, 30), (1, 7)):
        monkeypatch.setattr(source, "CODES", codes)
        found = eqx.filter_jit(lambda w, keys: source.activations(w, keys))(w, keys[:some])
        np.testing.assert_allclose(found, whole[:some], rtol=1e-5, atol=1e-6)


def test_the_sample_and_its_statistics(folder):
    found = live(folder)
    rows = found.read(0, found.rows)
    assert rows.shape == (500, EMBED) and found.manifest.rows > 10**9 and found.manifest.embed == EMBED
    np.testing.assert_allclose(found.manifest.mean, rows.mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(found.read(3, 40), live(folder, 1).read(3, 40))
    scaled = Standardize().fit(found)(jax.numpy.asarray(rows))[0]
    np.testing.assert_allclose(np.asarray(scaled).std(axis=0), 1, rtol=1e-3)


def test_the_identity_is_that_of_all_that_determines_activations(folder, tmp_path):
    """A copy is the same; another number, edge, flag or noise is not."""
    shutil.copytree(folder, tmp_path / "copy")
    first = live(folder)
    assert first.identity() == live(tmp_path / "copy", sample_rows=7).identity()
    pair = Hierarchy.of_parents([-1, 0, 0])
    flagged = [Hierarchy.of_parents([-1, 0, 0], **{flag: frozenset({0})}) for flag in ("exclusive", "scaled")]
    others = [world(pair), world(Hierarchy(3)), world(pair, 0.4), world(pair, noise=0.1), *map(world, flagged)]
    others += [world(pair, means=np.full(3, 2, np.float32)), world(pair, stds=np.full(3, 2, np.float32))]
    assert len({source.identity(w) for w in others}) == len(others)


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = ["data.store=null", "data.live._target_=jhsae.worlds.WorldActivations", f"data.live.path={folder}"]

    def run(out):
        changes = {"stages": [{"name": "all", "steps": 20, "learning_rate": 1e-2}]}
        file = runs.train_config(tmp_path, tmp_path / "none", out, **changes)
        train(cfg.load(Train, file, [*given, "sae.embed=24", "data.live.sample_rows=500"]))

    run(whole)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and rows[-1]["explained_variance"] > rows[0]["explained_variance"] + 0.1
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "sae")
    shutil.rmtree(cut / "checkpoints" / "20")
    run(cut)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (cut / "sae" / "sae.safetensors").read_bytes() == (whole / "sae" / "sae.safetensors").read_bytes()
    reads = load_sae(whole)[2]["reads"]
    assert reads == {"model": str(folder), "layer": 0, "model_sha256": live(folder).identity()}
