"""Every tensor is read, unneeded or refused; heads and files are chosen as transformers chooses them."""

import json
import os

import numpy as np
import pytest
from lm.altered import ours, random_model, settings, store, tensors, theirs, written
from lm.families import close

from jhsae import lm
from jhsae.errors import UserError

torch = pytest.importorskip("torch")
FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3", "GPTNeoX", "GPT2"]


def family(kind, folder, **more):
    sizes = {"head_dim": 12} if kind in ("Qwen3", "Gemma2", "Gemma3") else {}
    sizes |= {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}} if kind == "GPTNeoX" else {}
    return written(folder, random_model(kind, **sizes | more))


@pytest.fixture
def folder(tmp_path):
    return family("Llama", tmp_path)


def change(folder, new, *gone):
    found = tensors(folder)
    store(folder, {name: value for name, value in found.items() if name not in gone} | new)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "is not part of a llama"),
        ("model.layers.0.self_attn.q_norm.weight", "is not part of a llama"),
        ("model.layers.0.post_feedforward_layernorm.weight", "is not part of a llama"),
        ("model.layers.2.input_layernorm.weight", "is beyond the 2 layers of .*config.json"),
        ("lm_head.bias", "is not part of a llama"),
        ("model.norm.bias", "is not part of a llama"),
        ("score.weight", "belongs to a head for another task"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", r"an adapter \(LoRA\), .* merge it"),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", r"an adapter \(LoRA\)"),
        ("vision_tower.patch.weight", "belongs to a model of more than text"),
        ("something", "is not part of a llama"),
    ],
)
def test_what_no_one_reads_is_refused(folder, new, message):
    change(folder, {new: torch.ones(48)})
    with pytest.raises(UserError, match=f"tensor {new} {message}" if "adapter" not in message else message):
        lm.load(folder)
    with pytest.raises(UserError, match=message):
        lm.load(folder, layers=0)  # the first layers alone would be another model too


def test_buffers_that_older_versions_saved_are_not_needed(folder, tmp_path):
    before = ours(folder)
    change(folder, {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(6) for i in range(2)})
    np.testing.assert_array_equal(ours(folder), before)
    neox = family("GPTNeoX", tmp_path / "neox", max_position_embeddings=32)
    before = ours(neox)
    parts = {"bias": torch.ones(1, 1, 4, 4, dtype=torch.bool), "masked_bias": torch.tensor(-1e9)}
    parts["rotary_emb.inv_freq"] = torch.ones(3)
    change(neox, {f"gpt_neox.layers.{i}.attention.{k}": v.clone() for i in range(2) for k, v in parts.items()})
    np.testing.assert_array_equal(ours(neox), before)
    assert lm.load(neox).model.config.positions == 32


def embedding_of(folder):
    return next(name for name in tensors(folder) if "embed" in name or "wte" in name)


def head_of(kind):
    return ("embed_out" if kind == "GPTNeoX" else "lm_head") + ".weight"


@pytest.mark.few(4)
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_there_beats_the_flag(kind, tied, tmp_path):
    folder = family(kind, tmp_path, tie_word_embeddings=tied)
    head = head_of(kind)
    assert (head in tensors(folder)) != tied
    close(ours(folder), theirs(folder))
    change(folder, {head: torch.randn(64, 48, generator=torch.Generator().manual_seed(3))})
    loaded = lm.load(folder).model
    assert loaded.head is not None and loaded.config.extras[0] == "head"
    close(ours(folder), theirs(folder))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_tied_head_that_equals_the_embedding_is_not_kept_twice(kind, tmp_path):
    folder = family(kind, tmp_path, tie_word_embeddings=True)
    embedding = embedding_of(folder)
    change(folder, {head_of(kind): tensors(folder)[embedding].clone()})
    assert lm.load(folder).model.head is None
    close(ours(folder), theirs(folder))


