"""Language models from and to Hugging Face folders: config.json, safetensors (one file or shards), tokenizer.

Nothing here needs torch. `load("embedded")` is the small model that ships with the package.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import Mesh
from jax.typing import DTypeLike
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from jhsae.errors import UserError
from jhsae.files.bounded import read_object, to_json
from jhsae.leaf import describe
from jhsae.lm.accounting import account
from jhsae.lm.base import AbstractLM
from jhsae.lm.families import config_of, model_of, shapes
from jhsae.lm.head import settle_head
from jhsae.lm.identity import identity
from jhsae.lm.scaled import Weights
from jhsae.lm.tokenizer import check_vocabulary, read_tokenizer
from jhsae.lm.weights import fused, load_weights

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json")


@dataclass(frozen=True)
class LanguageModel:
    """A language model and its tokenizer.

    Args:
        model: The decoder.
        tokenizer: A Hugging Face tokenizer.
        name: The path or hub name that it was loaded by.
        sha256: The hash of its content (`jhsae.lm.identity`), or None.
    """

    model: AbstractLM
    tokenizer: PreTrainedTokenizerBase
    name: str
    sha256: str | None = None


def bundled() -> Path:
    """The folder of the embedded model, trained on WordNet glosses and the King James Bible (its README.md)."""
    return Path(str(files("jhsae"))) / "assets" / "tiny_lm"


def load(
    path_or_hub_name: str | Path,
    *,
    layers: int | None = None,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Loads a language model; config.json determines its family.

    Args:
        path_or_hub_name: A folder, a hub name ("google/gemma-2-2b") or "embedded".
        layers: Load only the first blocks, enough to harvest up to that layer; the logits are then meaningless.
        dtype: Of the weights and of the operands of matrix products; activations are float32.
        mesh: Shard the weights over it (`jhsae.lm.sharding`). Each process reads only the shards of its devices; all
            processes must call.

    Raises:
        UserError: The folder or hub model, its config.json, tokenizer or weights do not exist; a shard is missing or
            damaged; a tensor is missing, has another shape or is not read (`jhsae.lm.accounting`); the quantisation
            (`jhsae.lm.scaled`) or the architecture is not supported; `layers` is out of range. All of it is detected
            before any weight is read, except non-finite values.
    """
    folder = _folder(path_or_hub_name)
    file = folder / "config.json"
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} holds an adapter (adapter_config.json), which is not read; merge it into its base model (peft: "
            "model.merge_and_unload()) and write the folder of the merged checkpoint"
        )
    if not file.exists():
        raise UserError(f"no config.json in {folder}; write a folder that save_pretrained or jhsae.lm.save wrote")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"no tokenizer.json in {folder}; copy the tokenizer of the model there")
    settings, source = read_object(file), str(file)
    config = config_of(settings, source)
    count = config.layers if layers is None else layers
    if not 0 <= count <= config.layers:
        raise UserError(
            f"layers={layers} of the {config.layers} in {folder}; write 0 to {config.layers}, or leave it out"
        )
    weights = Weights(folder, settings, source)
    tokenizer = read_tokenizer(folder)
    check_vocabulary(tokenizer, config.vocab, folder)
    model = model_of(config)
    weights.settle_names(model.prefixes, model.tensors["final_norm"], model.inputs_first)
    config, unneeded = settle_head(config, model, weights)
    account(weights, shapes(config, dtype), unneeded, source)
    loaded = load_weights(shapes(config.first(count), dtype), weights, mesh)
    return LanguageModel(loaded, tokenizer, str(path_or_hub_name), identity(settings, weights.tensors))


def save(
    model: AbstractLM,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    dtype: DTypeLike = jnp.bfloat16,
) -> None:
    """Writes a folder that `load` and transformers' AutoModelForCausalLM read.

    Args:
        model: The language model.
        tokenizer: A Hugging Face tokenizer.
        folder: An existing model there is not overwritten.
        dtype: Of the stored weights.
    """
    folder, dtype = Path(folder), jnp.dtype(dtype)
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a model already; write another folder, or remove that one")
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for leaf, array in zip(jax.tree.leaves(describe(model)), jax.tree.leaves(model), strict=True):
        name, values = model.tensors[leaf.path], fused(np.asarray(array).astype(dtype), leaf)
        arrays |= {name.format(i): row for i, row in enumerate(values)} if "{}" in name else {name: values}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = model.config
    settings = {"model_type": config.model_type, "dtype": dtype.name} | config.to_hugging_face() | ids
    (folder / "config.json").write_text(to_json(settings, indent=2) + "\n")


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
