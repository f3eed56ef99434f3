"""Reads the JumpReLU SAEs of Gemma Scope: ``params.npz`` (Gemma 2), ``params.safetensors`` and config.json (Gemma 3).

``pre = x W_enc + b_enc`` without subtracting b_dec, ``codes = 1[pre > threshold] ReLU(pre)``,
``x_hat = codes W_dec + b_dec`` (Lieberum et al., arXiv 2408.05147; the encoder of its tutorial). Gemma Scope 2 writes
its keys in lower case. A threshold below 0 lets every positive pre-activation pass, as 0 does. Transcoders,
crosscoders and affine skip connections are refused.

What an SAE reads is told by the folders' names (as on the hub) and by config.json. Embedding SAEs read embeddings
before Gemma multiplies them by sqrt(embed), which is no residual stream: their layer is None.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jhsae.errors import UserError
from jhsae.files.forms import brief, setting, text
from jhsae.interop import imported
from jhsae.interop.imported import Imported
from jhsae.interop.tensors import fits, layer_number, load, load_npz, read_json, refuse_unknown, take_all

REPO = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)\b")  # google/gemma-scope-2b-pt-res
LAYER = re.compile(r"/layer_(\d+)/")
BLOCK_OUTPUT = re.compile(r"(?:model\.|language_model\.)*layers\.(\d+)\.output")
SITES = re.compile(r"/(resid_post|attn_out|mlp_out)(_all)?/")
OTHERS = re.compile(r"gemma-scope-\d+b-\w+-(transcoder)s|/(transcoder|crosscoder|clt)(?:_all)?/[^/]+/[^/]+$")


def read(path: str | Path) -> Imported:
    """The SAE in the folder `path`, or in its ``params.npz`` or ``params.safetensors``.

    `UserError`: no such file, a tensor is missing or misshapen, the architecture is not JumpReLU, a transcoder.
    """
    file = _weights(Path(path))
    if found := OTHERS.search(_place(file)):
        raise UserError(f"{file} is a {found[1] or found[2]} by its folders' names; only SAEs can be read")
    if file.suffix == ".npz":
        tensors, config, reads = load_npz(file), {}, _reads_by_name(file)
    else:
        tensors, config = load(file), _config(file)
        reads = _reads_by_config(config, file)
    W, w = ("w_enc", "w_dec") if "w_enc" in tensors else ("W_enc", "W_dec")
    if "affine_skip_connection" in tensors:
        raise UserError(f"{file}: 'affine_skip_connection' makes this a transcoder; only SAEs can be read")
    refuse_unknown(tensors, (W, w, "b_enc", "b_dec", "threshold"), file)
    embed, features = fits(tensors, W, (None, None), file)
    shapes = {W: (embed, features), w: (features, embed), "b_enc": (features,), "b_dec": (embed,)}
    taken = take_all(tensors, shapes | {"threshold": (features,)}, file)
    leaves = {"W_enc": taken[W].T, "W_dec": taken[w], "b_enc": taken["b_enc"], "b_dec": taken["b_dec"]}
    leaves["sparsifier.threshold"] = np.maximum(taken["threshold"], 0.0)
    slot = imported.flat_slot(features, embed, imported.JUMP_RELU, apply_b_dec_to_input=False)
    return imported.assemble(slot, leaves, imported.about("gemma_scope", file.parent, config, *reads), file)


def _weights(path: Path) -> Path:
    if path.is_file():
        return path
    for name in ("params.safetensors", "params.npz"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"no params.npz or params.safetensors in {path}; write the folder of one SAE")


def _place(file: Path) -> str:
    """The folders' names; links are not followed, because the hub's cache links to files named by checksum."""
    return file.absolute().as_posix()


def _config(file: Path) -> dict[str, Any]:
    """config.json of Gemma Scope 2, checked; {} where there is none and the folders' names say that it is an SAE."""
    path = file.with_name("config.json")
    if not path.exists() and SITES.search(_place(file)):
        return {}
    config = read_json(path)
    architecture = setting(config, "architecture", str, path)
    if architecture != "jump_relu":
        raise UserError(f"{path}: unknown architecture '{architecture}'; known: jump_relu")
    if config.get("affine_connection") not in (False, None):
        raise UserError(f"{path}: affine_connection is {brief(config['affine_connection'])}; only SAEs can be read")
    where, to = text(config, "hf_hook_point_in", path), text(config, "hf_hook_point_out", path)
    if to not in (None, "", where):
        raise UserError(f"{path}: reads {where} and writes {to}, which makes this a transcoder; only SAEs can be read")
    return config


def _reads_by_config(config: dict[str, Any], file: Path) -> tuple[str | None, int | None]:
    path = file.with_name("config.json")
    model = text(config, "model_name", path)
    if model is not None:  # their gemma-v3-1b-pt is google/gemma-3-1b-pt on the hub
        model = "google/" + model.removeprefix("google/").replace("-v3", "-3")
    block = BLOCK_OUTPUT.fullmatch(text(config, "hf_hook_point_in", path) or "")
    return model, layer_number(block[1], path) + 1 if block else None


def _reads_by_name(file: Path) -> tuple[str | None, int | None]:
    repo, layer = REPO.search(_place(file)), LAYER.search(_place(file))
    if not repo:
        return None, None
    size, tuned, site = repo.groups()
    model = f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")
    return model, layer_number(layer[1], file) + 1 if layer and site == "res" else None
