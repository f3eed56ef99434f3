"""The arms of the study: published configs with the sizes, the steps and the care for dead latents of this study.

An arm is a config of ``jhsae train`` and overrides; `PUBLISHED` names the config. All arms get resampling until 80 % of
the run and a learning rate that falls to 0 over the last 20 %, beside `AuxK` where the config has it. Decoder rows
have unit norm in all: with free norms a resampled row keeps the small norm of a dead one and is never selected.
"""

from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jhsae import config as cfg
from jhsae.sae import HierarchicalSAE
from jhsae.schedule import AbstractSchedule
from jhsae.training.config import Train
from jhsae.training.recipe import build_sae
from jhsae.worlds import World

EXPERTS, ATOMS, SUB = 272, 4, 4  # roots and third level with 4 children each: 272 x 5 = 1,360 latents


@dataclass(frozen=True)
class Size:
    """Sizes of the whole study; `QUICK` only shows that it works."""

    world: str = "worlds/tree_1360.yaml"
    features: int = 1360
    narrow: int = 293  # as many encoder multiplications as the H-SAEs with 5 experts
    experts: int = EXPERTS
    prefixes: tuple[int, ...] = (16, 80, 336)  # the true numbers of features down to each level
    steps: int = 1000
    batch: int = 256
    pool: int = 2**17
    rows: int = 2**14
    validation: int = 2**12
    l0s: tuple[int, ...] = (6, 14, 8, 10)
    swept: int = 10
    rates: tuple[float, ...] = (2.5e-3, 6e-3, 1.5e-2)
    permutations: int = 200


QUICK = Size("worlds/tiny.yaml", 24, 10, 6, (3,), 24, 64, 1024, 512, 256, (4,), 4, (3e-3,), 20)
FLAT = ("topk", "batchtopk", "matryoshka", "jumprelu")
HIERARCHICAL = ("scale", "geometry")
STARTED = ("geometry_roots", "geometry_permuted", "geometry_all")  # from the true features: not comparable
NARROW = tuple(f"{name}_narrow" for name in FLAT)
ARMS = (*FLAT, *HIERARCHICAL, *STARTED, *NARROW)
PUBLISHED = {
    "topk": "flat/topk.yaml",
    "batchtopk": "flat/batchtopk.yaml",
    "matryoshka": "flat/matryoshka.yaml",
    "jumprelu": "flat/jumprelu_quadratic.yaml",
    "scale": "quickstart/scale.yaml",
    "geometry": "quickstart/geometry.yaml",
}

UNIT_ROWS = [
    "sae.code_unit={_target_: jhsae.sae.PlainUnit}",
    "init=[{_target_: jhsae.init.UnitDecoder}]",
    "constraint={_target_: jhsae.constraint.ProjectAndRenormalize}",
]


class Peak(AbstractSchedule):
    """A schedule whose peak is 1, times a peak that is not part of the compiled program."""

    shape: AbstractSchedule
    peak: Float[Array, ""]

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        return self.peak * self.shape(step)


def selected(arm: str, l0: int, size: Size) -> int:
    """The experts of a token. Of two features each; scale's reach 1.7 on average, as codes below its offset are 0."""
    return min(size.experts, round(l0 / (1.71 if arm == "scale" else 2)))


def swept_at(arm: str, size: Size) -> int:
    """The L0 at which an arm's rate is searched: 10, and 8 (5 experts) of scale."""
    return 8 if arm == "scale" and 8 in size.l0s else size.swept


def kind(arm: str) -> str:
    """The published arm that an arm is a variant of."""
    return arm.split("_")[0]


def config(arm: str, l0: int, rate: float, seed: int, size: Size, embed: int) -> Train:
    """The config of one run.

    Args:
        arm: one of `ARMS`.
        l0: the total L0 that it is set to: k, a target, or twice the number of experts.
        rate: the peak of the learning rate.
        seed: of the initial parameters and of the order of the rows.
        size: sizes of the study.
        embed: the width of an activation.
    """
    steps = size.steps
    schedule = f"{{_target_: jhsae.schedule.Trapezoid, peak: {rate}, warmup: {steps // 20}, decay: {steps // 5}, steps: {steps}}}"  # noqa: E501
    words = [
        "out=runs/truth",
        "data.store=null",
        "data.live={_target_: jhsae.worlds.WorldActivations, path: runs/truth/world}",
        f"data.batch={size.batch}",
        f"seed={seed}",
        f"data.seed={seed}",
        f"sae.embed={embed}",
        f"stages=[{{name: train, steps: {steps}, learning_rate: {schedule}}}]",
        f"resampling={{_target_: jhsae.resampling.Resample, every: {steps // 12}, until: {steps * 4 // 5}}}",
        f"dead_window={max(1, steps // 12)}",
    ]
    own = {
        "scale": _scale, "geometry": _geometry, "jumprelu": _jumprelu, "matryoshka": _matryoshka
    }.get(kind(arm), _topk)  # fmt: skip
    if kind(arm) in FLAT:
        words.append(f"sae.features={size.narrow if arm in NARROW else size.features}")
        words += UNIT_ROWS
    else:
        words += [
            f"sae.experts={size.experts}",
            f"sae.sub={SUB}",
            f"sae.atoms={ATOMS}",
            f"sae.route.k={selected(arm, l0, size)}",
        ]
    return cfg.load(Train, cfg.find(PUBLISHED[kind(arm)]), words + own(l0, size, arm in NARROW))


