"""A config.json is read as transformers reads it, or refused in one sentence that names the setting."""

import jax.numpy as jnp
import numpy as np
import pytest
from lm.altered import IDS, SIZES, ours, random_model, settings, theirs, written
from lm.families import close

from jhsae import lm
from jhsae.errors import UserError

HEADS = {"head_dim": 12}
BASE = {
    "llama": SIZES | {"model_type": "llama", "rms_norm_eps": 1e-6},
    "mistral": SIZES | {"model_type": "mistral", "rms_norm_eps": 1e-6, "sliding_window": None},
    "qwen2": SIZES | {"model_type": "qwen2", "rms_norm_eps": 1e-6},
    "qwen3": SIZES | HEADS | {"model_type": "qwen3", "rms_norm_eps": 1e-6},
    "gemma2": SIZES | HEADS | {"model_type": "gemma2", "rms_norm_eps": 1e-6, "sliding_window": 8}
    | {"query_pre_attn_scalar": 12, "attn_logit_softcapping": 50.0, "final_logit_softcapping": None},
    "gemma3_text": SIZES | HEADS | {"model_type": "gemma3_text", "sliding_window": 8},
    "gpt2": {"model_type": "gpt2", "vocab_size": 64, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 16}
    | {"layer_norm_epsilon": 1e-5},
    "gpt_neox": SIZES | {"model_type": "gpt_neox", "layer_norm_eps": 1e-5, "rotary_pct": 0.5},
}  # fmt: skip


def read(family, **changes):
    found = BASE[family] | changes
    return lm.config_of({key: value for key, value in found.items() if value != "absent"}, "config.json")


THEIRS = {"gpt2": {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}}
THEIRS["gpt2"]["intermediate_size"] = "n_inner"


@pytest.mark.parametrize("family", BASE)
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, 10**12, 1.5, "many", None, True, [4], {}])
def test_sizes_are_whole_numbers(family, key, value):
    assert read(family).layers == 2
    key = THEIRS.get(family, {}).get(key, key)
    if (key, value) == ("n_inner", None):
        assert read(family, n_inner=None).hidden == 4 * 48
        return
    with pytest.raises(UserError, match=rf"config.json: {key} is .*, expected a whole number from 1 to"):
        read(family, **{key: value})


