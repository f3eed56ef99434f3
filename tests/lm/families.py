"""Small random checkpoints of every family, written by transformers in several shards, with torch's own answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from lm.tiny import ids, tiny

from jhsae import lm

VOCAB = 61
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
GROUPED = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}
THETA = {"rope_theta": 100.0}
GPT2 = {"vocab_size": VOCAB, "n_positions": 14, "n_embd": 32, "n_layer": 3, "n_head": 4}
GPT2 |= {"bos_token_id": 2, "eos_token_id": 1}
GEMMA3 = GROUPED | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 11, "sliding_window_pattern": 2}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0, "original_max_position_embeddings": 16}
# name -> (class in transformers, settings); between them every setting that changes the numbers, both ways.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": (
        "Gemma2",
        GROUPED | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 11, "attn_logit_softcapping": 2.0},
    ),
    "llama": ("Llama", GROUPED | {"rope_parameters": THETA | LLAMA3 | {"rope_type": "llama3"}, "head_dim": 16}),
    "llama-biased": (
        "Llama",
        SIZES
        | {"num_attention_heads": 4, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
        | {"rope_parameters": THETA | {"rope_type": "linear", "factor": 2.0}},
    ),
    "mistral": ("Mistral", GROUPED | {"sliding_window": 5, "head_dim": 16}),
    "qwen2": ("Qwen2", GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen2-tied": ("Qwen2", GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 16, "attention_bias": True, "rope_parameters": THETA}),
    "qwen3-tied": ("Qwen3", GROUPED | {"head_dim": 8, "tie_word_embeddings": True}),
    "gpt_neox": ("GPTNeoX", SIZES | {"num_attention_heads": 4, "vocab_size": 64}),
    "gpt_neox-sequential": (
        "GPTNeoX",
        SIZES
        | {"num_attention_heads": 4, "use_parallel_residual": False, "attention_bias": False}
        | {"tie_word_embeddings": True, "rope_parameters": THETA | {"partial_rotary_factor": 1.0}},
    ),
    "gemma3": ("Gemma3", GEMMA3 | {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 3.0}}}),
    "gemma3-untied": ("Gemma3", GEMMA3 | {"tie_word_embeddings": False, "layer_types": ["full_attention"] * 3}),
    "gpt2": ("GPT2", GPT2),
    "gpt2-altered": (
        "GPT2",
        GPT2
        | {"n_inner": 48, "activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True}
        | {"reorder_and_upcast_attn": True, "scale_attn_weights": False, "tie_word_embeddings": False},
    ),
}


@dataclass(frozen=True)
class Oracle:
    """What torch computed from the checkpoint in `folder`; its last hidden state has been normalised."""

    folder: Path
    logits: np.ndarray
    hidden: list[np.ndarray]

    def model(self, **how: Any) -> lm.AbstractLM:
        return lm.load(self.folder, **how).model


def config_of(kind: str) -> Any:
    """The class in transformers of the config."""
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config"))


def class_of(kind: str) -> Any:
    """The class in transformers that computes logits."""
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM"))


def write(name: str, folder: Path) -> Oracle:
    torch = pytest.importorskip("torch")
    kind, settings = CASES[name]
    torch.manual_seed(0)
    config = config_of(kind)(**settings)
    config._attn_implementation = "eager"
    model = class_of(kind)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Far from the ones and zeros of initialisation, so that gains and biases matter.
            weight.copy_(torch.randn_like(weight) * (0.2 if weight.ndim == 2 else 0.4))
        out = model(input_ids=torch.tensor(np.asarray(ids(VOCAB))), output_hidden_states=True, use_cache=False)
    model.save_pretrained(folder, max_shard_size="20KB")
    tiny()[1].save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2 and (folder / "model.safetensors.index.json").exists()
    return Oracle(folder, out.logits.numpy(), [h.numpy() for h in out.hidden_states])


@eqx.filter_jit
def everything(model: lm.AbstractLM, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits and the residual streams at all layers, in one pass."""
    residuals = model.residuals(ids, tuple(range(model.layers + 1)))
    return model.logits_from(residuals[-1], model.layers), residuals


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal up to `tolerance` of the largest entry."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(np.asarray(expected)).max())