def _topk(l0: int, size: Size, narrow: bool) -> list[str]:
    return [f"sae.sparsifier.k={l0}"]


def _matryoshka(l0: int, size: Size, narrow: bool) -> list[str]:
    width = size.narrow if narrow else size.features
    return [f"sae.sparsifier.k={l0}", f"objective.prefixes.widths={[w for w in size.prefixes if w < width]}"]


def _jumprelu(l0: int, size: Size, narrow: bool) -> list[str]:
    """Held at its L0 by a quadratic penalty, with the gradient of the jump to the input and the term for the dead.

    Thresholds start at 2, which about 2 % of the pre-activations exceed: from 0.1, where half do, the penalty silences
    four of five latents.
    """
    warmup = size.steps // 2
    return [
        "sae.sparsifier.gradient_to=threshold_and_input",
        "sae.sparsifier.initial=2.0",
        "objective.pre_activation={_target_: jhsae.losses.DeadPreActivation}",
        "weights.pre_activation=0.003",
        f"objective.sparsity.target={l0}",
        f"weights.sparsity={{_target_: jhsae.schedule.Linear, start: 0.0, end: 2.0, steps: {warmup}}}",
    ]


def _scale(l0: int, size: Size, narrow: bool) -> list[str]:
    rise = size.steps // 10
    return [
        f"weights.l1={{_target_: jhsae.schedule.Linear, start: 0.0, end: 0.001, steps: {rise}}}",
        f"weights.cross_orthogonality={{_target_: jhsae.schedule.Linear, start: 0.0, end: 0.1, steps: {rise}}}",
    ]


def _geometry(l0: int, size: Size, narrow: bool) -> list[str]:
    """One stage, that of the published config after its teacher's directions are let go; Euclidean metric."""
    cooling = f"{{_target_: jhsae.schedule.Linear, start: 1.5, end: 0.7, steps: {size.steps}}}"
    return [
        "teacher=null",
        "metric={_target_: jhsae.metric.Euclidean}",
        "init=[{_target_: jhsae.init.UnitDecoder}]",
        f"sae.route.temperature={cooling}",
        "weights.parents_only=0.05",
    ]


def started(arm: str, sae: HierarchicalSAE, world: World) -> HierarchicalSAE:
    """The SAE with experts and atoms at true features, encoders as decoders; the other experts stay random.

    Args:
        arm: "geometry_roots": the first experts are the roots, their atoms the children of each. "geometry_permuted":
            the same children, dealt to other roots. "geometry_all": every root and every feature of the third level is
            an expert and the children of each are its atoms, so that all features have a latent.
        sae: the SAE as it was built.
        world: what is known.
    """
    hierarchy, features = world.hierarchy, np.asarray(world.features)
    levels = (0, 2) if arm == "geometry_all" else (0,)
    parents = np.flatnonzero(np.isin(hierarchy.levels, levels) & np.array([len(b) >= ATOMS for b in hierarchy.below]))
    parents = parents[: sae.experts]
    children = np.array([hierarchy.below[p][:ATOMS] for p in parents])
    if arm == "geometry_permuted":
        children = np.random.default_rng(0).permutation(children.reshape(-1)).reshape(children.shape)
    basis, coordinates = np.linalg.qr(features[children].transpose(0, 2, 1))  # [p, embed, sub], [p, sub, atoms]
    n, atoms = len(parents), jnp.asarray(coordinates.transpose(0, 2, 1))
    up, rows = jnp.asarray(basis.transpose(0, 2, 1)), jnp.asarray(features[parents])
    new: dict[str, tuple[Callable, jnp.ndarray]] = {
        "router": (lambda s: (s.router_enc, s.router_dec), rows),
        "projectors": (lambda s: (s.down, s.up), up),
        "atoms": (lambda s: (s.atom_enc, s.atom_dec), atoms),
    }
    for where, value in new.values():
        sae = eqx.tree_at(where, sae, tuple(a.at[:n].set(value) for a in where(sae)))
    return sae


def encoder_products(settings: Train) -> int:
    """Multiplications that encode one token when only the selected experts are computed."""
    return round(eqx.filter_eval_shape(build_sae, settings, jax.random.key(0)).encoder_macs().tables)
