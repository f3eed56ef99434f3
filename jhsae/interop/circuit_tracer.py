"""Writes transcoders in the files of circuit-tracer 0.5: a set with one for each layer, or a cross-layer transcoder.

A set is ``layer_{l}.safetensors`` for every layer from 0 on, with ``W_enc``, ``W_dec`` [features, embed], ``b_enc``,
``b_dec``, of a JumpReLU ``activation_function.threshold`` and of a skip connection ``W_skip`` [out, in]. A cross-layer
transcoder is ``W_enc_{l}.safetensors`` (also ``b_enc_{l}``, ``b_dec_{l}``, ``threshold_{l}``) and
``W_dec_{l}.safetensors`` [features, layers - l, embed]. ``config.yaml`` names the model and the hooks in
TransformerLens. Both normalisers and the unit of the codes are folded into the weights: with ``x' = (x - c) M`` and
``y' = (y - d) N``, ``W_enc <- W_enc M^T``, ``b_enc <- b_enc - W_enc M^T c``, ``W_dec <- W_dec N^-1``,
``b_dec <- b_dec N^-1 + d - W_skip c`` and ``W_skip <- (M W_skip^T N^-1)^T``. Codes and thresholds stay as they were.
circuit-tracer computes ReLU and JumpReLU alone, and has no place for a hierarchy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from safetensors.numpy import save

from jhsae.config import plain_yaml
from jhsae.data import AbstractNormalizer, Affine, Hook
from jhsae.errors import UserError
from jhsae.features.origin import hooks_of
from jhsae.files.checksums import new_folder
from jhsae.sae import AbstractSAE, LinearSkip, Transcoder
from jhsae.sparsify import AbstractSparsifier, JumpReLU, ReLU

READS = {"mlp_in": "mlp.hook_in", "mlp_normalized": "ln2.hook_normalized"}
WRITES = "hook_mlp_out"
Loaded = tuple[AbstractSAE, AbstractNormalizer, dict[str, Any]]
Double = Float[np.ndarray, "..."]


class Folded(NamedTuple):
    """A transcoder of raw activations, layer by layer.

    Args:
        W_enc: [layers, own, width].
        b_enc: [layers, own].
        W_dec: what each feature writes to each layer, 0 to those before its own, [layers, own, layers, written].
        b_dec: [layers, written].
        thresholds: of a JumpReLU, [layers, own]; None for a ReLU.
        W_skip: [layers, written, width], or None.
    """

    W_enc: Double
    b_enc: Double
    W_dec: Double
    b_dec: Double
    thresholds: Double | None
    W_skip: Double | None


def write(folder: str | Path, loaded: Sequence[Loaded]) -> None:
    """Writes a new `folder` of transcoders.

    Args:
        folder: must not exist.
        loaded: what `jhsae.load_sae` gives: one transcoder for each layer from 0 on, or one cross-layer transcoder.

    Raises:
        UserError: a hierarchical transcoder or another SAE, a rule other than ReLU and JumpReLU, other hooks than the
            inputs and outputs of MLPs, layers that are missing, or several models.
    """
    saes = [_checked(sae) for sae, _, _ in loaded]
    names, layers = zip(*(_places(about) for _, _, about in loaded), strict=True)
    models = sorted({str(about["reads"]["model"]) for _, _, about in loaded})
    for what, different in (("of", models), ("from", sorted(set(names)))):
        if len(different) > 1:
            raise UserError(f"the transcoders are {what} {' and '.join(different)}, expected one for all")
    cross = len(saes) == 1 and saes[0].layers > 1
    found = [layer for own in layers for layer in own]
    if sorted(found) != list(range(len(found))) or (not cross and any(sae.layers > 1 for sae in saes)):
        raise UserError(
            f"the transcoders are of the MLPs of blocks {found}, but circuit-tracer needs one of each block from 0 on, "
            "or a single cross-layer transcoder; write run=[RUN_OF_BLOCK_0,RUN_OF_BLOCK_1,...]"
        )
    folded = [fold(sae, normalizer) for sae, (_, normalizer, _) in zip(saes, loaded, strict=True)]
    files = _cross_layer(folded[0]) if cross else _set(folded, found)
    kind = "cross_layer_transcoder" if cross else "transcoder_set"
    hooks = {"feature_input_hook": READS[names[0]], "feature_output_hook": WRITES}
    config = {"model_name": models[0], "model_kind": kind, **hooks}
    with new_folder(Path(folder)) as new:
        for name, tensors in files.items():
            new.write(name, save({k: np.ascontiguousarray(a, np.float32) for k, a in tensors.items()}))
        new.write("config.yaml", plain_yaml.text(config).encode())


def fold(sae: Transcoder, normalizer: AbstractNormalizer) -> Folded:
    """The transcoder of raw activations with the same codes.

    `UserError` for a normaliser of what is read whose scale depends on the token.
    """
    source, target = normalizer.affine(), normalizer.affine_of_target()
    if source is None or target is None:
        raise UserError(
            "the normaliser scales every token by a number of its own, which no weight can hold; train with "
            "jhsae.data.Scale, CenterScale, Standardize or Whiten"
        )
    sizes, count = sae.sizes, sae.layers
    rows, norms = np.asarray(sae.dictionary(), np.float64), sae.code_unit.norms(sizes.masked(sae.W_dec))
    scale = np.ones(sae.features) if norms is None else np.asarray(norms, np.float64)
    W_enc = (np.asarray(sae.W_enc, np.float64) * scale[:, None]).reshape(count, sizes.own, sizes.width)
    b_enc = (np.asarray(sae.b_enc, np.float64) * scale).reshape(count, sizes.own)
    inward = [_part(source, sae.embed, layer, sizes.width) for layer in range(count)]
    outward = [_part(target, sae.output, layer, sizes.written) for layer in range(count)]
    W_enc = np.stack([w @ m.T for w, (_, m, _) in zip(W_enc, inward, strict=True)])
    b_enc = np.stack([b - w @ c for b, w, (c, _, _) in zip(b_enc, W_enc, inward, strict=True)])
    W_dec = rows.reshape(count, sizes.own, count, sizes.written)
    W_dec = np.stack([W_dec[:, :, to] @ outward[to][2] for to in range(count)], axis=2)
    b_dec = np.asarray(sae.b_dec, np.float64).reshape(count, sizes.written)
    b_dec = np.stack([b @ inverse + d for b, (d, _, inverse) in zip(b_dec, outward, strict=True)])
    W_skip = None
    if isinstance(sae.skip, LinearSkip):
        own = np.asarray(sae.skip.W_skip, np.float64)
        sides = zip(own, inward, outward, strict=True)
        W_skip = np.stack([(m @ s.T @ inverse).T for s, (_, m, _), (_, _, inverse) in sides])
        b_dec = np.stack([b - s @ c for b, s, (c, _, _) in zip(b_dec, W_skip, inward, strict=True)])
    return Folded(W_enc, b_enc, W_dec, b_dec, _thresholds(sae.rules), W_skip)


def _checked(sae: AbstractSAE) -> Transcoder:
    if not isinstance(sae, Transcoder):
        raise UserError(
            f"circuit-tracer has no place for a {type(sae).__name__}: it reads flat transcoders alone; write "
            "format=folder, or train a jhsae.sae.Transcoder"
        )
    for rule in sae.rules:
        if not isinstance(rule, ReLU | JumpReLU):
            raise UserError(
                f"circuit-tracer computes ReLU and JumpReLU alone, got {type(rule).__name__}; train with "
                "jhsae.sparsify.BatchTopK, which is a JumpReLU at inference"
            )
    if sae.layers > 1 and isinstance(sae.skip, LinearSkip):
        raise UserError(
            "circuit-tracer reads no skip connection of a cross-layer transcoder; train one without sae.skip"
        )
    return sae


def _places(about: dict[str, Any]) -> tuple[str, list[int]]:
    """The name of the hook that a transcoder reads, and the blocks whose MLPs it stands in for."""
    read, written = hooks_of(about["reads"]) or (), hooks_of(about.get("writes") or {"layer": None}) or ()
    blocks = [hook.block for hook in read]
    name = read[0].name if read else ""
    wanted = [Hook(name, block) for block in blocks], [Hook("mlp_out", block) for block in blocks]
    if name not in READS or (list(read), list(written)) != wanted:
        words = " to ".join(" and ".join(map(str, hooks)) or "nowhere" for hooks in (read, written))
        raise UserError(
            f"the transcoder goes from {words}, but circuit-tracer replaces MLPs; train one from mlp_in.L to mlp_out.L"
        )
    return name, blocks


def _part(affine: Affine, width: int, layer: int, size: int) -> tuple[Double, Double, Double]:
    """Shift, matrix and inverse of the normaliser of one layer."""
    affine, own = affine.over(width), slice(layer * size, (layer + 1) * size)

    def matrix(factor: Array) -> Double:
        full = np.asarray(factor, np.float64)
        return full[own, own] if full.ndim == 2 else np.diag(np.broadcast_to(full, (width,))[own])

    return np.asarray(affine.shift, np.float64)[own], matrix(affine.matrix), matrix(affine.inverse)


def _thresholds(rules: tuple[AbstractSparsifier, ...]) -> Double | None:
    found = [rule.threshold for rule in rules if isinstance(rule, JumpReLU)]
    return np.stack([np.asarray(a, np.float64) for a in found]) if found else None


def _set(folded: list[Folded], layers: list[int]) -> dict[str, dict[str, Double]]:
    files = {}
    for one, layer in zip(folded, layers, strict=True):
        tensors = {"W_enc": one.W_enc[0], "W_dec": one.W_dec[0, :, 0], "b_enc": one.b_enc[0], "b_dec": one.b_dec[0]}
        tensors |= {} if one.thresholds is None else {"activation_function.threshold": one.thresholds[0]}
        files[f"layer_{layer}.safetensors"] = tensors | ({} if one.W_skip is None else {"W_skip": one.W_skip[0]})
    return files


def _cross_layer(one: Folded) -> dict[str, dict[str, Double]]:
    files: dict[str, dict[str, Double]] = {}
    for i in range(len(one.W_enc)):
        tensors = {f"W_enc_{i}": one.W_enc[i], f"b_enc_{i}": one.b_enc[i], f"b_dec_{i}": one.b_dec[i]}
        tensors |= {} if one.thresholds is None else {f"threshold_{i}": one.thresholds[i]}
        files[f"W_enc_{i}.safetensors"] = tensors
        files[f"W_dec_{i}.safetensors"] = {f"W_dec_{i}": one.W_dec[i, :, i:]}
    return files
