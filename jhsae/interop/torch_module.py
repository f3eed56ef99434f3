"""The parts that all folders of shipped torch modules share: weights, config, module and README.

A folder holds ``sae_weights.safetensors``, the weights as they were trained, ``cfg.json``, the config under SAELens's
names, and the module of jhsae/assets/torch that computes with them, whole in one file. Decoding is linear over all
latents with unit decoder rows, in the units of the language model; where inputs are scaled token by token, the scale is
in the codes.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

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
from jhsae.sae import AbstractSAE

ASSETS = Path(str(files("jhsae"))) / "assets" / "torch"
SHARED = "jhsae.assets.torch.shared"
QUOTES = '"""'


class Module(NamedTuple):
    """A shipped torch module.

    Args:
        name: its file is ``name.py``.
        klass: the class to load with.
        architecture: in cfg.json, which SAELens knows after the plug-in was imported.
        what: the kind of SAE, as the README names it.
    """

    name: str
    klass: str
    architecture: str
    what: str

    @property
    def file(self) -> str:
        """The file in a folder."""
        return f"{self.name}.py"

    def text(self) -> str:
        """The module with what it shares with others in place of the import, so that one file is whole."""
        own, shared = ((ASSETS / name).read_text() for name in (self.file, "shared.py"))
        before, _, rest = own.partition(f"from {SHARED} import (\n")
        code = rest.partition("\n)\n")[2].strip()
        assert code, f"{self.file} imports {SHARED} in parentheses"
        _, about, before = before.split(QUOTES, 2)
        lines = (before + shared.split(QUOTES, 2)[2]).splitlines()
        imports = {line for line in lines if line.startswith(("import ", "from "))}
        ordered = sorted(imports, key=lambda line: ("torch" in line, line.startswith("from "), line))
        inside = "\n".join(line for line in lines if line not in imports).strip()
        constants, definitions = zip(*(part.split("\n\n\n", 1) for part in (inside, code)), strict=True)
        parts = ["\n".join(ordered), "\n".join(constants) + "\n", "\n\n\n".join(definitions) + "\n"]
        return "\n\n".join([QUOTES + about + QUOTES, *parts])


class Given(NamedTuple):
    """What is written, beside the SAE's own settings.

    Args:
        sae: `for_inference`.
        normalizer: its fitted input normaliser.
        about: that of `load_sae`.
        prepend_bos: whether the sequences that the SAE was trained on open with BOS; None where that is not known,
            which is written as true, SAELens's default.
    """

    sae: AbstractSAE
    normalizer: AbstractNormalizer
    about: dict[str, Any]
    prepend_bos: bool | None


def write_module(
    folder: str | Path, module: Module, given: Given, bias: Array | None, settings: dict[str, Any], latents: str
) -> None:
    """Writes the folder; it appears complete, and an existing one is not overwritten.

    Args:
        folder: must not exist.
        module: the torch module.
        given: the SAE.
        bias: the SAE's decoder bias, if it has one.
        settings: what of the SAE the module reads; the tensors and the scale per token are added.
        latents: how the latents are numbered, for the README.

    Raises:
        UserError: a normaliser that leaves no linear decoder.
    """
    affine, scale = affine_and_scale(given, bias)
    tensors = _tensors(given.sae) | {name: _array(getattr(affine, name)) for name in ("shift", "matrix", "inverse")}
    shapes = {name: list(a.shape) for name, a in tensors.items()}
    config = _config(module, given) | {"hsae": settings | {"token_scale": scale, "tensors": shapes}}
    with new_folder(Path(folder)) as new:
        new.write(WEIGHTS, save(tensors))
        new.write(CONFIG, to_json(config, indent=2) + "\n")
        new.write(module.file, module.text())
        new.write("README.md", _readme(module, config, latents))


def _tensors(sae: AbstractSAE) -> dict[str, np.ndarray]:
    """The parameters under their paths, with underscores for dots (torch names no parameter with a dot)."""
    arrays = eqx.filter(sae, eqx.is_inexact_array)
    paths = [leaf.path.replace(".", "_") for leaf in jax.tree.leaves(describe(arrays))]
    return {path: _array(a) for path, a in zip(paths, jax.tree.leaves(arrays), strict=True)}


def _array(a: Array) -> np.ndarray:
    return np.asarray(a, np.float32, order="C")


def affine_and_scale(given: Given, bias: Array | None) -> tuple[Affine, dict[str, float] | None]:
    """The affine part of a normaliser, and the rule of its per-token scale: (norm + eps) * factor.

    Args:
        given: the SAE and its normaliser.
        bias: the SAE's decoder bias, if it has one.

    Raises:
        UserError: a normaliser that leaves no linear decoder.
    """
    sae, normalizer = given.sae, given.normalizer
    affine, name = normalizer.affine(), type(normalizer).__name__
    if affine is not None:
        return affine.over(sae.embed), None
    if isinstance(normalizer, LayerNorm):
        raise UserError(
            "LayerNorm subtracts each token's own mean, which no decoder that is linear in the codes can add back; "
            "train with data.normalize UnitNorm, ConstantNorm or CenterScale to export the SAE"
        )
    if bias is not None and np.any(np.asarray(bias) != 0):
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


def _config(module: Module, given: Given) -> dict[str, Any]:
    """cfg.json: SAELens's keys; those of the torch module are under "hsae"."""
    sae, about = given.sae, given.about
    model, layer = about["reads"]["model"], about["reads"]["layer"]
    origin = {key: about.get(key) for key in ("name", "config_hash", "commit")}
    return {
        "architecture": module.architecture,
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
            "prepend_bos": given.prepend_bos is not False,
            "context_size": None,
            "jhsae": origin | {"version": about.get("versions", {}).get("jhsae")},
        },
    }


def _readme(module: Module, config: dict[str, Any], latents: str) -> str:
    """Description and usage of the folder."""
    metadata = config["metadata"]
    sizes = {name: config[name] for name in ("d_in", "d_sae")}
    model, hook = metadata["model_name"] or "a language model", metadata["hook_name"] or "a hook that is not known"
    where = f"{escaped(model)}, at {escaped(hook)}"
    origin = "".join(f", {key} {escaped(value)}" for key, value in metadata["jhsae"].items() if value)
    by_token = config["hsae"]["token_scale"] is not None
    scale = "norms and each token's scale are in the codes" if by_token else "norms are in the codes"
    template = (ASSETS / "README.template.md").read_text()
    return template.format(**sizes, **module._asdict(), latents=latents, where=where, origin=origin, scale=scale)
