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

from jhsae.config import Slot
from jhsae.errors import UserError, nearest
from jhsae.files import tensor_files
from jhsae.files.forms import brief, count
from jhsae.interop import imported
from jhsae.interop.imported import Imported
from jhsae.interop.tensors import Tensors, fits, layer_number, load, refuse_unknown, take_all
from jhsae.interop.unpickle import state_dict

LAYER_NORM: Slot = {"_target_": "jhsae.data.LayerNorm"}
WEIGHTS = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight")
SETTINGS = (
    "activation",
    "activation_state_dict",
    "activation.k",
    "activation.postact_fn",
)  # torch repeats the last two
NUMBER, QUOTE = re.compile(r"[0-9]{1,12}"), "'"
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")  # of their training alone
RESIDUAL = re.compile(r"/gpt2-small/resid_post_mlp(?:_v\w+)?/autoencoders/(\d+)\.\w+$")  # how the released ones lie


def read(path: str | Path, unpickle: bool = False) -> Imported:
    """The SAE in one file: ``.safetensors``, or a ``.pt``, which is a pickle and refused without `unpickle`.

    `UserError`: an unknown activation, a tensor that is missing, misshapen or unknown (tied decoders).
    """
    file = Path(path)
    found = _with_metadata(file) if file.suffix == ".safetensors" else state_dict(file, unpickle)
    activation, settings = found.get("activation", "ReLU"), found.get("activation_state_dict", {})
    refuse_unknown(found, WEIGHTS + SETTINGS + STATISTICS, file)
    features, embed = fits(found, "encoder.weight", (None, None), file)
    sparsifier = _sparsifier(activation, settings, features, file)
    names = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "latent_bias": "b_enc", "pre_bias": "b_dec"}
    shapes = {"encoder.weight": (features, embed), "decoder.weight": (embed, features)}
    taken = take_all(found, shapes | {"latent_bias": (features,), "pre_bias": (embed,)}, file)
    leaves = {ours: taken[theirs] for theirs, ours in names.items()}
    leaves["W_dec"] = leaves["W_dec"].T
    residual = RESIDUAL.search(file.absolute().as_posix())
    reads = ("openai-community/gpt2", layer_number(residual[1], file) + 1) if residual else (None, None)
    about = imported.about("openai", file, {"activation": activation, "k": sparsifier.get("k")}, *reads)
    normalize = LAYER_NORM if activation == "TopK" else imported.IDENTITY
    return imported.assemble(imported.flat_slot(features, embed, sparsifier), leaves, about, file, normalize)


def _sparsifier(activation: Any, settings: Any, features: int, file: Path) -> Slot:
    if activation == "ReLU":
        return imported.RELU
    if activation != "TopK":
        shown = brief(activation)
        raise UserError(f"{file}: unknown activation {shown}{nearest(shown.strip(QUOTE), ('ReLU', 'TopK'))}")
    if not isinstance(settings, dict):
        raise UserError(f"{file}: 'activation_state_dict' is {brief(settings)}, expected k and postact_fn of TopK")
    after = settings.get("postact_fn", "ReLU")
    if after != "ReLU":
        raise UserError(f"{file}: postact_fn is {brief(after)} after TopK, expected 'ReLU', the one that can be read")
    return imported.top_k(count(settings, "k", file, features))


def _with_metadata(file: Path) -> Tensors:
    """A safetensors file as their state dict."""
    tensors, said = load(file), tensor_files.tensor_metadata(file)
    if "activation" not in said:
        raise UserError(f"{file}: no 'activation' in the metadata of its header, expected 'ReLU' or 'TopK' (with 'k')")
    others: dict[str, Any] = {"activation": said["activation"]}
    if "k" in said:
        if not NUMBER.fullmatch(said["k"]):
            raise UserError(f"{file}: 'k' in the metadata is {brief(said['k'])}, expected a number such as '32'")
        others["activation_state_dict"] = {"k": int(said["k"]), "postact_fn": said.get("postact_fn", "ReLU")}
    return tensors.beside(others)
