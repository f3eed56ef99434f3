"""Reads the JumpReLU SAEs and transcoders of Gemma Scope.

Files: ``params.npz`` (Gemma 2), ``params.safetensors`` and config.json (Gemma 3).

``pre = x W_enc + b_enc`` without subtracting b_dec, ``codes = 1[pre > threshold] ReLU(pre)``,
``x_hat = codes W_dec + b_dec`` (Lieberum et al., arXiv 2408.05147; the encoder of its tutorial). Gemma Scope 2 writes
its keys in lower case. A threshold below 0 lets every positive pre-activation pass, as 0 does. A transcoder writes
``y_hat = codes W_dec + b_dec + x affine_skip_connection`` (the last where there is one); crosscoders and cross-layer
transcoders are refused.

What is read and written is told by the folders' names (as on the hub) and by config.json. A transcoder of Gemma 2 reads
the norm before an MLP without its gain, which DeepMind folded into the MLP (arXiv 2408.05147, appendix), one of Gemma 3
with it: ``mlp_normalized.L`` and ``mlp_in.L``; both write what the MLP adds to the residual stream, ``mlp_out.L``.
Embedding SAEs read embeddings before Gemma multiplies them by sqrt(embed), which is no residual stream: their layer is
None.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jhsae.errors import UserError
from jhsae.files.forms import brief, setting, text
from jhsae.interop import imported
from jhsae.interop.imported import Imported
from jhsae.interop.tensors import fits, layer_number, load, load_npz, read_json, refuse_unknown, take_all

SKIP = "affine_skip_connection"
REPO = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)\b")  # google/gemma-scope-2b-pt-res
LAYER = re.compile(r"/layer_(\d+)/")
BLOCK_OUTPUT = re.compile(r"(?:model\.|language_model\.)*layers\.(\d+)\.output")
SITES = re.compile(r"/(resid_post|attn_out|mlp_out)(_all)?/")
OTHERS = re.compile(r"/(crosscoder|clt)(?:_all)?/")
TRANSCODERS = re.compile(r"gemma-scope-(\d+b)-(pt|it)-transcoders\b|/transcoder(?:_all)?/[^/]+/[^/]+$")
MLP_INPUT = re.compile(r"(?:model\.|language_model\.)*layers\.(\d+)\.pre_feedforward_layernorm\.output")
MLP_OUTPUT = re.compile(r"(?:model\.|language_model\.)*layers\.(\d+)\.post_feedforward_layernorm\.output")


def read(path: str | Path) -> Imported:
    """The SAE in the folder `path`, or in its ``params.npz`` or ``params.safetensors``.

    `UserError`: no such file, a tensor is missing or misshapen, the architecture is not JumpReLU, a crosscoder or a
    cross-layer transcoder.
    """
    file = _weights(Path(path))
    if found := OTHERS.search(_place(file)):
        raise UserError(f"{file} is a {found[1]} by its folders' names; only SAEs and transcoders can be read")
    if file.suffix == ".npz":
        tensors, config, reads = load_npz(file), {}, _reads_by_name(file)
    else:
        tensors, config = load(file), _config(file)
        reads = _reads_by_config(config, file)
    W, w = ("w_enc", "w_dec") if "w_enc" in tensors else ("W_enc", "W_dec")
    if _is_transcoder(config, file):
        return _transcoder(tensors, (W, w), config, file)
    if SKIP in tensors:
        raise UserError(f"{file}: '{SKIP}' makes this a transcoder, but neither config.json nor the folders say so")
    refuse_unknown(tensors, (W, w, "b_enc", "b_dec", "threshold"), file)
    embed, features = fits(tensors, W, (None, None), file)
    shapes = {W: (embed, features), w: (features, embed), "b_enc": (features,), "b_dec": (embed,)}
    taken = take_all(tensors, shapes | {"threshold": (features,)}, file)
    leaves = {"W_enc": taken[W].T, "W_dec": taken[w], "b_enc": taken["b_enc"], "b_dec": taken["b_dec"]}
    leaves["sparsifier.threshold"] = np.maximum(taken["threshold"], 0.0)
    slot = imported.flat_slot(features, embed, imported.JUMP_RELU, apply_b_dec_to_input=False)
    return imported.assemble(slot, leaves, imported.about("gemma_scope", file.parent, config, *reads), file)


def _is_transcoder(config: dict[str, Any], file: Path) -> bool:
    """Whether it writes another place than it reads."""
    where, to = (config.get(f"hf_hook_point_{way}") for way in ("in", "out"))
    return bool(TRANSCODERS.search(_place(file))) or (bool(to) and to != where)


def _transcoder(tensors: Mapping[str, Any], names: tuple[str, str], config: dict[str, Any], file: Path) -> Imported:
    W, w = names
    skips = [SKIP] if SKIP in tensors else []
    refuse_unknown(tensors, (W, w, "b_enc", "b_dec", "threshold", *skips), file)
    (embed, features), (_, output) = fits(tensors, W, (None, None), file), fits(tensors, w, (None, None), file)
    shapes = {W: (embed, features), w: (features, output), "b_enc": (features,), "b_dec": (output,)}
    shapes |= {"threshold": (features,)} | dict.fromkeys(skips, (embed, output))
    taken = take_all(tensors, shapes, file)
    leaves = {"W_enc": taken[W].T, "W_dec": taken[w], "b_enc": taken["b_enc"], "b_dec": taken["b_dec"]}
    leaves["rules.0.threshold"] = np.maximum(taken["threshold"], 0.0)
    if skips:
        leaves["skip.W_skip"] = taken[SKIP].T[None]
    slot: dict[str, Any] = {"_target_": "jhsae.sae.Transcoder", "embed": embed, "features": features}
    slot |= {"output": output, "sparsifier": imported.JUMP_RELU}
    slot |= {"skip": {"_target_": "jhsae.sae.LinearSkip"}} if skips else {}
    widths = {"_target_": "jhsae.data.Between", "widths": [embed, output]}
    model, block = _mlp_of(config, file)
    about = imported.about("gemma_scope", file.parent, config, model, block)
    if block is not None:
        about["reads"]["hook"], about["writes"] = (
            "mlp_in" if config else "mlp_normalized",
            {"model": model, "layer": block, "hook": "mlp_out"},
        )
    return imported.assemble(slot, leaves, about, file, widths)


def _mlp_of(config: dict[str, Any], file: Path) -> tuple[str | None, int | None]:
    """The model, and the block whose MLP it stands in for; None where the files do not say."""
    place = _place(file)
    if not config:
        named, layer = TRANSCODERS.search(place), LAYER.search(place)
        if named is None or named[1] is None:
            return None, None
        model = f"google/gemma-2-{named[1]}" + ("-it" if named[2] == "it" else "")
        return model, layer_number(layer[1], file) if layer else None
    path = file.with_name("config.json")
    read, written = (text(config, f"hf_hook_point_{way}", path) or "" for way in ("in", "out"))
    blocks = MLP_INPUT.fullmatch(read), MLP_OUTPUT.fullmatch(written)
    same = blocks[0] is not None and blocks[1] is not None and blocks[0][1] == blocks[1][1]
    return _model(config, path), layer_number(blocks[0][1], path) if same and blocks[0] else None


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
    for way in ("in", "out"):
        text(config, f"hf_hook_point_{way}", path)
    if config.get("affine_connection") not in (False, True, None):
        raise UserError(f"{path}: affine_connection is {brief(config['affine_connection'])}, expected true or false")
    return config


def _reads_by_config(config: dict[str, Any], file: Path) -> tuple[str | None, int | None]:
    path = file.with_name("config.json")
    model = _model(config, path)
    block = BLOCK_OUTPUT.fullmatch(text(config, "hf_hook_point_in", path) or "")
    return model, layer_number(block[1], path) + 1 if block else None


def _model(config: dict[str, Any], path: Path) -> str | None:
    """Their gemma-v3-1b-pt is google/gemma-3-1b-pt on the hub."""
    model = text(config, "model_name", path)
    return None if model is None else "google/" + model.removeprefix("google/").replace("-v3", "-3")


def _reads_by_name(file: Path) -> tuple[str | None, int | None]:
    repo, layer = REPO.search(_place(file)), LAYER.search(_place(file))
    if not repo:
        return None, None
    size, tuned, site = repo.groups()
    model = f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")
    return model, layer_number(layer[1], file) + 1 if layer and site == "res" else None
