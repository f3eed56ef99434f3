"""Writes an H-SAE as a folder for torch, SAEBench and SAELens (`torch_module`), with ``hsae.py`` as its module.

Its latents are the experts, then atom a of expert e at ``experts + atoms e + a``. L0 does not change.
"""

from pathlib import Path
from typing import Any

from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.interop.torch_module import Given, Module, write_module
from jhsae.sae import AbstractSAE, HierarchicalSAE, Residual, ScaledByParent, Token, Unscaled
from jhsae.sparsify import (
    AbstractSparsifier,
    BestAtoms,
    BinaryGumbelTopK,
    GumbelTopK,
    JumpReLU,
    LeakyOffsetTopK,
    OffsetTopK,
    ReLU,
    TopK,
)

FORMAT = 1
MODULE = Module("hsae", "HSAE", "jhsae_hsae", "hierarchical sparse autoencoder")
RULES: dict[type[AbstractSparsifier], tuple[str, ...]] = {
    ReLU: (),
    JumpReLU: (),
    TopK: ("k",),
    OffsetTopK: ("k", "offset"),
    LeakyOffsetTopK: ("k", "offset", "slope"),
    GumbelTopK: ("k",),
    BinaryGumbelTopK: ("k",),
    BestAtoms: ("keep",),
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
            f"{type(sae).__name__} has no experts and atoms; this format is for hierarchical SAEs and pursuits, write "
            "format=saelens"
        )
    settings = {
        "format": FORMAT,
        "experts": sae.experts,
        "sub": sae.sub,
        "atoms": sae.atoms,
        "route": _rule("route", sae.route),
        "pick": _rule("pick", sae.pick),
        "child_input": _named("child_input", sae.child_input, (Token, Residual)),
        "child_scale": _named("child_scale", sae.child_scale, (Unscaled, ScaledByParent)),
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
    }
    latents = f"the {sae.experts} experts, then atom a of expert e at {sae.experts} + {sae.atoms} e + a"
    write_module(folder, MODULE, Given(sae, normalizer, about, prepend_bos), sae.b_dec, settings, latents)


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
