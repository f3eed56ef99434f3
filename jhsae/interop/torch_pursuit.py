"""Writes a pursuit as a folder for torch, SAEBench and SAELens (`torch_module`), with ``pursuit.py`` as its module.

Rows are numbered level by level, as in `jhsae.ops.Forest`; an empty slot is a row of zeros that never fires. Products
are taken with the residual and not from tables, so that of two rows whose scores are equal to within rounding the
module may pick the other one.
"""

from pathlib import Path
from typing import Any

from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.interop.torch_module import Given, Module, write_module
from jhsae.sae import AbstractCandidates, AbstractSAE, AllRows, PursuitSAE, Screened
from jhsae.sparsify import AbstractBudget, ExactL0, Threshold

FORMAT = 1
MODULE = Module("pursuit", "Pursuit", "jhsae_pursuit", "sparse autoencoder without an encoder")
BUDGETS: dict[type[AbstractBudget], tuple[str, ...]] = {Threshold: ("most",), ExactL0: ("k", "extra")}
CANDIDATES: dict[type[AbstractCandidates], tuple[str, ...]] = {
    AllRows: (),
    Screened: ("rounds", "candidates", "by_round"),
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
        sae: a `PursuitSAE`, `for_inference`.
        normalizer: its fitted input normaliser.
        about: that of `load_sae`.
        prepend_bos: whether the sequences that the SAE was trained on open with BOS (`jhsae.data.opens_with_bos`); None
            where that is not known, which is written as true, SAELens's default.

    Raises:
        UserError: not a pursuit, not for inference, parts that the module does not know, or a normaliser that leaves no
            linear decoder.
    """
    if not isinstance(sae, PursuitSAE):
        raise UserError(
            f"{type(sae).__name__} is encoded by no pursuit; write jhsae.interop.torch_hsae.write, or saelens"
        )
    if type(sae.budget) not in BUDGETS:
        raise UserError(
            f"budget is {type(sae.budget).__name__}, which needs a batch; export sae.for_inference(usage), whose "
            "budget is Threshold or ExactL0"
        )
    if type(sae.candidates) not in CANDIDATES:
        raise UserError(
            f"candidates is {type(sae.candidates).__name__}, which the torch module does not compute; it knows AllRows "
            "and Screened"
        )
    budget = {name: getattr(sae.budget, name) for name in BUDGETS[type(sae.budget)]}
    screened = {name: getattr(sae.candidates, name) for name in CANDIDATES[type(sae.candidates)]}
    settings = {
        "format": FORMAT,
        "levels": list(sae.levels),
        "budget": {"rule": type(sae.budget).__name__, **budget},
        "screened": screened or None,
        "most_children": sae.most_children,
        "sweeps": sae.sweeps,
        "swept": [pick for pick, after in enumerate(sae.swept, 1) if after],
    }
    below = "".join(f", then {each} below each of them" for each in sae.levels[1:])
    latents = f"{sae.levels[0]} roots{below}, level by level"
    write_module(folder, MODULE, Given(sae, normalizer, about, prepend_bos), sae.b_dec, settings, latents)
