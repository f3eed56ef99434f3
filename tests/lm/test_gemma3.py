"""The language model of a Gemma 3 is read from a checkpoint of text and images too, in both of its spellings."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from lm.altered import IDS, logits_of, ours, settings, store, tensors, written
from lm.families import close, everything

from jhsae import lm
from jhsae.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 5, "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 7, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}  # fmt: skip
IMAGES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES |= {"image_size": 28, "patch_size": 14}
# config.json as on the hub: that of google/gemma-3-1b-pt, and text_config of google/gemma-3-4b-pt and 27b
ONE: dict[str, Any] = {
    "attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
    "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
    "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "vocab_size": 262144,
}  # fmt: skip
FOUR: dict[str, Any] = {
    "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
}  # fmt: skip
LARGE = FOUR | {"head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 16, "query_pre_attn_scalar": 168}


def random_model(**changes):
    torch.manual_seed(0)
    text = transformers.Gemma3TextConfig(**TEXT)
    config = transformers.Gemma3Config(text_config=text, vision_config=IMAGES, mm_tokens_per_image=4, **changes)
    config._attn_implementation = text._attn_implementation = "eager"
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.2 if weight.ndim == 2 else 0.4))
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def folder(model, tmp_path):
    return written(tmp_path, model)


def spelled(folder, how):
    """The tensors as another version of transformers, or a class without images, saves them."""
    found = tensors(folder)
    if how == "text":
        found = {name: value for name, value in found.items() if name.startswith("language_model.")}
        return {name.removeprefix("language_model.model."): value for name, value in found.items()}
    start = {"language_model.model.": "model.language_model.", "vision_tower.": "model.vision_tower."}
    start |= {"multi_modal_projector.": "model.multi_modal_projector."}
    return {new + name.removeprefix(old): v for name, v in found.items() for old, new in start.items() if old in name}


def test_every_layer_of_a_model_of_text_and_images(folder, model):
    loaded = lm.load(folder).model
    assert loaded.config.sliding == (True, False, True) and loaded.config.window < IDS.shape[1]
    with torch.no_grad():
        out = model(input_ids=torch.tensor(IDS), output_hidden_states=True, use_cache=False)
    logits, residuals = everything(loaded, jnp.asarray(IDS, jnp.int32))
    close(logits, out.logits.numpy())
    assert len(out.hidden_states) == 4
    for found, expected in zip(residuals[:-1], out.hidden_states[:-1], strict=True):
        close(found, expected.numpy())


@pytest.mark.parametrize("how", ["later", "text"])
def test_other_spellings_are_the_same_model(folder, how):
    before, found = ours(folder), spelled(folder, how)
    assert len(found) > 20 and not any(name.startswith("language_model.") for name in found)
    store(folder, found)
    np.testing.assert_array_equal(ours(folder), before)


def test_a_head_of_its_own(tmp_path):
    model = random_model(tie_word_embeddings=False)
    folder = written(tmp_path, model)
    assert "language_model.lm_head.weight" in tensors(folder)
    loaded = lm.load(folder).model
    assert loaded.config.extras == ("head",)
    close(ours(folder), logits_of(model))


def test_what_is_saved_is_a_model_of_text(folder, tmp_path):
    loaded = lm.load(folder)
    lm.save(loaded.model, loaded.tokenizer, tmp_path / "saved", dtype=jnp.float32)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert type(again).__name__ == "Gemma3ForCausalLM"
    close(ours(tmp_path / "saved"), logits_of(again))
    np.testing.assert_array_equal(ours(tmp_path / "saved"), ours(folder))


def test_a_tensor_of_the_language_model_that_no_one_reads_is_refused(folder):
    for new, message in (
        ("language_model.model.layers.0.self_attn.q_proj.bias", "is not part of a gemma3_text"),
        ("language_model.model.layers.3.input_layernorm.weight", "is beyond the 3 layers of"),
        ("audio_tower.weight", "belongs to a model of more than text"),
    ):
        store(folder, tensors(folder) | {new: torch.ones(48)})
        with pytest.raises(UserError, match=f"tensor {new} {message}"):
            lm.load(folder)
        store(folder, {name: value for name, value in tensors(folder).items() if name != new})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": "absent"}, "text_config is 'None', expected an object"),
        ({"text_config": [1]}, r"text_config is '\[1\]'"),
        ({"text_config": {"model_type": "gemma3n_text"}}, "text_config is of a 'gemma3n_text', expected gemma3_text"),
        ({"text_config": {"model_type": "gemma3_text"}}, "no hidden_size, intermediate_size, sliding_window"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
    ],
)
def test_settings_that_do_not_fit(folder, changes, message):
    settings(folder, **changes)
    with pytest.raises(UserError, match=message):
        lm.load(folder)


@pytest.mark.parametrize("given", [ONE, *({"model_type": "gemma3", "text_config": text} for text in (FOUR, LARGE))])
def test_the_settings_of_the_hub_are_read_as_transformers_reads_them(given):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

    text = given.get("text_config", given)
    expected = transformers.Gemma3TextConfig(**text)
    found = lm.config_of(given, "config.json")
    for name, value in (
        ("vocab_size", found.vocab), ("num_attention_heads", found.heads), ("num_key_value_heads", found.kv_heads),
        ("head_dim", found.head_dim), ("rms_norm_eps", found.norm_eps), ("sliding_window", found.window),
        ("query_pre_attn_scalar", found.query_pre_attn_scalar), ("max_position_embeddings", found.positions),
        ("hidden_size", found.embed), ("intermediate_size", found.hidden), ("num_hidden_layers", found.layers),
    ):  # fmt: skip
        assert value == getattr(expected, name), name
    assert found.sliding == tuple(kind == "sliding_attention" for kind in expected.layer_types)
    rotary = Gemma3RotaryEmbedding(expected)
    pairs = found.head_dim // 2
    close(found.global_rope.frequencies(pairs), rotary.full_attention_inv_freq.numpy(), 1e-6)
    close(found.local_rope.frequencies(pairs), rotary.sliding_attention_inv_freq.numpy(), 1e-6)
