"""Reads SAEs of EleutherAI sparsify: a folder named after its hookpoint, with ``cfg.json`` and ``sae.safetensors``.

Semantics verified against the source of eai-sparsify 1.3.3 (``sparse_coder.py``, ``fused_encoder.py``):
``codes`` are the k largest of ``ReLU(W_enc (x - b_dec) + b_enc)``, ``x_hat = codes W_dec + b_dec``. Transcoders, which
do not subtract b_dec and have another target than their input, are refused, and so is the groupmax activation.
Both matrices are stored with a row per latent. ``num_latents`` 0 means ``expansion_factor * d_in``.
"""

import re
from pathlib import Path
from typing import Any

from jhsae.errors import UserError
from jhsae.files.forms import brief, count, setting, text
from jhsae.interop import imported
from jhsae.interop.imported import Imported
from jhsae.interop.tensors import layer_number, load, read_json, refuse_unknown, take_all

BLOCK = re.compile(r"(?:.*\.)?(?:layers|h)[._](\d+)")  # the output of a block, and of nothing inside it


def read(path: str | Path) -> Imported:
    """The SAE in the folder of one hookpoint.

    ``reads`` knows the layer from the folder's name (``layers.5``) and the model from ``config.json`` of the run above
    it. `UserError`: a file, key or tensor is missing or misshapen, or the coder is no TopK SAE.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; write the folder of one hookpoint, with cfg.json and sae.safetensors")
    settings, file = folder / "cfg.json", folder / "sae.safetensors"
    cfg = read_json(settings)
    _check_kind(cfg, settings)
    embed = count(cfg, "d_in", settings)
    latents = setting(cfg, "num_latents", int, settings) if "num_latents" in cfg else 0
    features = count(cfg, "num_latents", settings) if latents else embed * count(cfg, "expansion_factor", settings)
    k = count(cfg, "k", settings, features)
    tensors = load(file)
    if "W_skip" in tensors:
        raise UserError(f"{file}: 'W_skip' makes this a skip transcoder; only SAEs can be read")
    refuse_unknown(tensors, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"), file)
    matrix, names = (features, embed), {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
    shapes = {"encoder.weight": matrix, "W_dec": matrix, "encoder.bias": (features,), "b_dec": (embed,)}
    leaves = {names.get(key, key): array for key, array in take_all(tensors, shapes, file).items()}
    about = imported.about("sparsify", folder, cfg, *_model_and_layer(folder))
    return imported.assemble(imported.flat_slot(features, embed, imported.top_k(k)), leaves, about, file)


def _check_kind(cfg: dict[str, Any], file: Path) -> None:
    """Versions before 1.0 lack the keys that later ones added; those features did not exist."""
    activation = cfg.get("activation", "topk")
    if activation != "topk":
        raise UserError(f"{file}: activation is {brief(activation)}, expected 'topk', the one that can be read")
    for key in ("transcode", "skip_connection", "signed"):
        if cfg.get(key, False) is not False:
            raise UserError(
                f"{file}: {key} is {brief(cfg[key])}, expected false: only SAEs with positive codes can be read"
            )


def _model_and_layer(folder: Path) -> tuple[str | None, int | None]:
    # several seeds of one hookpoint lie in folders of their own: layers.5/seed0
    folder = folder.absolute()
    hookpoint = folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder
    run = hookpoint.parent / "config.json"
    model = text(read_json(run), "model", run) if run.exists() else None
    block = BLOCK.fullmatch(hookpoint.name)
    return model, layer_number(block[1], folder) + 1 if block else None