@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX", "GPT2"])
def test_a_tied_embedding_may_stand_under_the_name_of_the_head(kind, tmp_path):
    folder = family(kind, tmp_path, tie_word_embeddings=True)
    embedding = embedding_of(folder)
    change(folder, {head_of(kind): tensors(folder)[embedding]}, embedding)
    close(ours(folder), theirs(folder))


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "GPTNeoX", "Gemma2", "Gemma3", "GPT2"])
def test_without_a_flag_the_family_decides(kind, tmp_path):
    tied = kind in ("Gemma2", "Gemma3", "GPT2")
    folder = family(kind, tmp_path, tie_word_embeddings=tied)
    settings(folder, tie_word_embeddings="absent")
    assert (lm.load(folder).model.head is None) == tied
    close(ours(folder), theirs(folder))


def test_the_later_name_of_the_head_of_a_neox(tmp_path):
    folder = family("GPTNeoX", tmp_path)
    change(folder, {"lm_head.weight": tensors(folder)["embed_out.weight"]}, "embed_out.weight")
    close(ours(folder), theirs(folder))


def test_an_untied_model_without_a_head_is_not_complete(folder):
    change(folder, {}, "lm_head.weight")
    with pytest.raises(UserError, match=r"no tensor lm_head\.weight .* not complete"):
        lm.load(folder)


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_single_file_comes_before_an_index(folder):
    index(folder, {"model.norm.weight": "model-00001-of-00002.safetensors"})
    close(ours(folder), theirs(folder))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../b/model.safetensors"}, "expected a path inside"),
        ({"a": "/etc/model.safetensors"}, "expected a path inside"),
        ({"a": 3}, "expected a path inside"),
        ({"a": "weights.bin"}, "expected safetensors files alone"),
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
        ({"a": "one.safetensors"}, "one.safetensors has no tensor a|tensor a is not part"),
        (
            {"model.norm.weight": "one.safetensors", "model.embed_tokens.weight": "no.safetensors"},
            "no.safetensors is missing",
        ),
    ],
)
def test_an_index_that_does_not_fit(folder, weight_map, message):
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    index(folder, weight_map)
    if weight_map and isinstance(weight_map, dict) and "model.embed_tokens.weight" in weight_map:
        from safetensors.torch import load_file, save_file

        found = load_file(folder / "one.safetensors")
        del found["model.embed_tokens.weight"]
        save_file(found, folder / "one.safetensors")
    with pytest.raises(UserError, match=message):
        lm.load(folder)


def test_shards_that_hold_a_tensor_twice_and_tensors_that_the_index_leaves_out(folder):
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    names = list(lm.tensors.tensor_header(folder / "one.safetensors"))
    index(folder, {names[0]: "one.safetensors"})
    close(ours(folder), ours(folder))  # transformers too reads the whole of every file that is named
    os.link(folder / "one.safetensors", folder / "two.safetensors")
    index(folder, {names[0]: "one.safetensors", names[1]: "two.safetensors"})
    with pytest.raises(UserError, match=r"one\.safetensors and two\.safetensors both hold"):
        lm.load(folder)


def test_sizes_are_compared_before_anything_is_read(folder):
    settings(folder, hidden_size=480_000_000)
    with pytest.raises(UserError, match=r"tensor .* is \(.*\), config.json makes it"):
        lm.load(folder)


def test_a_header_of_an_odd_length(folder):
    before = ours(folder)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    stop = 8 + int.from_bytes(whole[:8], "little")
    header = whole[8:stop].rstrip(b" ")
    header += b" " * (1 + len(header) % 2)
    assert len(header) % 2
    file.write_bytes(len(header).to_bytes(8, "little") + header + whole[stop:])
    np.testing.assert_array_equal(ours(folder), before)
    change(folder, {name: value.bfloat16() for name, value in tensors(folder).items()})
    assert lm.load(folder).model.layers == 2


def test_a_pipe_and_an_adapter_are_not_read(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config.json\)"):
        lm.load(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(UserError, match="is a FIFO"):
        lm.load(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(UserError, match="is a FIFO"):
        lm.load(folder)
