"""Checkpoints round-trip, shards read like one file, and every kind of broken folder is named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm.tiny import ids, logits, residual, tiny
from safetensors.numpy import load_file, save_file

from jhsae import lm
from jhsae.errors import UserError


@pytest.fixture
def folder(tmp_path):
    lm.save(*tiny(), tmp_path / "model", dtype=jnp.float32)
    return tmp_path / "model"


def edit(folder, **changes):
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v != "absent"}))


def shard(folder):
    """Split model.safetensors in two, as save_pretrained does with large models."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({n: tensors[n] for n in held}, folder / file)
    index = {"metadata": {}, "weight_map": {n: file for file, held in shards.items() for n in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def assert_same_weights(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_roundtrip_is_exact(folder):
    model, _ = tiny()
    loaded = lm.load(folder)
    assert_same_weights(loaded.model, model)
    assert loaded.model.config == model.config
    assert loaded.tokenizer("dog plant")["input_ids"] == [4, 5] and loaded.name == str(folder)


def test_saves_bfloat16_unless_told_otherwise(tmp_path):
    model, tokenizer = tiny()
    lm.save(model, tokenizer, tmp_path)
    assert {str(t.dtype) for t in load_file(tmp_path / "model.safetensors").values()} == {"bfloat16"}
    rounded = lm.load(tmp_path).model
    assert_same_weights(rounded, jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), model))
    half = lm.load(tmp_path, dtype=jnp.bfloat16).model
    assert half.embedding.dtype == jnp.bfloat16 and logits(half, ids()).dtype == jnp.float32
    np.testing.assert_allclose(logits(half, ids()), logits(rounded, ids()), atol=0.2)


def test_transformers_loads_what_we_save(folder):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(np.asarray(ids()))).logits.numpy()
    np.testing.assert_allclose(logits(lm.load(folder).model, ids()), expected, atol=1e-5)


def test_shards_read_like_one_file(folder):
    whole = lm.load(folder).model
    shard(folder)
    assert_same_weights(lm.load(folder).model, whole)


@pytest.mark.parametrize("layers", [0, 2, 4])
def test_first_layers_alone(folder, layers):
    whole, part = lm.load(folder).model, lm.load(folder, layers=layers).model
    assert part.layers == layers and part.blocks.q.shape[0] == layers
    np.testing.assert_allclose(residual(part, ids(), layers), residual(whole, ids(), layers), atol=1e-6)


def test_layers_beyond_the_limit_are_not_read(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "layers.3." not in n}, folder / "model.safetensors")
    assert lm.load(folder, layers=3).model.layers == 3
    with pytest.raises(UserError, match=r"no tensor model\.layers\.3\..*not complete"):
        lm.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "rope_theta": "absent"},
        {"rope_parameters": "absent", "rope_theta": 100.0},
        {"rope_theta": "absent", "rope_parameters": "absent", "expect": 10000.0},
    ],
)
def test_both_spellings_of_rope_theta(folder, changes):
    expected = changes.pop("expect", 100.0)
    edit(folder, **changes)
    assert lm.load(folder).model.config.rope_theta == expected


def test_layer_types_default_to_alternation(folder):
    edit(folder, layer_types="absent")
    assert lm.load(folder).model.config.sliding == (True, False, True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma', supported: gemma2, "),
        ({"model_type": "absent"}, "model_type is 'None'"),
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu', only 'gelu_pytorch_tanh'"),
        ({"tie_word_embeddings": False}, r"no tensor lm_head\.weight"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected true or false"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"head_dim": "absent", "vocab_size": "absent"}, "no vocab_size, head_dim"),
        ({"layer_types": ["full_attention"]}, "layer_types needs 4 entries"),
    ],
)
def test_unsupported_settings(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(UserError, match=message):
        lm.load(folder)


@pytest.mark.parametrize("layers", [-1, 5])
def test_layers_out_of_range(folder, layers):
    with pytest.raises(UserError, match=f"layers={layers} of the 4"):
        lm.load(folder, layers=layers)


def test_missing_files(folder):
    with pytest.raises(UserError, match="is no folder, and the Hugging Face hub did not give it"):
        lm.load("nowhere/at-all")
    with pytest.raises(UserError, match="is no folder"):
        lm.load(folder / "absent")
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"shard model-00002-of-00002\.safetensors is missing"):
        lm.load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors and no"):
        lm.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        lm.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        lm.load(folder)


def test_save_does_not_overwrite(folder):
    with pytest.raises(UserError, match="holds a model already"):
        lm.save(*tiny(), folder)
