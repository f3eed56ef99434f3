"""A small Llama in one file, written by transformers, and changes of its tensors and settings."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from lm.families import class_of, config_of
from lm.tiny import tiny

from jhsae import lm

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(3, 64, (2, 12))


def random_model(kind: str = "Llama", **settings: Any) -> Any:
    """A torch model of transformers, all of whose weights matter."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = config_of(kind)(**SIZES | settings)
    config._attn_implementation = "eager"
    model = class_of(kind)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.2 if weight.ndim == 2 else 0.4))
    return model


def written(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tiny()[1].save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def store(folder: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def settings(folder: Path, **changes: Any) -> None:
    """Changes config.json; "absent" takes a setting out."""
    file = folder / "config.json"
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in found.items() if v != "absent"}))


def logits_of(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits.float().numpy()


def ours(folder: Path) -> np.ndarray:
    return np.asarray(lm.load(folder).model(jnp.asarray(IDS, jnp.int32)))


def theirs(folder: Path) -> np.ndarray:
    """What transformers itself reads from the folder."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    return logits_of(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32))
