"""Reads SAEs of openai/sparse_autoencoder: a torch state dict with the name of its activation among the tensors.

Semantics verified against its source (``sparse_autoencoder/model.py`` at commit 764586a):
``codes = activation(W_enc (x - pre_bias) + latent_bias)``, ``x_hat = W_dec codes + pre_bias``, with the activation
ReLU, or TopK followed by ReLU. TopK means that inputs are layer-normed too (there is no other sign of it):
``(x - mean) / (std + 1e-5)``, the standard deviation with n - 1, undone by ``x_hat std + mean``, as our `LayerNorm`.

A safetensors twin has no place for the activation but the metadata of its header:
``save_file(tensors, path, metadata={"activation": "TopK", "k": "32"})``.
"""

import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from jhsae.config import Slot
from jhsae.errors import UserError, nearest
from jhsae.interop import imported
from jhsae.interop.imported import Imported
from jhsae.interop.tensors import load, refuse_unknown, setting, take
from jhsae.interop.unpickle import state_dict

LAYER_NORM: Slot = {"_target_": "jhsae.data.LayerNorm"}
WEIGHTS = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight")
SETTINGS = (
    "activation",
    "activation_state_dict",
    "activation.k",
    "activation.postact_fn",
)  # torch repeats the last two
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")  # of their training alone
RESIDUAL = re.compile(r"/gpt2-small/resid_post_mlp(?:_v\w+)?/autoencoders/(\d+)\.\w+$")  # how the released ones lie


def read(path: str | Path, unpickle: bool = False) -> Imported:
    """The SAE in one file: ``.safetensors``, or a ``.pt``, which is a pickle and refused without `unpickle`.

    `UserError`: an unknown activation, a tensor that is missing, misshapen or unknown (tied decoders).
    """
    file = Path(path)
    found = _with_metadata(file) if file.suffix == ".safetensors" else state_dict(file, unpickle)
    activation, settings = found.get("activation", "ReLU"), found.get("activation_state_dict", {})
    sparsifier = _sparsifier(activation, settings, file)
    refuse_unknown(found, WEIGHTS + SETTINGS + STATISTICS, file)
    W_enc = take(found, "encoder.weight", (None, None), file)
    features, embed = W_enc.shape
    leaves = {
        "W_enc": W_enc,
        "W_dec": take(found, "decoder.weight", (embed, features), file).T,
        "b_enc": take(found, "latent_bias", (features,), file),
        "b_dec": take(found, "pre_bias", (embed,), file),
    }
    residual = RESIDUAL.search(file.absolute().as_posix())
    reads = ("openai-community/gpt2", int(residual[1]) + 1) if residual else (None, None)
    about = imported.about("openai", file, {"activation": activation, "k": sparsifier.get("k")}, *reads)
    normalize = LAYER_NORM if activation == "TopK" else imported.IDENTITY
    return imported.assemble(imported.flat_slot(features, embed, sparsifier), leaves, about, file, normalize)


def _sparsifier(activation: Any, settings: Any, file: Path) -> Slot:
    if activation == "ReLU":
        return imported.RELU
    if activation != "TopK":
        raise UserError(f"{file}: unknown activation {activation!r}{nearest(str(activation), ('ReLU', 'TopK'))}")
    if not isinstance(settings, dict):
        raise UserError(f"{file}: 'activation_state_dict' is {settings!r}, expected k and postact_fn of TopK")
    after = settings.get("postact_fn", "ReLU")
    if after != "ReLU":
        raise UserError(f"{file}: postact_fn is {after!r} after TopK, expected 'ReLU', the one that can be read")
    return imported.top_k(setting(settings, "k", int, file))


def _with_metadata(file: Path) -> dict[str, Any]:
    """A safetensors file in the form of their state dict."""
    tensors: dict[str, Any] = dict(load(file))
    with safe_open(file, framework="np") as header:
        said = header.metadata() or {}
    if "activation" not in said:
        raise UserError(f"{file}: no 'activation' in the metadata of its header, expected 'ReLU' or 'TopK' (with 'k')")
    tensors["activation"] = said["activation"]
    if "k" in said:
        if not said["k"].isdecimal():
            raise UserError(f"{file}: 'k' in the metadata is {said['k']!r}, expected a number such as '32'")
        tensors["activation_state_dict"] = {"k": int(said["k"]), "postact_fn": said.get("postact_fn", "ReLU")}
    return tensors
