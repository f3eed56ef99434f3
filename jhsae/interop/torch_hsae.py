"""Writes an H-SAE as a folder for torch, SAEBench and SAELens.

``hsae.py`` is the shipped torch module (jhsae/assets/torch/hsae.py), ``sae_weights.safetensors`` the weights as they
were trained and ``cfg.json`` the config, under SAELens's names. Decoding is linear
over experts x (1 + atoms) latents with unit decoder rows, in the units of the language model; where inputs are scaled
token by token, the scale is in the codes. L0 does not change.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors.numpy import save

from jhsae.data import AbstractNormalizer, Affine, CenteredUnitNorm, ConstantNorm, LayerNorm, UnitNorm
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.checksums import new_folder
from jhsae.files.escaping import escaped
from jhsae.interop.saelens.layout import CONFIG, VERSION, WEIGHTS, hook_names
from jhsae.leaf import describe
from jhsae.sae import AbstractSAE, HierarchicalSAE, Residual, ScaledByParent, Token, Unscaled
from jhsae.sparsify import (
    AbstractSparsifier,
    BinaryGumbelTopK,
    GumbelTopK,
    JumpReLU,
    LeakyOffsetTopK,
    OffsetTopK,
    ReLU,
    TopK,
)

ARCHITECTURE, FORMAT = "jhsae_hsae", 1
RULES: dict[type[AbstractSparsifier], tuple[str, ...]] = {
    ReLU: (),
    JumpReLU: (),
    TopK: ("k",),
    OffsetTopK: ("k", "offset"),
    LeakyOffsetTopK: ("k", "offset", "slope"),
    GumbelTopK: ("k",),
    BinaryGumbelTopK: ("k",),
}


def write(
    folder: str | Path,
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    about: dict[str, Any],
    prepend_bos: bool | None = None,
) -> None:
    """Writes the folder; it appears complete, and an existing one is not overwritten.

    Args:
        folder: must not exist.
        sae: a hierarchical SAE, `for_inference`.
        normalizer: its fitted input normaliser.
        about: that of `load_sae`.
        prepend_bos: whether the sequences that the SAE was trained on open with BOS (`jhsae.data.opens_with_bos`); None
            where that is not known, which is written as true, SAELens's default.

    Raises:
        UserError: not a hierarchical SAE, not for inference, or a normaliser that leaves no linear decoder.
    """
    if not isinstance(sae, HierarchicalSAE):
        raise UserError(
            f"{type(sae).__name__} has no experts and atoms; this format is for hierarchical SAEs, write format=saelens"
        )
    affine, scale = _normalizer(sae, normalizer)
    tensors = _tensors(sae) | {name: _array(getattr(affine, name)) for name in ("shift", "matrix", "inverse")}
    config = _config(sae, tensors, scale, about, prepend_bos is not False)
    with new_folder(Path(folder)) as new:
        new.write(WEIGHTS, save(tensors))
        new.write(CONFIG, to_json(config, indent=2) + "\n")
        new.write("hsae.py", source().read_bytes())
        new.write("README.md", _readme(config))


def source() -> Path:
    """The torch module that is copied into every folder."""
    return Path(str(files("jhsae"))) / "assets" / "torch" / "hsae.py"


def _tensors(sae: HierarchicalSAE) -> dict[str, np.ndarray]:
    """The parameters under their paths, with underscores for dots (torch names no parameter with a dot)."""
    arrays = eqx.filter(sae, eqx.is_inexact_array)
    paths = [leaf.path.replace(".", "_") for leaf in jax.tree.leaves(describe(arrays))]
    return {path: _array(a) for path, a in zip(paths, jax.tree.leaves(arrays), strict=True)}


def _array(a: Array) -> np.ndarray:
    return np.asarray(a, np.float32, order="C")


def _rule(slot: str, part: AbstractSparsifier) -> dict[str, Any]:
    """A sparsifier as config of the torch module."""
    if type(part) not in RULES:
        known = ", ".join(kind.__name__ for kind in RULES)
        raise UserError(
            f"{slot} is {type(part).__name__}, which needs a batch or a schedule; export sae.for_inference(usage), "
            f"whose sparsifiers are among {known}"
        )
    return {"rule": type(part).__name__, **{name: getattr(part, name) for name in RULES[type(part)]}}


def _named(slot: str, part: object, known: tuple[type, ...]) -> str:
    """The name of a part in the torch module."""
    if type(part) not in known:
        names = " or ".join(kind.__name__ for kind in known)
        raise UserError(f"{slot} is {type(part).__name__}, which the torch module does not compute; it knows {names}")
    return type(part).__name__


def _normalizer(sae: HierarchicalSAE, normalizer: AbstractNormalizer) -> tuple[Affine, dict[str, float] | None]:
    """The affine part of a normaliser, and the rule of its per-token scale: (norm + eps) * factor."""
    affine, name = normalizer.affine(), type(normalizer).__name__
    if affine is not None:
        return affine.over(sae.embed), None
    if isinstance(normalizer, LayerNorm):
        raise UserError(
            "LayerNorm subtracts each token's own mean, which no decoder that is linear in the codes can add back; "
            "train with data.normalize UnitNorm, ConstantNorm or CenterScale to export the SAE"
        )
    if sae.b_dec is not None and np.any(np.asarray(sae.b_dec) != 0):
        raise UserError(
            f"{name} scales every token by itself, and this SAE adds a decoder bias before the scale is undone, so "
            "that decoding is not linear in the codes; train without 'decoder' in sae.biases, or with data.normalize "
            "CenterScale, to export the SAE"
        )
    one = jnp.float32(1)
    match normalizer:
        case UnitNorm(eps=eps):
            return Affine(jnp.float32(0), one, one).over(sae.embed), {"eps": eps, "factor": 1.0}
        case CenteredUnitNorm(eps=eps, mean=mean) if mean is not None:
            return Affine(mean, one, one), {"eps": eps, "factor": 1.0}
        case ConstantNorm():
            return Affine(jnp.float32(0), one, one).over(sae.embed), {"eps": 0.0, "factor": sae.embed**-0.5}
    raise UserError(
        f"{name} has not been fitted, or its scale per token is not known here; export what load_sae returns"
    )


def _config(
    sae: HierarchicalSAE,
    tensors: dict[str, np.ndarray],
    token_scale: dict[str, float] | None,
    about: dict[str, Any],
    prepend_bos: bool,
) -> dict[str, Any]:
    """cfg.json: SAELens's keys and, under "hsae", those of the torch module."""
    model, layer = about["reads"]["model"], about["reads"]["layer"]
    origin = {key: about.get(key) for key in ("name", "config_hash", "commit")}
    return {
        "architecture": ARCHITECTURE,
        "d_in": sae.embed,
        "d_sae": sae.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,  # it is in b_enc, and so is the normaliser
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            "model_name": model,
            **hook_names(layer),
            "hook_layer": None if layer is None else max(layer - 1, 0),
            "hook_head_index": None,
            "prepend_bos": prepend_bos,
            "context_size": None,
            "jhsae": origin | {"version": about.get("versions", {}).get("jhsae")},
        },
        "hsae": {
            "format": FORMAT,
            "experts": sae.experts,
            "sub": sae.sub,
            "atoms": sae.atoms,
            "route": _rule("route", sae.route),
            "pick": _rule("pick", sae.pick),
            "child_input": _named("child_input", sae.child_input, (Token, Residual)),
            "child_scale": _named("child_scale", sae.child_scale, (Unscaled, ScaledByParent)),
            "apply_b_dec_to_input": sae.apply_b_dec_to_input,
            "token_scale": token_scale,
            "tensors": {name: list(a.shape) for name, a in tensors.items()},
        },
    }


def _readme(config: dict[str, Any]) -> str:
    """Description and usage of the folder."""
    metadata, hsae = config["metadata"], config["hsae"]
    sizes = {name: config[name] for name in ("d_in", "d_sae", "architecture")}
    sizes |= {name: hsae[name] for name in ("experts", "atoms")}
    model, hook = metadata["model_name"] or "a language model", metadata["hook_name"] or "a hook that is not known"
    where = f"{escaped(model)}, at {escaped(hook)}"
    origin = "".join(f", {key} {escaped(value)}" for key, value in metadata["jhsae"].items() if value)
    scale = "norms are in the codes" if hsae["token_scale"] is None else "norms and each token's scale are in the codes"
    template = (source().parent / "README.template.md").read_text()
    return template.format(**sizes, where=where, origin=origin, scale=scale)
