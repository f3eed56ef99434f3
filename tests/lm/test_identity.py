"""A language model is known by its content: another path, other shards and other notes are the same model."""

import json
import shutil

import numpy as np
import pytest
from lm.test_checkpoint import shard
from lm.tiny import tiny
from safetensors.numpy import load_file, save_file

from jhsae import lm
from jhsae.lm.identity import _sample


@pytest.fixture
def folder(tmp_path):
    lm.save(*tiny(), tmp_path / "model", dtype=np.float32)
    return tmp_path / "model"


def sha256(folder):
    return lm.load(folder).sha256


def config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_neither_path_nor_shards_nor_notes_matter(folder, tmp_path):
    before = sha256(folder)
    assert len(before) == 64 and lm.load(folder, layers=1).sha256 == before
    shutil.copytree(folder, tmp_path / "copy")
    shard(tmp_path / "copy")
    config(tmp_path / "copy", transformers_version="9", _name_or_path="elsewhere", use_cache=False)
    assert sha256(tmp_path / "copy") == before


@pytest.mark.parametrize("small", [True, False], ids=["whole", "sampled"])
def test_weights_and_settings_matter(folder, monkeypatch, small):
    if not small:
        monkeypatch.setattr("jhsae.lm.identity.WHOLE_CHECKPOINT", 0)
        monkeypatch.setattr("jhsae.lm.identity.WHOLE_TENSOR", 64)
        monkeypatch.setattr("jhsae.lm.identity.BLOCK", 16)
    seen = {sha256(folder)}
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.layers.3.mlp.up_proj.weight"):
        changed = tensors | {name: tensors[name] * np.float32(1.0001)}
        save_file(changed, folder / "model.safetensors")
        seen.add(sha256(folder))
    save_file(tensors, folder / "model.safetensors")
    config(folder, rms_norm_eps=1e-5)
    seen.add(sha256(folder))
    assert len(seen) == 4


def test_the_sample_covers_both_ends():
    values = np.zeros(10**6, np.uint8)
    whole = _sample(values, 2**16)
    assert len(whole) == 16 * 4096
    for place in (0, len(values) - 1):
        values[:] = 0
        values[place] = 1
        assert _sample(values, 2**16) != whole


def test_the_embedded_model_has_one():
    assert lm.load("embedded", layers=0).sha256 == lm.load(lm.bundled(), layers=0).sha256
