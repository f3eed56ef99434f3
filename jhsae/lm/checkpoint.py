"""Language models from and to Hugging Face folders: config.json, safetensors (one file or shards), tokenizer.

Nothing here needs torch. `load("embedded")` is the small model that ships with the package.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.typing import DTypeLike
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jhsae.errors import UserError
from jhsae.lm.config import Gemma2Config, from_hugging_face, to_hugging_face
from jhsae.lm.gemma2 import Blocks, Gemma2

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json")
BLOCK = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_in": "input_layernorm",
    "attention_out": "post_attention_layernorm",
    "mlp_in": "pre_feedforward_layernorm",
    "mlp_out": "post_feedforward_layernorm",
}
EMBEDDING, FINAL_NORM = "model.embed_tokens.weight", "model.norm.weight"


@dataclass(frozen=True)
class LanguageModel:
    """A model, its tokenizer, and the name it was loaded by."""

    model: Gemma2
    tokenizer: PreTrainedTokenizerBase
    name: str


def bundled() -> Path:
    """The folder of the embedded model, trained on WordNet glosses and the King James Bible (its README.md)."""
    return Path(str(files("jhsae"))) / "assets" / "tiny_lm"


def load(path_or_hub_name: str | Path, *, layers: int | None = None, dtype: DTypeLike = jnp.float32) -> LanguageModel:
    """A folder, a hub name ("google/gemma-2-2b") or "embedded".

    `layers` keeps the first blocks alone and reads no other weights: enough to harvest up to that layer; the logits
    of such a model mean nothing. `dtype` is that of the stored weights and of the operands of matrix products;
    activations are float32. UserError: no such folder or hub model, no config.json, tokenizer or weights, a missing
    shard or tensor, an architecture that is not supported, `layers` out of range.
    """
    folder = _folder(path_or_hub_name)
    settings = folder / "config.json"
    if not settings.exists():
        raise UserError(f"no config.json in {folder}; write a folder that save_pretrained or jhsae.lm.save wrote")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"no tokenizer.json in {folder}; copy the tokenizer of the model there")
    config = from_hugging_face(json.loads(settings.read_text()), str(settings))
    total = len(config.sliding)
    count = total if layers is None else layers
    if not 0 <= count <= total:
        raise UserError(f"layers={layers} of the {total} in {folder}; write 0 to {total}, or leave it out")
    model = _model(_reader(folder), config, count, jnp.dtype(dtype))
    return LanguageModel(model, AutoTokenizer.from_pretrained(folder), str(path_or_hub_name))


def save(
    model: Gemma2,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    dtype: DTypeLike = jnp.bfloat16,
) -> None:
    """Write a folder that `load` and transformers' Gemma2ForCausalLM read. An existing model is not overwritten."""
    folder, dtype = Path(folder), jnp.dtype(dtype)
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a model already; write another folder, or remove that one")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {EMBEDDING: model.embedding, FINAL_NORM: model.final_norm}
    for field, name in BLOCK.items():
        for i, tensor in enumerate(getattr(model.blocks, field)):
            tensors[f"model.layers.{i}.{name}.weight"] = tensor
    arrays = {name: np.asarray(tensor).astype(dtype) for name, tensor in tensors.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    settings = to_hugging_face(model.config, dtype.name) | ids
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _folder(path_or_hub_name: str | Path) -> Path:
    if path_or_hub_name == "embedded":
        return bundled()
    path = Path(path_or_hub_name)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(str(path_or_hub_name), allow_patterns=list(FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"{str(path_or_hub_name)!r} is no folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); write a folder, 'embedded', or a hub name such as google/gemma-2-2b "
            "(accept its licence on the hub and run `hf auth login`)"
        ) from error


def _reader(folder: Path) -> Callable[[str], np.ndarray]:
    """name -> tensor, from model.safetensors or from the shards that the index names."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists() and not single.exists():
        raise UserError(f"no model.safetensors and no {index.name} in {folder}; write a folder with weights")
    shards = json.loads(index.read_text())["weight_map"] if index.exists() else {}
    if not shards:
        with safe_open(single, "np") as file:
            shards = dict.fromkeys(file.keys(), single.name)

    def read(name: str) -> np.ndarray:
        if name not in shards:
            raise UserError(f"no tensor {name} in the weights of {folder}; the checkpoint is not complete")
        path = folder / shards[name]
        if not path.exists():
            raise UserError(f"shard {path.name} is missing in {folder} (it holds {name}); fetch it again")
        with safe_open(path, "np") as file:
            return file.get_tensor(name)

    return read


def _model(read: Callable[[str], np.ndarray], config: Gemma2Config, count: int, dtype: jnp.dtype) -> Gemma2:
    def stacked(name: str):
        # At least one block is read, so that a model of no blocks still has arrays of the right shape.
        tensors = [read(f"model.layers.{i}.{name}.weight").astype(dtype) for i in range(max(count, 1))]
        return jnp.asarray(np.stack(tensors)[:count])

    kept = Gemma2Config(**{**vars(config), "sliding": config.sliding[:count]})
    return Gemma2(
        embedding=jnp.asarray(read(EMBEDDING).astype(dtype)),
        blocks=Blocks(**{field: stacked(name) for field, name in BLOCK.items()}),
        final_norm=jnp.asarray(read(FINAL_NORM).astype(dtype)),
        config=kept,
        matmul_dtype=dtype.name,
    )
