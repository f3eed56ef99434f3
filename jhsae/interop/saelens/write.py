"""Writes a SAELens directory: `ReLU` as standard, `TopK` as topk, `JumpReLU` as jumprelu, `GatedSAE` as gated,
`MatchingPursuitSAE` as matching_pursuit.

An inference-time BatchTopK or Matryoshka SAE is a `JumpReLU`, as SAELens itself saves it. The unit of the codes and
the affine part of the normaliser are folded into the weights. Codes, L0 and reconstructions are those
of the SAE that is written, but for matching pursuit, whose codes are in the units of raw activations.
"""

from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from safetensors.numpy import save

from jhsae.config import published
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.checksums import new_folder
from jhsae.interop.saelens.layout import CONFIG, SPARSITY, VERSION, WEIGHTS, hook_names
from jhsae.interop.saelens.normalize import folded
from jhsae.sae import AbstractSAE, FlatSAE, GatedSAE, MatchingPursuitSAE
from jhsae.sparsify import AbstractSparsifier, GumbelTopK, JumpReLU, ReLU, TopK

# SAELens's architecture names by our class.
TRAINED_AS = {
    "ReLU": "standard",
    "TopK": "topk",
    "AnnealedTopK": "topk",
    "GumbelTopK": "topk",
    "JumpReLU": "jumprelu",
    "BatchTopK": "batchtopk",
    "GatedSAE": "gated",
    "MatchingPursuitSAE": "matching_pursuit",
}


class Form(NamedTuple):
    """An architecture of SAELens: its name, its keys of cfg.json, its tensors."""

    architecture: str
    keys: dict[str, Any]
    tensors: dict[str, Array]


def write(
    folder: str | Path,
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    about: dict[str, Any],
    frequency: Float[np.ndarray, "features"] | None = None,
) -> None:
    """Writes `sae`, with its `normalizer` and `about` as `jhsae.load_sae` gives them, into a new `folder`.

    `frequency` is the fraction of tokens that activated each feature; with it the folder also gets
    ``sparsity.safetensors`` (log10). `UserError`: something is there already; a hierarchical SAE, a sparsifier or a
    normaliser that SAELens has no form for.
    """
    raw, normalize, form = _prepared(sae, normalizer)
    shared = {"W_dec": raw.W_dec, "b_dec": raw.b_dec}
    settings = {
        "architecture": form.architecture,
        "d_in": raw.embed,
        "d_sae": raw.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": raw.apply_b_dec_to_input,
        "normalize_activations": normalize,
        "reshape_activations": "none",
        **form.keys,
        "metadata": _metadata(about),
    }
    with new_folder(Path(folder)) as new:
        new.write(CONFIG, to_json(settings, indent=2) + "\n")
        tensors = {k: np.ascontiguousarray(v, np.float32) for k, v in (shared | form.tensors).items()}
        new.write(WEIGHTS, save(tensors))
        if frequency is not None:
            rates = np.log10(np.asarray(frequency, np.float64) + 1e-10).astype(np.float32)
            new.write(SPARSITY, save({"sparsity": rates}))


def check(sae: AbstractSAE, normalizer: AbstractNormalizer) -> None:
    """Raises the `UserError` of `write` for SAEs without a SAELens equivalent."""
    _prepared(sae, normalizer)


def _prepared(sae: AbstractSAE, normalizer: AbstractNormalizer) -> tuple[Any, str, Form]:
    raw, normalize = folded(normalizer, sae)
    return raw, normalize, _form(raw)


def _metadata(about: dict[str, Any]) -> dict[str, Any]:
    ours = {"config_hash": about.get("config_hash"), "commit": about.get("commit")}
    ours["version"] = about.get("versions", {}).get("jhsae")
    slot = about.get("sae", {})
    part = slot.get("sparsifier", slot).get("_target_", "")
    return {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": about["reads"]["model"],
        **hook_names(about["reads"]["layer"]),
        "training_architecture": TRAINED_AS.get(published(part).rpartition(".")[2]),
        "jhsae": ours,
    }


@singledispatch
def _form(sae: AbstractSAE) -> Form:
    raise UserError(f"SAELens has no architecture like {type(sae).__name__}; write format=torch or format=folder")


@_form.register
def _(sae: GatedSAE) -> Form:
    return Form("gated", {}, _encoder(sae) | {"b_gate": sae.b_gate, "r_mag": sae.r_mag, "b_mag": sae.b_mag})


@_form.register
def _(sae: MatchingPursuitSAE) -> Form:
    keys = ("residual_threshold", "max_iterations", "stop_on_duplicate_support")
    return Form("matching_pursuit", {key: getattr(sae, key) for key in keys}, {})


def _encoder(sae: FlatSAE | GatedSAE) -> dict[str, Array]:
    return {"W_enc": sae.W_enc.T}


@_form.register
def _(sae: FlatSAE) -> Form:
    name, keys, tensors = _rule(sae.sparsifier)
    return Form(name, keys, _encoder(sae) | {"b_enc": sae.b_enc} | tensors)


@singledispatch
def _rule(sparsifier: AbstractSparsifier) -> Form:
    raise UserError(
        f"SAELens has no activation like {type(sparsifier).__name__}; write format=folder, which keeps it, or train "
        "with ReLU, TopK, BatchTopK or JumpReLU"
    )


@_rule.register
def _(sparsifier: ReLU) -> Form:
    return Form("standard", {}, {})


@_rule.register(TopK)
@_rule.register(GumbelTopK)
def _(sparsifier: TopK | GumbelTopK) -> Form:
    return Form("topk", {"k": sparsifier.k, "rescale_acts_by_decoder_norm": False}, {})


@_rule.register
def _(sparsifier: JumpReLU) -> Form:
    if (least := float(sparsifier.threshold.min())) < 0:
        raise UserError(
            f"a threshold is {least:.4g}: below 0, JumpReLU passes negative codes, which SAELens does not; write "
            "format=folder"
        )
    return Form("jumprelu", {}, {"threshold": sparsifier.threshold})