@pytest.mark.parametrize("family", BASE)
@pytest.mark.parametrize("value", [-1, 10**9, "two", None, 2.0])
def test_the_number_of_layers_is_bounded(family, value):
    key = THEIRS.get(family, {}).get("num_hidden_layers", "num_hidden_layers")
    with pytest.raises(UserError, match=rf"{key} is .*, expected a whole number from 0 to 10000"):
        read(family, **{key: value})


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a number of at least 0"),
        ("llama", {"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps is 1000.*, expected a number"),
        ("gpt_neox", {"layer_norm_eps": None}, "layer_norm_eps is None"),
        ("llama", {"head_dim": 0}, "head_dim is 0"),
        ("llama", {"head_dim": 7}, "head_dim is 7, expected an even number"),
        ("llama", {"hidden_size": 50}, "hidden_size 50 over 4 heads; write a multiple of 4, or head_dim"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ("qwen3", {"head_dim": None}, "head_dim is None"),
        ("llama", {"attention_bias": "yes"}, "attention_bias is 'yes', expected true or false"),
        ("llama", {"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ("llama", {"rope_parameters": [1]}, "rope parameters are .*expected an object"),
        ("llama", {"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0, expected a number above 0"),
        ("llama", {"rope_theta": "ten"}, "rope_theta is 'ten'"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0, expected a number above 0"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "rope_type is 'dynamic', supported"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope', supported"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}},
            "hold 'mrope_section'",
        ),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "hold 'full_attention'"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5, only 1.0"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("gemma2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5, only 1.0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, only None"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, only None"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma3_text", {"attention_bias": True}, "attention_bias is True"),
        ("gemma3_text", {"sliding_window": None}, "sliding_window is None"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ("gemma3_text", {"sliding_window_pattern": "LLG"}, "sliding_window_pattern is 'LLG'"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types needs 2 entries"),
        ("gemma3_text", {"head_dim": 7}, "head_dim is 7, expected an even number"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1.0}}, "expected an object with full_attention and sliding"),
        ("gemma3_text", {"rope_parameters": 3}, "rope_parameters is 3"),
        ("gemma3_text", {"rope_scaling": [8]}, r"rope_scaling \[8\]"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "full_attention of rope_parameters is '3'"),
        ("gemma3_text", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear"}}, "rope_type 'linear' needs factor"),
        ("gemma3_text", {"rope_local_base_freq": "low"}, "rope_theta is 'low'"),
        ("gpt2", {"activation_function": "swish"}, "activation_function is 'swish', supported: gelu_new, "),
        ("gpt2", {"activation_function": ["gelu"]}, "activation_function is "),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gpt2", {"n_embd": 50}, "n_embd 50 over 4 heads; write a multiple of 4$"),
        ("gpt2", {"n_positions": 0}, "n_positions is 0"),
        ("gpt2", {"n_positions": "absent"}, "no n_positions"),
        ("gpt2", {"scale_attn_weights": 1}, "scale_attn_weights is 1, expected true or false"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": None}, "scale_attn_by_inverse_layer_idx is None"),
        ("gpt2", {"reorder_and_upcast_attn": "yes"}, "reorder_and_upcast_attn is 'yes'"),
        ("gpt2", {"layer_norm_epsilon": -1.0}, "layer_norm_epsilon is -1.0"),
        ("gpt_neox", {"rotary_pct": "half"}, "factor is 'half'"),
        ("gpt_neox", {"rotary_pct": 2.0}, "2.0 of 12 entries per head turn"),
        ("llama", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new', only 'silu'"),
        ("llama", {"attention_multiplier": 0.5}, "attention_multiplier is 0.5"),
        ("llama", {"residual_multiplier": 0.5}, "residual_multiplier is 0.5"),
        ("mistral", {"num_local_experts": 8}, "num_local_experts is 8"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types is .* no layers of this llama slide"),
        ("mistral", {"layer_types": ["full_attention"] * 2, "sliding_window": 4}, "all layers of this mistral slide"),
        ("mistral", {"sliding_window": -1}, "sliding_window is -1"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "no layers of this qwen2 slide"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4}, "no max_window_layers"),
        ("qwen2", {"layer_types": "full"}, "layer_types needs 2 entries"),
        ("qwen2", {"layer_types": [["a"], 1]}, "layer_types needs 2 entries"),
        ("gemma2", {"sliding_window": None}, "sliding_window is None"),
        ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0, expected a number above 0"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ],
)
def test_other_settings_have_types_and_ranges(family, changes, message):
    with pytest.raises(UserError, match=message):
        read(family, **changes)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"high_freq_factor": 1.0}, "high_freq_factor equals low_freq_factor"),
        ({"low_freq_factor": "low"}, "low_freq_factor is 'low'"),
        ({"original_max_position_embeddings": 2.5}, "original_max_position_embeddings is 2.5"),
    ],
)
def test_llama3_rope(scaling, message):
    given = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    given["original_max_position_embeddings"] = 64
    assert read("llama", rope_scaling=given).rope.factor == 8.0
    with pytest.raises(UserError, match=message):
        read("llama", rope_scaling=given | scaling)
    with pytest.raises(UserError, match="original_max_position_embeddings is 32 and 64; write it once"):
        read("llama", rope_scaling=given, original_max_position_embeddings=32)


@pytest.mark.parametrize("text", ["[]", "{", "NaN", '{"a": NaN}', "[" * 10_000, '{"model_type": ["llama"]}', "\xff"])
def test_a_config_json_that_is_no_object(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError):
        lm.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("Qwen3", HEADS | {"layer_types": ["full_attention"] * 2}),
        ("Llama", {"num_key_value_heads": None}),
        ("Llama", {"num_hidden_layers": 0}),
        ("Mistral", {"sliding_window": 4, "head_dim": None}),
        ("Gemma2", HEADS | {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    ],
)
def test_variants_equal_transformers(kind, more, tmp_path):
    folder = written(tmp_path, random_model(kind, **more))
    close(ours(folder), theirs(folder))


def test_notes_and_code_in_config_json_change_nothing(tmp_path):
    folder = written(tmp_path, random_model())
    before = ours(folder)
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C:\n    pass\n")
    code = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C", "AutoTokenizer": ["evil.C", "evil.C"]}
    settings(folder, auto_map=code, use_cache=False, pretraining_tp=1, unknown_note="x")
    np.testing.assert_array_equal(ours(folder), before)
    assert not marker.exists()


def test_a_context_beyond_the_model_is_refused():
    model = lm.shapes(read("llama", max_position_embeddings=16))
    model.check_context(16)
    with pytest.raises(UserError, match=r"context is 17, but the model was made for at most 16 tokens"):
        model.check_context(17)
    lm.shapes(read("llama")).check_context(10**6)


def test_the_longest_sequence_is_saved_with_the_model(tmp_path):
    from lm.tiny import tiny

    folder = written(tmp_path / "a", random_model(max_position_embeddings=77))
    loaded = lm.load(folder)
    lm.save(loaded.model, tiny()[1], tmp_path / "b", dtype=jnp.float32)
    assert lm.load(tmp_path / "b").model.config == loaded.model.config and loaded.model.config.positions == 77
    assert IDS.max() < 64
