"""A family is one file: in the folder of the others, or in a package with an entry point; nothing else is changed."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from lm.families import close, everything
from lm.tiny import ids, tiny
from safetensors.numpy import save_file

from jhsae import lm
from jhsae.activations.config import Harvest, Source
from jhsae.commands.harvest import harvest
from jhsae.data import Store
from jhsae.errors import UserError
from jhsae.lm import families
from jhsae.parallel.mesh import MeshShape, make_mesh

FILE = Path(__file__).parent / "toy_family.py"
SIZES = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}


@pytest.fixture
def in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "more").mkdir()
    shutil.copy(FILE, tmp_path / "more" / "toy.py")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "more")])
    families._files.cache_clear()
    yield
    families._files.cache_clear()


def package(folder, value):
    about = folder / "my_package-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[jhsae.families]\ntoy = {value}\n")
    return folder


@pytest.fixture
def in_a_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(package(tmp_path / "site", "my_package_of_toys:FAMILY"))
    shutil.copy(FILE, tmp_path / "site" / "my_package_of_toys.py")


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of a toy, and its weights."""
    draw = np.random.default_rng(0).normal
    weights = {"embed.weight": draw(size=(31, 16)), "norm.weight": draw(size=16)}
    for i in range(3):
        weights |= {f"block.{i}.up.weight": draw(size=(24, 16)), f"block.{i}.down.weight": draw(size=(16, 24))}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    (tmp_path / "model").mkdir()
    save_file(weights, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text(json.dumps(SIZES | {"model_type": "toy"}))
    tiny()[1].save_pretrained(tmp_path / "model")
    return tmp_path / "model", weights


def oracle(weights, tokens):
    x = weights["embed.weight"][tokens]
    streams = [x]
    for i in range(3):
        mean = np.stack([x[:, : t + 1].mean(axis=1) for t in range(x.shape[1])], axis=1)
        x = x + np.tanh(mean @ weights[f"block.{i}.up.weight"].T) @ weights[f"block.{i}.down.weight"].T
        streams.append(x)
    normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * weights["norm.weight"]
    return normed @ weights["embed.weight"].T, streams


@pytest.mark.parametrize("how", ["in_the_folder", "in_a_package"])
def test_one_file_is_enough(how, folder, tmp_path, request):
    place, weights = folder
    with pytest.raises(UserError, match="model_type is 'toy', supported"):
        lm.load(place)
    request.getfixturevalue(how)
    assert "toy" in families.supported()
    loaded = lm.load(place)
    expected, streams = oracle(weights, np.asarray(ids()))
    logits, residuals = everything(loaded.model, ids())
    close(logits, expected)
    close(residuals, np.stack(streams))
    placed = lm.load(place, mesh=make_mesh(MeshShape(data=2, expert=4)))
    assert not placed.model.blocks.up.sharding.is_fully_replicated
    close(everything(placed.model, ids())[0], expected)
    lm.save(loaded.model, loaded.tokenizer, tmp_path / "saved", dtype=jnp.float32)
    again = lm.load(tmp_path / "saved", layers=1)
    assert again.model.layers == 1
    close(again.model.residual(ids(), 1), streams[1])


def test_it_is_harvested(in_the_folder, folder, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(["dog plant dog"] * 30))
    text = {"_target_": "jhsae.data.TextFiles", "paths": [str(tmp_path / "text.txt")]}
    harvest(Harvest(str(tmp_path / "store"), Source(str(folder[0]), 2), text, rows=40, context=8, batch=4))
    store = Store.open(tmp_path / "store")
    assert (store.rows, store.embed, store.manifest.layer) == (40, 16, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package:FAMILY", r"toy = no_such_package:FAMILY of jhsae\.families cannot be loaded"),
        ("json:FAMILY", "cannot be loaded"),
        ("json:dumps", r"toy = json:dumps of jhsae\.families is a function, expected a jhsae\.lm\.Family"),
    ],
)
def test_a_broken_package_is_named(value, message, folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(package(tmp_path / "site", value))
    with pytest.raises(UserError, match=message):
        lm.load(folder[0])
    assert lm.load("embedded", layers=0).model.layers == 0, "other families are not concerned"


def test_a_package_does_not_replace_a_family(folder, tmp_path, monkeypatch):
    site = package(tmp_path / "site", "no_such_package:FAMILY")
    entry = site / "my_package-1.0.dist-info" / "entry_points.txt"
    entry.write_text(entry.read_text().replace("toy", "gemma2"))
    monkeypatch.syspath_prepend(site)
    assert families.supported().count("gemma2") == 1 and lm.load("embedded", layers=0).model.layers == 0
