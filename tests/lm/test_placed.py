"""A model on a mesh gives the same numbers as on one device, and only the slices that are needed are read."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_compile
from lm.families import VOCAB, close, everything, write
from lm.tiny import ids, logits, tiny

from jhsae import lm
from jhsae.leaf import describe
from jhsae.lm.weights import Weights
from jhsae.parallel.mesh import MeshShape, batch_sharding, make_mesh

MESH = MeshShape(data=2, expert=4)
WORKER = Path(__file__).parent / "load_in_two_processes.py"


@pytest.fixture(scope="module", params=["gemma2", "gemma3", "llama-biased", "gpt_neox", "gpt2"])
def case(request, tmp_path_factory):
    return write(request.param, tmp_path_factory.mktemp(request.param))


def leaves(model):
    return list(zip(jax.tree.leaves(describe(model)), jax.tree.leaves(model), strict=True))


def test_a_placed_model_computes_the_same(case):
    mesh = make_mesh(MESH)
    found, residuals = everything(case.model(mesh=mesh), jax.device_put(ids(VOCAB), batch_sharding(mesh)))
    close(found, case.logits)
    for x, expected in zip(residuals[:-1], case.hidden[:-1], strict=True):
        close(x, expected)


def test_the_weights_are_those_of_one_device(case):
    jax.tree.map(np.testing.assert_array_equal, case.model(mesh=make_mesh(MESH)), case.model())


def test_heads_hidden_and_vocabulary_are_split_where_they_can_be(case):
    placed = case.model(mesh=make_mesh(MESH))
    split = {a for leaf, array in leaves(placed) for a, m in zip(leaf.axes, array.sharding.spec, strict=True) if m}
    assert (
        split
        == {
            "Gemma2": {"queries", "hidden"},  # two key-value heads cannot be shared by four devices, nor 61 tokens
            "Gemma3": {"queries", "hidden"},
            "GPT2": {"queries", "hidden"},
            "Llama": {"queries", "keys", "hidden"},
            "NeoX": {"queries", "fused", "hidden", "vocab"},
        }[type(placed).__name__]
    )
    embedding = placed.embedding.addressable_shards[0].data.shape
    assert embedding == ((16, 32) if "vocab" in split else (61, 32))


def test_slices_are_read_once_and_are_those_of_the_shards(case, monkeypatch):
    read, original = [], Weights.read

    def counted(self, name, index, dtype):
        values = original(self, name, index, dtype)
        read.append((name, tuple((part.start, part.stop) for part in index), values.size))
        return values

    monkeypatch.setattr(Weights, "read", counted)
    model = case.model(mesh=make_mesh(MESH))
    assert len(set(read)) == len(read), "what two devices share is read once"
    assert sum(size for *_, size in read) == sum(array.size for _, array in leaves(model))
    for leaf, array in leaves(model):
        pattern = model.tensors[leaf.path]
        names = {pattern.format(i) for i in range(model.layers)}
        shard = array.addressable_shards[0].data.size // (model.layers if "{}" in pattern else 1)
        parts = 3 if "qkv" in leaf.axes else 1  # queries, keys and values stand one after another
        assert {size * parts for name, _, size in read if name in names} == {shard}, leaf.path


@pytest.mark.slow
def test_two_processes_read_half_each_and_agree(tmp_path):
    settings = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    settings |= {"num_attention_heads": 8, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
    draw = np.random.default_rng(0).normal
    shapes = lm.shapes(lm.config_of(settings, "settings"))
    model = jax.tree.map(lambda s: jnp.asarray(0.3 * draw(size=s.shape), s.dtype), shapes)
    lm.save(model, tiny()[1], tmp_path / "model", dtype=jnp.float32)
    np.save(tmp_path / "ids.npy", ids(64))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": quick_compile.on_devices(4),
        "PYTHONPATH": str(Path(lm.__file__).parents[2]),
    }
    commands = [[sys.executable, str(WORKER), address, str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        errors = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], errors
    split = [s.is_fully_replicated for s in jax.tree.leaves(lm.shardings(shapes, make_mesh(MeshShape(1, 8))))]
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    half = sum(size if whole else size // 2 for size, whole in zip(sizes, split, strict=True))
    expected = logits(model, ids(64))
    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["entries"] == half < 0.51 * sum(sizes)
        close(report["logits"], expected)
