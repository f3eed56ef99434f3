"""SAELens's normalize_activations, read and written.

``none``, ``constant_norm_rescale`` and ``layer_norm`` are `Identity`, `ConstantNorm` and `LayerNorm`. Training with
``expected_average_only_in`` (`Scale`) or ``covariance_whitening`` (`Whiten`) ends with a fold and ``none``; before that
their statistics are files of the checkpoint. When written, affine normalisers are folded too, and `UnitNorm` is
`ConstantNorm` times 1 / sqrt(d_in), which is folded.
"""

from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jhsae.data import AbstractNormalizer, Affine, ConstantNorm, Identity, LayerNorm, Scale, UnitNorm, Whiten
from jhsae.errors import UserError, nearest
from jhsae.files.forms import brief, setting
from jhsae.interop.fold import fold, fold_affine
from jhsae.interop.saelens.layout import CONFIG, SCALER, WHITENING
from jhsae.interop.tensors import load, read_json, refuse_unknown, take_all
from jhsae.sae import AbstractSAE


@singledispatch
def folded(normalizer: AbstractNormalizer, sae: AbstractSAE) -> tuple[Any, str]:
    """An equivalent SAE with one of SAELens's normalisers, and the name of that normaliser."""
    if normalizer.affine() is None:
        raise UserError(
            f"SAELens has no normaliser like {type(normalizer).__name__}, which scales every token by a number of its "
            "own after centring; train with jhsae.data.CenterScale, or with ConstantNorm or LayerNorm"
        )
    return fold(sae, normalizer), "none"


@folded.register
def _(normalizer: ConstantNorm, sae: AbstractSAE) -> tuple[Any, str]:
    return fold(sae, Identity()), "constant_norm_rescale"


@folded.register
def _(normalizer: LayerNorm, sae: AbstractSAE) -> tuple[Any, str]:
    _check_eps(normalizer.eps, LayerNorm().eps, "LayerNorm")
    return fold(sae, Identity()), "layer_norm"


@folded.register
def _(normalizer: UnitNorm, sae: AbstractSAE) -> tuple[Any, str]:
    _check_eps(normalizer.eps, UnitNorm().eps, "UnitNorm")
    root = sae.embed**0.5
    scaled = fold_affine(sae, Affine(jnp.float32(0), jnp.float32(1 / root), jnp.float32(root)))
    return scaled, "constant_norm_rescale"


def _check_eps(eps: float, expected: float, name: str) -> None:
    if eps != expected:
        raise UserError(f"{name} has eps {eps:g}, which SAELens cannot be told; it exports only with eps {expected:g}")


def normalizer_of(name: str, folder: Path, embed: int) -> tuple[dict[str, Any], AbstractNormalizer]:
    """Our slot and part for a normalize_activations of `name`; statistics are read from the checkpoint `folder`.

    `UserError`: an unknown name, statistics that are missing or not of size `embed`.
    """
    if name not in NORMALIZERS:
        known = nearest(name, NORMALIZERS)
        raise UserError(f"{folder / CONFIG}: unknown normalize_activations {brief(name)}{known}")
    normalizer = NORMALIZERS[name](folder, embed)
    return {"_target_": f"jhsae.data.{type(normalizer).__name__}"}, normalizer


def _scale(folder: Path, embed: int) -> AbstractNormalizer:
    file = _statistics(folder / SCALER)
    factor = setting(read_json(file), "scaling_factor", float, file)
    if not 1e-30 < factor < 1e30:  # beyond, the factor or its inverse overflows float32
        raise UserError(f"{file}: scaling_factor is {factor}, expected a number above 0 of some usual size")
    return Scale(jnp.float32(1 / factor))


def _whiten(folder: Path, embed: int) -> AbstractNormalizer:
    file = _statistics(folder / WHITENING)
    tensors, square = load(file), (embed, embed)
    shapes = {"mean": (embed,), "matrix": square, "inverse_matrix": square}
    refuse_unknown(tensors, shapes, file)
    mean, matrix, inverse = (jnp.asarray(array) for array in take_all(tensors, shapes, file).values())
    return Whiten(mean=mean, matrix=matrix, inverse=inverse)


def _statistics(file: Path) -> Path:
    if not file.exists():
        raise UserError(
            f"{file.with_name(CONFIG)}: normalize_activations wants statistics that SAELens keeps in {file.name}, and "
            f"{file.parent} has none; copy it there from the checkpoint, or fold it in with SAELens and save again"
        )
    return file


NORMALIZERS: dict[str, Callable[[Path, int], AbstractNormalizer]] = {
    "none": lambda folder, embed: Identity(),
    "expected_average_only_in": _scale,
    "constant_norm_rescale": lambda folder, embed: ConstantNorm(),
    "layer_norm": lambda folder, embed: LayerNorm(),
    "covariance_whitening": _whiten,
}
