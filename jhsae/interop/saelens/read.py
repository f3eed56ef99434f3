"""Reads a SAELens directory of format 6: ``standard``, ``topk``, ``jumprelu``, ``gated``,
``matching_pursuit``, and training checkpoints.

A checkpoint of ``batchtopk`` or ``matryoshka_batchtopk`` has a running threshold; it is read as the JumpReLU that
SAELens saves after training. `rescale_acts_by_decoder_norm` is our `DecoderNormUnit`. Where
``cfg.json`` omits a key, SAELens's default applies. Thresholds below 0 act as 0, since SAELens applies a ReLU.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jhsae.errors import UserError, nearest
from jhsae.files.checksums import verify
from jhsae.files.forms import brief, count, setting
from jhsae.interop import imported
from jhsae.interop.imported import Imported
from jhsae.interop.saelens.layout import CONFIG, MAJOR, WEIGHTS, hub_name, layer_of
from jhsae.interop.saelens.normalize import normalizer_of
from jhsae.interop.tensors import Tensors, load, read_json, refuse_unknown, take, take_all

LARGEST_LOG = 88.0  # e^88 is nearly the largest float32


class SAELensFiles(NamedTuple):
    """The two files of a directory, and their paths for messages."""

    config: dict[str, Any]
    tensors: Tensors
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / CONFIG

    @property
    def sizes(self) -> tuple[int, int]:
        """(features, embed)."""
        return count(self.config, "d_sae", self.file), count(self.config, "d_in", self.file)

    @property
    def subtracted(self) -> bool:
        """Whether b_dec is subtracted from the input."""
        return self.option("apply_b_dec_to_input", bool, True)

    def option(self, key: str, kind: type, default: Any) -> Any:
        """A key that SAELens has a default for."""
        return setting(self.config, key, kind, self.file) if key in self.config else default

    def leaves(self, *names: str, more: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """The weights, and the vectors `names`; nothing but these and `more` may be in the file."""
        features, embed = self.sizes
        file = self.folder / WEIGHTS
        refuse_unknown(self.tensors, ("W_enc", "W_dec", "b_dec", *names, *more), file)
        shapes = {"W_enc": (embed, features), "W_dec": (features, embed), "b_dec": (embed,)}
        found = take_all(self.tensors, shapes | dict.fromkeys(names, (features,)), file)
        return found | {"W_enc": found["W_enc"].T}

    def slot(self, sparsifier: dict[str, Any], rescale: bool = False) -> dict[str, Any]:
        """The slot of a flat SAE."""
        unit = {"_target_": f"jhsae.sae.{'DecoderNormUnit' if rescale else 'PlainUnit'}"}
        return imported.flat_slot(*self.sizes, sparsifier, apply_b_dec_to_input=self.subtracted, code_unit=unit)


def read(path: str | Path) -> Imported:
    """The SAE in the directory `path`, with its normaliser.

    `UserError`, and nothing is built: a file, key or tensor is missing, misshapen or unknown; an architecture, a
    normalisation or a version of the format that is not read here; a reshaped hook_z.
    """
    folder = Path(path)
    verify(folder)
    config = read_json(folder / CONFIG)
    version = _version(config, folder / CONFIG)
    architecture = setting(config, "architecture", str, folder / CONFIG)
    if architecture not in READERS:
        known = f"{', '.join(READERS)}{nearest(architecture, READERS)}"
        raise UserError(f"{folder / CONFIG}: architecture is {brief(architecture)}, expected one of {known}")
    files = SAELensFiles(config, load(folder / WEIGHTS), folder)
    if (reshape := files.option("reshape_activations", str, "none")) != "none":
        raise UserError(
            f"{files.file}: reshape_activations is {brief(reshape)}, expected 'none'; an SAE of attention heads "
            "(hook_z) is not read here"
        )
    slot, leaves = READERS[architecture](files)
    name = files.option("normalize_activations", str, "none")
    normalize, normalizer = normalizer_of(name, folder, files.sizes[1])
    about = imported.about("saelens", folder, config, *_model_and_layer(_metadata(config, files.file)))
    about["source"] |= {"architecture": architecture, "version": version}
    return replace(imported.assemble(slot, leaves, about, files.file, normalize), normalizer=normalizer)


def _version(config: dict[str, Any], file: Path) -> str:
    found = config.get("sae_lens_version") or _metadata(config, file).get("sae_lens_version")
    if not isinstance(found, str) or not found:
        raise UserError(
            f"{file}: no metadata.sae_lens_version, so this is the format of SAELens 5 or older; load it with "
            f"sae-lens {MAJOR} and save it again with save_model"
        )
    major = re.match(r"[0-9]{1,9}(?=\.)", found)
    if major is None or int(major[0]) != MAJOR:
        older = major is not None and int(major[0]) < MAJOR
        advice = f"; load it with sae-lens {MAJOR} and save it again with save_model" if older else ""
        raise UserError(f"{file}: sae_lens_version is {brief(found)}, expected {MAJOR}.x, the format read here{advice}")
    return found


def _model_and_layer(metadata: dict[str, Any]) -> tuple[str | None, int | None]:
    model, *hooks = (metadata.get(key) for key in ("model_name", "hook_name", "hf_hook_name"))
    layers = (layer_of(hook) for hook in hooks if isinstance(hook, str))
    found = next((layer for layer in layers if layer is not None), None)
    if isinstance(model, str) and metadata.get("jhsae") is None:  # our own exports name the model as the harvest did
        model = hub_name(model)
    return model if isinstance(model, str) else None, found


def _metadata(config: dict[str, Any], file: Path) -> dict[str, Any]:
    return setting(config, "metadata", dict, file) if "metadata" in config else {}


SlotAndParameters = tuple[dict[str, Any], dict[str, np.ndarray]]  # the slot of an SAE, and its parameters by path


def _standard(files: SAELensFiles) -> SlotAndParameters:
    return files.slot(imported.RELU), files.leaves("b_enc")


def _topk(files: SAELensFiles) -> SlotAndParameters:
    k, rescale = count(files.config, "k", files.file, files.sizes[0]), _rescale(files, False)
    return files.slot(imported.top_k(k), rescale), files.leaves("b_enc")


def _jumprelu(files: SAELensFiles) -> SlotAndParameters:
    """Checkpoints before 6.5x hold log_threshold."""
    key = "log_threshold" if "log_threshold" in files.tensors else "threshold"
    leaves = files.leaves("b_enc", key)
    found = leaves.pop(key)
    if key == "log_threshold":
        if found.max() > LARGEST_LOG:
            raise UserError(f"{files.folder / WEIGHTS}: 'log_threshold' goes up to {found.max():g}, beyond float32")
        found = np.exp(found)
    return files.slot(imported.JUMP_RELU), leaves | _threshold(found)


def _batchtopk(files: SAELensFiles) -> SlotAndParameters:
    threshold = take(files.tensors, "topk_threshold", (), files.folder / WEIGHTS)
    leaves = files.leaves("b_enc", more=("topk_threshold",))
    spread = np.full(files.sizes[0], threshold, np.float32)
    return files.slot(imported.JUMP_RELU, _rescale(files, True)), leaves | _threshold(spread)


def _gated(files: SAELensFiles) -> SlotAndParameters:
    slot = imported.gated_slot(*files.sizes, apply_b_dec_to_input=files.subtracted)
    return slot, files.leaves("b_gate", "r_mag", "b_mag")


def _rescale(files: SAELensFiles, default: bool) -> bool:
    return files.option("rescale_acts_by_decoder_norm", bool, default)


def _threshold(values: np.ndarray) -> dict[str, np.ndarray]:
    return {"sparsifier.threshold": np.maximum(values, 0)}


def _matching_pursuit(files: SAELensFiles) -> SlotAndParameters:
    """Tied: there is no W_enc. Where `max_iterations` is null, SAELens goes on for d_in iterations, as ours."""
    file, (features, embed) = files.file, files.sizes
    options = {
        "residual_threshold": files.option("residual_threshold", float, 1e-2),
        "stop_on_duplicate_support": files.option("stop_on_duplicate_support", bool, True),
        "apply_b_dec_to_input": files.subtracted,
    }
    if files.config.get("max_iterations") is not None:
        options["max_iterations"] = count(files.config, "max_iterations", file)
    shapes = {"W_dec": (features, embed), "b_dec": (embed,)}
    refuse_unknown(files.tensors, shapes, files.folder / WEIGHTS)
    slot = {"_target_": "jhsae.sae.MatchingPursuitSAE", "embed": embed, "features": features, **options}
    return slot, take_all(files.tensors, shapes, files.folder / WEIGHTS)


READERS: dict[str, Callable[[SAELensFiles], SlotAndParameters]] = {
    "standard": _standard,
    "topk": _topk,
    "jumprelu": _jumprelu,
    "batchtopk": _batchtopk,
    "matryoshka_batchtopk": _batchtopk,
    "gated": _gated,
    "matching_pursuit": _matching_pursuit,
}
