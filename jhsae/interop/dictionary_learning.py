"""Reads SAEs of saprmarks/dictionary_learning: a folder with ``ae.pt`` (or ``ae.safetensors``) and ``config.json``.

Semantics verified against the source of dictionary-learning 0.1.0 (``dictionary.py``, ``trainers/``), as its
``load_dictionary`` builds them and ``encode`` runs by default:

- AutoEncoder: ``ReLU(W_enc (x - bias) + b_enc)``, decoder rows divided by their norms and the encoder multiplied;
- AutoEncoderNew: ``ReLU(W_enc x + b_enc)``, as stored;
- AutoEncoderTopK: the k largest per token; its stored threshold is not used by ``encode``;
- BatchTopKSAE, MatryoshkaBatchTopKSAE: ``f 1[f > threshold]`` of ``f = ReLU(pre)``;
- JumpReluAutoEncoder: ``ReLU(pre 1[pre > threshold])`` without subtracting b_dec;
- GatedAutoEncoder: as our `GatedSAE`, with ``exp(r_mag)``.

A threshold below 0 (-1 before training sets it) lets every positive pre-activation pass, as a threshold of 0 does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jhsae.errors import UserError, nearest
from jhsae.files.forms import brief, count, setting
from jhsae.interop import imported
from jhsae.interop.imported import Imported
from jhsae.interop.tensors import LAYERS, Tensors, fits, load, read_json, refuse_unknown, take, take_all
from jhsae.interop.unpickle import state_dict


class Foreign(NamedTuple):
    """The tensors of the file, the ``trainer`` settings of its config, and what messages call them."""

    tensors: Tensors
    trainer: dict[str, Any]
    file: Path
    config: Path


class Parts(NamedTuple):
    """The slot of an SAE and its parameters by path."""

    slot: dict[str, Any]
    leaves: dict[str, np.ndarray]


def read(path: str | Path, unpickle: bool = False) -> Imported:
    """The SAE in the folder `path` (or in the weights file `path`, with config.json beside or above it).

    ``ae.safetensors`` is preferred; a ``.pt`` is a pickle and refused without `unpickle`. `UserError`: a file, key or
    tensor is missing or misshapen, the sizes disagree with the config, the ``dict_class`` is unknown.
    """
    file = _weights(Path(path))
    places = [folder / "config.json" for folder in (file.parent, file.parent.parent)]
    config = next((place for place in places if place.exists()), places[0])
    settings = read_json(config)
    trainer = setting(settings, "trainer", dict, config)
    name = setting(trainer, "dict_class", str, config)
    if name not in READERS:
        raise UserError(
            f"{config}: unknown dict_class {brief(name)}{nearest(name, READERS)}; known: {', '.join(READERS)}"
        )
    found = load(file) if file.suffix == ".safetensors" else state_dict(file, unpickle)
    parts = READERS[name](Foreign(found, trainer, file, config))
    for key, ours in (("activation_dim", "embed"), ("dict_size", "features")):
        if trainer.get(key, parts.slot[ours]) != parts.slot[ours]:
            raise UserError(f"{file} is for {ours}={parts.slot[ours]}, but {config} says {key}={brief(trainer[key])}")
    model, layer = _model_and_layer(settings, trainer, config)
    about = imported.about("dictionary_learning", file.parent, settings, model, layer)
    return imported.assemble(parts.slot, parts.leaves, about, file)


def _weights(path: Path) -> Path:
    if path.is_file():
        return path
    for name in ("ae.safetensors", "ae.pt"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"no ae.safetensors or ae.pt in {path}; write the folder of one trainer, such as trainer_0")


def _model_and_layer(settings: dict[str, Any], trainer: dict[str, Any], file: Path) -> tuple[str | None, int | None]:
    """The model, and the blocks that have run before the activations: theirs counts the block whose output it is."""
    model, layer, site = (trainer.get(key) for key in ("lm_name", "layer", "submodule_name"))
    if not isinstance(model, str | None) or not (layer is None or (type(layer) is int and 0 <= layer <= LAYERS)):
        raise UserError(f"{file}: lm_name is {brief(model)} and layer {brief(layer)}, expected a string and an int")
    if layer is None or (site is not None and "resid" not in str(site)):
        return model, None
    read_before = isinstance(settings.get("buffer"), dict) and settings["buffer"].get("io") == "in"
    return model, layer if read_before else layer + 1


def _linear(f: Foreign, *vectors: str, scalars: tuple[str, ...] = (), bias: str = "b_dec") -> dict[str, np.ndarray]:
    """Our flat parameters, of the classes that keep encoder and decoder as torch linear layers, and their `vectors`.

    `bias` is what they call b_dec; nothing but all these and `scalars` may be in the file.
    """
    refuse_unknown(f.tensors, ("encoder.weight", "decoder.weight", *vectors, bias, *scalars), f.file)
    features, embed = fits(f.tensors, "encoder.weight", (None, None), f.file)
    shapes = {"encoder.weight": (features, embed), "decoder.weight": (embed, features), bias: (embed,)}
    found = take_all(f.tensors, shapes | dict.fromkeys(vectors, (features,)), f.file)
    found |= {"W_enc": found.pop("encoder.weight"), "W_dec": found.pop("decoder.weight").T, "b_dec": found.pop(bias)}
    return found | ({"b_enc": found.pop("encoder.bias")} if "encoder.bias" in found else {})


def _matrices(f: Foreign, *vectors: str, others: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Our flat parameters, of the classes that keep W_enc [embed, features] and W_dec [features, embed]."""
    refuse_unknown(f.tensors, ("W_enc", "W_dec", "b_enc", "b_dec", *vectors, *others), f.file)
    embed, features = fits(f.tensors, "W_enc", (None, None), f.file)
    shapes = {"W_enc": (embed, features), "W_dec": (features, embed), "b_enc": (features,), "b_dec": (embed,)}
    found = take_all(f.tensors, shapes | dict.fromkeys(vectors, (features,)), f.file)
    return found | {"W_enc": found["W_enc"].T}


