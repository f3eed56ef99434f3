"""Our side of ``jhsae bench step``: the published configs at the sizes of a benchmark, and their compiled step.

``faithful`` computes what the original computes (``configs/reference/mixture_of_experts_v2.yaml``), ``scale`` the
corrected form (``configs/scale.yaml``), ``flat`` a TopK SAE (``configs/topk.yaml``), ``tree`` one that is found by
pursuit (``configs/recommended.yaml``). Weights and the learning rate are held at the values that those configs ramp up
to.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float

from jhsae import config as cfg
from jhsae.bench.inputs import Build, Shape
from jhsae.bench.measurement import Memory
from jhsae.bench.original import CLIP, L1, ORTHOGONALITY, RATE
from jhsae.data import AbstractNormalizer, Identity
from jhsae.ops import Precision
from jhsae.sae import AbstractSAE
from jhsae.training.config import Train
from jhsae.training.recipe import Recipe, build_sae
from jhsae.training.step import StageModules, TrainState, make_step

CONSTANT_WEIGHTS = (f"weights.l1={L1}", f"weights.cross_orthogonality={ORTHOGONALITY}")


class Start(NamedTuple):
    """An SAE at its initialisation, and what its training step computes with."""

    sae: Any
    modules: StageModules
    optimizer: optax.GradientTransformation


def faithful(shape: Shape, build: Build, normalizer: AbstractNormalizer = Identity()) -> Start:  # noqa: B008
    """The original's function and loss, its mistakes included."""
    sizes = _hierarchical(shape, build)
    return _start("reference/mixture_of_experts_v2.yaml", sizes, CONSTANT_WEIGHTS, normalizer)


def scale(shape: Shape, build: Build) -> Start:
    """The corrected form."""
    return _start("scale.yaml", _hierarchical(shape, build), CONSTANT_WEIGHTS)


def flat(shape: Shape, build: Build, features: int, k: int) -> Start:
    """A TopK SAE, trained for the squared error alone."""
    sparsifier = {f"sparsifier.{name}": value for name, value in {"k": k, **build.select}.items()}
    return _start("topk.yaml", {"embed": shape.embed, "features": features, **sparsifier, **build.compute}, ())


def tree(shape: Shape, children: int, candidates: str, **search: float) -> Start:
    """A tree whose roots are the experts, with exactly k rows per token.

    Args:
        shape: `sub` and `atoms` are not used.
        children: slots below a root; 0 for a flat pursuit.
        candidates: which of the roots compete, as in a config.
        search: arguments of `PursuitSAE` in place of those of the config.
    """
    budget = f"{{_target_: jhsae.sparsify.ExactL0, k: {shape.k}}}"
    levels = [shape.experts, children] if children else [shape.experts]
    sae = {"embed": shape.embed, "levels": levels, "budget": budget, "candidates": candidates, "growth": 1.25} | search
    if not children:
        return _start("pursuit/flat.yaml", sae, ())
    return _start("recommended.yaml", sae, ("weights.prefix=0.4",))


def _hierarchical(shape: Shape, build: Build) -> dict[str, Any]:
    sizes = {name: getattr(shape, name) for name in ("embed", "experts", "sub", "atoms")}
    route = {f"route.{name}": value for name, value in {"k": shape.k, **build.select}.items()}
    return {**sizes, **route, **build.compute}


def _start(
    name: str,
    sae: Mapping[str, Any],
    weights: tuple[str, ...],
    normalizer: AbstractNormalizer = Identity(),  # noqa: B008  (an immutable module)
) -> Start:
    overrides = [f"sae.{key}={value}" for key, value in sae.items()]
    config = cfg.load(Train, cfg.find(name), [*overrides, *weights, f"stages.0.learning_rate={RATE}"])
    recipe = Recipe.of(config, normalizer)
    built: AbstractSAE = build_sae(config, jax.random.key(0))
    return Start(built, recipe.modules(config.stages[0]), recipe.optimizer)


class Training:
    """The compiled training step of an SAE, feature statistics included; every call makes one update of `batch`."""

    def __init__(self, start: Start, batch: Float[Array, "batch embed"], precision: Precision = "float32"):
        self.modules, self.batch = start.modules, batch
        self.state = TrainState.init(start.sae, start.optimizer, jax.random.key(0))
        step: Any = make_step(start.optimizer, clip=CLIP, precision=precision)
        self.step = step.lower((self.modules, batch), self.state).compile()
        self.memory = Memory.of(self.step.compiled)

    def __call__(self) -> None:
        """One update; returns when it is done."""
        self.update(self.batch)
        self.wait()

    def update(self, batch: Float[Array, "batch embed"]) -> None:
        """Dispatches one update of another batch of the same size."""
        self.state, _ = self.step((self.modules, batch), self.state)

    def wait(self) -> None:
        """Blocks until every dispatched update is done."""
        jax.block_until_ready(self.state)
