"""H-SAEs of every combination of parts with random weights, their exported folders, and what ours computes."""

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from reference.filled import filled

from jhsae import data
from jhsae.data import AbstractNormalizer
from jhsae.interop import torch_hsae
from jhsae.sae import HierarchicalSAE, Residual, ScaledByParent, Token, Unscaled
from jhsae.schedule import Constant
from jhsae.sparsify import (
    BestAtoms,
    BinaryGumbelTopK,
    GumbelTopK,
    JumpReLU,
    LeakyOffsetTopK,
    OffsetTopK,
    ReLU,
    TopK,
)

EMBED, EXPERTS, SUB, ATOMS = 8, 6, 2, 4
ABOUT = {"name": "run", "config_hash": "0123", "commit": None, "reads": {"model": "google/gemma-2-2b", "layer": 20}}
ONE = Constant(1.0)
ROUTES = (
    ReLU(),
    JumpReLU(),
    TopK(3),
    OffsetTopK(3, 0.3, "scan"),
    LeakyOffsetTopK(3, 0.3, 0.1),
    GumbelTopK(4, ONE),
    BinaryGumbelTopK(3, ONE),
)
PICKS = (
    ReLU(),
    JumpReLU(),
    TopK(1),
    OffsetTopK(2, 0.3),
    LeakyOffsetTopK(1, 0.3),
    BestAtoms(2),
    GumbelTopK(3, ONE),
    BinaryGumbelTopK(1, ONE),
)
TIES = ((), ("router", "projectors", "atoms"), ("projectors",))
BIASES = (("encoder", "decoder"), (), ("decoder",), ("encoder",))
AFFINE = (data.Identity(), data.Scale(), data.CenterScale(), data.Standardize(), data.Whiten())
PER_TOKEN = (data.UnitNorm(), data.CenteredUnitNorm(), data.ConstantNorm())


@cache
def inputs() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (2.0 + rng.normal(size=(64, EMBED)) * np.linspace(0.5, 3, EMBED)).astype(np.float32)


def normal(**parts) -> HierarchicalSAE:
    """An H-SAE with normal weights, thresholds and biases."""

    def make() -> HierarchicalSAE:
        given = {"route": TopK(3), "pick": TopK(1)} | parts
        return HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, **given, key=jax.random.key(0))

    return filled(make)


@dataclass(frozen=True)
class Case:
    sae: HierarchicalSAE
    normalizer: AbstractNormalizer

    def expected(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Our codes, in our units, and our reconstruction, in those of `x`."""
        inside, token = self.normalizer(jnp.asarray(x))
        codes = self.sae.encode(inside)
        return np.asarray(codes.dense()), np.asarray(self.normalizer.undo(self.sae.decode(codes), token))

    def write(self, folder: Path) -> Path:
        torch_hsae.write(folder, self.sae, self.normalizer, ABOUT)
        return folder


def case(normalizer: AbstractNormalizer = AFFINE[0], **parts) -> Case:
    """An H-SAE and a normaliser fitted on the inputs."""
    return Case(normal(**parts), normalizer.fit(data.ArrayRows(inputs())))


def combinations() -> dict[str, Case]:
    """Every route with every pick, child input and child scale; ties, biases and normalisers take turns."""
    found = {}
    parts = product(ROUTES, PICKS, (Token(), Residual()), (Unscaled(), ScaledByParent()))
    for i, (route, pick, child_input, child_scale) in enumerate(parts):
        name = "-".join(type(part).__name__ for part in (route, pick, child_input, child_scale))
        found[name] = case(
            AFFINE[i % len(AFFINE)],
            route=route,
            pick=pick,
            child_input=child_input,
            child_scale=child_scale,
            tie=TIES[i % len(TIES)],
            biases=BIASES[i % len(BIASES)],
            apply_b_dec_to_input=i % 7 < 4,
        )
    return found
