"""Our side of ``jhsae bench step``: an SAE at its start and its objective, and their compiled step.

``faithful`` computes what the original computes (``configs/reference/mixture_of_experts_v2.yaml``), ``scale`` the
corrected form (``configs/scale.yaml``), ``flat`` a TopK SAE.
"""

from typing import Any

import jax
from jaxtyping import Array, Float

from jhsae.bench.memory import Memory
from jhsae.bench.original import CLIP, L1, ORTHOGONALITY, PARENTS_ONLY, RATE
from jhsae.bench.shape import Build, Shape
from jhsae.constraint import ProjectAndRenormalize
from jhsae.data import AbstractNormalizer, Identity
from jhsae.init import UnitDecoder
from jhsae.losses import (
    CrossOrthogonality,
    CrossOrthogonalityRowDiagonal,
    L1Active,
    L1All,
    Objective,
    ParentsOnly,
    SquaredError,
)
from jhsae.losses.base import AbstractTerm
from jhsae.optimizer import adam
from jhsae.sae import AbstractSAE, FlatSAE, HierarchicalSAE
from jhsae.schedule import Constant
from jhsae.sparsify import AbstractSparsifier, LeakyOffsetTopK, OffsetTopK, TopK
from jhsae.training.step import StageModules, TrainState, make_step


def faithful(shape: Shape, build: Build) -> tuple[HierarchicalSAE, Objective]:
    """The original's function and loss, its mistakes included."""
    return (
        _two_levels(shape, build, LeakyOffsetTopK(1, offset=shape.offset)),
        _objective(L1All(), CrossOrthogonalityRowDiagonal()),
    )


def scale(shape: Shape, build: Build) -> tuple[AbstractSAE, Objective]:
    """The corrected form."""
    sae = _two_levels(shape, build, TopK(1))
    return UnitDecoder()(sae, jax.random.key(0)), _objective(L1Active(), CrossOrthogonality())


def flat(shape: Shape, build: Build, features: int, k: int) -> tuple[AbstractSAE, Objective]:
    """A TopK SAE, trained for the squared error alone."""
    sae = FlatSAE(shape.embed, features, TopK(k, **build.select), key=jax.random.key(0), **build.compute)
    return sae, Objective({"reconstruction": SquaredError()})


def _two_levels(shape: Shape, build: Build, pick: AbstractSparsifier) -> HierarchicalSAE:
    route = OffsetTopK(shape.k, offset=shape.offset, **build.select)
    sizes = (shape.embed, shape.experts, shape.sub, shape.atoms)
    return HierarchicalSAE(*sizes, route, pick, key=jax.random.key(0), **build.compute)


def _objective(l1: AbstractTerm, orthogonality: AbstractTerm) -> Objective:
    terms = {
        "reconstruction": SquaredError(),
        "parents_only": ParentsOnly(),
        "l1": l1,
        "orthogonality": orthogonality,
    }
    return Objective(terms, {"parents_only": PARENTS_ONLY, "l1": L1, "orthogonality": ORTHOGONALITY})


class Training:
    """The compiled training step of an SAE, usage statistics included; every call makes one update of `batch`."""

    def __init__(
        self,
        sae: AbstractSAE,
        objective: Objective,
        batch: Float[Array, "batch embed"],
        normalizer: AbstractNormalizer = Identity(),  # noqa: B008  (an immutable module)
    ):
        optimizer = adam()
        self.modules = StageModules(objective, Constant(RATE), ProjectAndRenormalize(), normalizer)
        self.batch = batch
        self.state = TrainState.init(sae, optimizer, jax.random.key(0))
        step: Any = make_step(optimizer, clip=CLIP)
        self.step = step.lower((self.modules, batch), self.state).compile()
        self.memory = Memory.of(self.step.compiled)

    def __call__(self) -> None:
        """One update; returns when it is done."""
        self.update(self.batch)
        self.wait()

    def update(self, batch: Float[Array, "batch embed"]) -> None:
        """Begins one update of another batch of the same size."""
        self.state, _ = self.step((self.modules, batch), self.state)

    def wait(self) -> None:
        """Returns when every update is done."""
        jax.block_until_ready(self.state)