def _standard(f: Foreign) -> Parts:
    leaves = _linear(f, "encoder.bias", bias="bias")
    norms = np.linalg.norm(leaves["W_dec"], axis=1).astype(np.float32)
    if not np.all(norms > 0):
        raise UserError(f"{f.file}: column {int(np.argmin(norms))} of 'decoder.weight' is 0; it cannot be normalised")
    if not np.allclose(norms, 1.0):
        by_norm = {"W_enc": leaves["W_enc"] * norms[:, None], "b_enc": leaves["b_enc"] * norms}
        leaves |= by_norm | {"W_dec": leaves["W_dec"] / norms[:, None]}
        if not all(np.isfinite(leaves[name]).all() for name in by_norm):
            raise UserError(f"{f.file}: the norms of 'decoder.weight' go up to {norms.max():.3g}, too large to fold in")
    return _flat(imported.RELU, leaves)


def _standard_new(f: Foreign) -> Parts:
    return _flat(imported.RELU, _linear(f, "encoder.bias", bias="decoder.bias"), subtract=False)


def _top_k(f: Foreign) -> Parts:
    leaves = _linear(f, "encoder.bias", scalars=("k", "threshold"))
    k = count(f.trainer, "k", f.config)
    if "k" in f.tensors and (own := take(f.tensors, "k", (), f.file)) != k:
        raise UserError(f"{f.file} has k={float(own):g}, but {f.config} says k={k}; they belong to two SAEs")
    return _flat(imported.top_k(k), leaves)


def _batch_top_k(f: Foreign) -> Parts:
    threshold = take(f.tensors, "threshold", (), f.file)
    leaves = _linear(f, "encoder.bias", scalars=("k", "threshold"))
    return _thresholded(leaves, np.broadcast_to(threshold, leaves["b_enc"].shape))


def _matryoshka(f: Foreign) -> Parts:
    threshold = take(f.tensors, "threshold", (), f.file)
    groups = take(f.tensors, "group_sizes", (None,), f.file, whole=True)
    leaves = _matrices(f, others=("threshold", "k", "group_sizes"))
    if groups.sum() != len(leaves["b_enc"]) or groups.min() < 1:
        raise UserError(f"{f.file}: 'group_sizes' add up to {groups.sum():g}, expected {len(leaves['b_enc'])}")
    return _thresholded(leaves, np.broadcast_to(threshold, leaves["b_enc"].shape))


def _jump_relu(f: Foreign) -> Parts:
    leaves = _matrices(f, "threshold")
    return _thresholded(leaves, leaves.pop("threshold"), subtract=False)


def _gated(f: Foreign) -> Parts:
    names = {"gate_bias": "b_gate", "r_mag": "r_mag", "mag_bias": "b_mag"}
    leaves = _linear(f, *names, bias="decoder_bias")
    leaves |= {ours: leaves.pop(theirs) for theirs, ours in names.items()}
    return Parts(imported.gated_slot(*leaves["W_dec"].shape), leaves)


def _thresholded(leaves: dict[str, np.ndarray], threshold: np.ndarray, subtract: bool = True) -> Parts:
    return _flat(imported.JUMP_RELU, leaves | {"sparsifier.threshold": np.maximum(threshold, 0.0)}, subtract)


def _flat(sparsifier: dict[str, Any], leaves: dict[str, np.ndarray], subtract: bool = True) -> Parts:
    features, embed = leaves["W_dec"].shape
    return Parts(imported.flat_slot(features, embed, sparsifier, apply_b_dec_to_input=subtract), leaves)


READERS: dict[str, Callable[[Foreign], Parts]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _standard_new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump_relu,
    "GatedAutoEncoder": _gated,
}
