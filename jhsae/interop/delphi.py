"""Writes an activation cache of Delphi (EleutherAI), which explains and scores features from it, without torch.

``<folder>/<hookpoint>/{first}_{last}.safetensors``, one file per range of features: ``locations [n, 3]`` (sequence,
position, feature - first), ``activations [n]`` float16, ``tokens [sequences, context]``; and ``config.json``. The
layout is what eai-delphi 0.1.3 writes (delphi/latents/cache.py) and its `LatentDataset` reads. An H-SAE is one
hookpoint of experts x (1 + atoms) features: experts first, then atom a of expert e at experts + e * atoms + a.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32
from safetensors.numpy import save

from jhsae.data import AbstractNormalizer, Manifest, Store
from jhsae.errors import UserError
from jhsae.features.firings import Selection, whole_sequences
from jhsae.features.origin import check_origin
from jhsae.features.spill import spilled
from jhsae.files.bounded import to_json
from jhsae.files.checksums import new_folder
from jhsae.sae import AbstractSAE

FLOAT16 = np.finfo(np.float16)


def write(
    folder: str | Path,
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    about: dict[str, Any],
    store: Store,
    rows: int | None = None,
    *,
    splits: int = 5,
) -> None:
    """Writes the codes of a held-out store into a new `folder`, which is Delphi's ``latents`` folder.

    `rows` bounds how many of the store's rows are used, in whole sequences; `splits` is the number of files, each
    held in memory at a time. Activations are the SAE's codes in its own units. A code too small for float16 becomes
    the smallest float16 of its sign, so that L0 stays what it is.

    Delphi reads the tokenizer by config.json's model_name unless one is given to it.

    Raises:
        UserError: the folder exists; a store of another model, layer or width; splits or rows out of range; a code
            too large for float16.
    """
    check_origin(sae, about, store)
    if not 1 <= splits <= sae.features:
        raise UserError(f"splits is {splits}, but the SAE has {sae.features} features; write 1 to {sae.features}")
    selection = whole_sequences(store, rows)
    edges = [sae.features * i // splits for i in range(splits + 1)]
    target = hookpoint(store.manifest.layer)
    with new_folder(Path(folder), within=target) as new:  # Delphi may take every name at the top for a hookpoint
        with TemporaryDirectory(dir=new.path) as spill:
            codes = spilled(sae, normalizer, selection, edges, Path(spill))
            for i, records in enumerate(codes.parts("writing")):
                first, last = edges[i], edges[i + 1] - 1
                tensors = _tensors(records, first, last, selection)
                new.write(f"{target}/{first}_{last}.safetensors", save(tensors))
        config = _config(store.manifest, selection, splits) | {"jhsae": _provenance(about, store, sae)}
        new.write(f"{target}/config.json", to_json(config, indent=2) + "\n")


def hookpoint(layer: int) -> str:
    """The module whose output is the residual stream after `layer` blocks, as Delphi and sparsify name it."""
    return f"layers.{layer - 1}" if layer else "layers.0.input"


def _tensors(records: np.ndarray, first: int, last: int, selection: Selection) -> dict[str, np.ndarray]:
    tokens = selection.tokens()
    small = max(last - first + 1, *tokens.shape) <= 2**16
    where = np.stack([records["sequence"], records["position"], records["feature"] - first], axis=1)
    return {
        "locations": where.astype(np.uint16 if small else np.uint32),
        "activations": _half(records["value"]),
        "tokens": tokens,
    }


def _half(values: Float32[np.ndarray, " n"]) -> Float16[np.ndarray, " n"]:
    largest = np.abs(values).max(initial=0)
    if largest > FLOAT16.max:
        raise UserError(
            f"a code is {largest:.4g}, but Delphi stores float16, up to {FLOAT16.max}; train with a normaliser such as "
            "jhsae.data.Scale, so that codes are of order 1 to 100"
        )
    half = values.astype(np.float16)
    return np.where(half == 0, np.copysign(FLOAT16.smallest_subnormal, values).astype(np.float16), half)


def _config(manifest: Manifest, selection: Selection, splits: int) -> dict[str, Any]:
    """The keys of Delphi's CacheConfig, and those that its loader looks up."""
    dataset = manifest.dataset
    return {
        "model_name": manifest.model,
        "dataset_repo": dataset.get("name", dataset["source"]),
        "dataset_split": dataset.get("split", ""),
        "dataset_name": dataset.get("config") or "",
        "dataset_column": dataset.get("column") or "text",
        "batch_size": selection.sequences,  # locations count sequences from the first: one batch
        "cache_ctx_len": manifest.context,
        "ctx_len": manifest.context,
        "n_tokens": selection.sequences * manifest.context,
        "n_splits": splits,
    }


def _provenance(about: dict[str, Any], store: Store, sae: AbstractSAE) -> dict[str, Any]:
    kept = {key: about[key] for key in ("name", "config_hash", "commit") if key in about}
    return kept | {"store": store.path, "layer": store.manifest.layer, "features": sae.features}
