"""`MixtureOfExperts_v2` recomputed: forward, loss, gradients, projected gradients, training.

The SAE, its objective and its training step are those of ``configs/reference/mixture_of_experts_v2.yaml`` at the sizes
of the golden file. The original stores decoders as columns; ours are rows.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae import config as cfg
from jhsae.data import Identity
from jhsae.parity.golden import (
    FORWARD,
    GRADIENT,
    TRAINED,
    Golden,
    Row,
    compare,
    group,
    same_sets,
    sizes,
    whole_number,
)
from jhsae.sae import AbstractSAE, Context, HierarchicalSAE
from jhsae.training.config import Train
from jhsae.training.recipe import Recipe, build_sae
from jhsae.training.step import StageModules, TrainState, make_step

# the original's name, ours, and whether its last two axes are swapped
LEAVES = (
    ("router_encoder", "router_enc", False),
    ("router_decoder", "router_dec", True),
    ("W_down", "down", False),
    ("W_up", "up", True),
    ("expert_encoder", "atom_enc", False),
    ("expert_decoder", "atom_dec", True),
)
SHAPES = {
    "init/W_down": "experts sub embed",
    "init/W_up": "experts embed sub",
    "init/router_encoder": "experts embed",
    "init/router_decoder": "embed experts",
    "init/expert_encoder": "experts atoms sub",
    "init/expert_decoder": "experts sub atoms",
    "batches": "steps batch embed",
}
L1, ORTHO = 1e-3, 0.1
CONFIG = "reference/mixture_of_experts_v2.yaml"
CONSTANT = (f"weights.l1={L1}", f"weights.cross_orthogonality={ORTHO}")
# the ramps of the golden run, which are shorter than the config's
RAMPS = ("weights.l1.steps=2", "weights.cross_orthogonality.steps=2")
RATE = ("stages.0.learning_rate.warmup=2", "stages.0.learning_rate.steps=10")


def rows(arrays: Golden) -> list[Row]:
    """Every quantity of a ``moe_v2`` golden file."""
    shape = _sizes(arrays)
    sae = _model(shape, arrays)
    batches, modules = jnp.asarray(arrays["batches"]), _recipe([*shape, *CONSTANT])[1]
    return [
        *_forward(sae, modules, batches[0], arrays),
        *_gradients(sae, modules, batches[0], arrays),
        *_training(sae, _recipe([*shape, *RAMPS, *RATE]), batches, arrays),
    ]


def _sizes(arrays: Golden) -> list[str]:
    """Overrides of the config with the sizes of the golden file."""
    group(arrays, "init")
    axes = sizes(arrays, SHAPES)
    k = whole_number(arrays, "meta/k", axes["experts"])
    return [*(f"sae.{name}={axes[name]}" for name in ("embed", "experts", "sub", "atoms")), f"sae.route.k={k}"]


def _recipe(overrides: list[str]) -> tuple[Recipe, StageModules]:
    recipe = Recipe.of(cfg.load(Train, cfg.find(CONFIG), overrides), Identity())
    return recipe, recipe.modules(recipe.stages[0])


def _model(overrides: list[str], arrays: Golden) -> HierarchicalSAE:
    config = cfg.load(Train, cfg.find(CONFIG), [*overrides, "sae.route.topk=scan"])
    sae: Any = build_sae(config, jax.random.key(0))
    init = group(arrays, "init")
    return eqx.tree_at(
        lambda s: [getattr(s, ours) for _, ours, _ in LEAVES], sae, [_ours(init[t], swap) for t, _, swap in LEAVES]
    )


def _ours(array: np.ndarray, swap: bool) -> Float[Array, "..."]:
    return jnp.asarray(np.swapaxes(array, -1, -2) if swap else array)


def _forward(sae: HierarchicalSAE, modules: StageModules, x: Float[Array, "batch embed"], arrays: Golden) -> list[Row]:
    forward = sae.forward(x, Context())
    total, terms = modules.objective(sae, forward, 0)
    parents, children = forward.codes.parents, forward.codes.children
    masked = jax.nn.one_hot(children.slot_indices()[..., 0], sae.atoms) * children.values
    indices = np.asarray(parents.slot_indices())
    values = {
        "top_codes": sae.route.activate(forward.pre),
        "topk_values": parents.values,
        "expert_codes": sae.pick.activate(forward.child_pre),
        "expert_codes_masked": masked,
        "x_hat": forward.x_hat,
        "x_hat_top": forward.x_hat_parents,
        "loss": total,
        "loss_terms/reconstruction_loss": terms["reconstruction"],
        "loss_terms/total_l1_loss": L1 * terms["l1"],
        "loss_terms/total_ortho_loss": ORTHO * terms["cross_orthogonality"],
    }
    return [
        same_sets("topk_indices", indices, arrays["topk_indices"]),
        *(compare(name, np.asarray(value), arrays[name], FORWARD) for name, value in values.items()),
    ]


def _gradients(
    sae: HierarchicalSAE, modules: StageModules, x: Float[Array, "batch embed"], arrays: Golden
) -> list[Row]:
    params, static = eqx.partition(sae, eqx.is_inexact_array)

    def loss(params: HierarchicalSAE) -> Float[Array, ""]:
        model = eqx.combine(params, static)
        return modules.objective(model, model.forward(x, Context()), 0)[0]

    grads = jax.jit(jax.grad(loss))(params)
    projected = modules.constraint.tangent(grads, params)
    return [
        *_leaves("grads", grads, arrays, GRADIENT),
        *_leaves("projected_grads", projected, arrays, GRADIENT),
    ]


def _training(
    sae: HierarchicalSAE, run: tuple[Recipe, StageModules], batches: Float[Array, "steps batch embed"], arrays: Golden
) -> list[Row]:
    recipe, modules = run
    step = make_step(recipe.optimizer, clip=recipe.stages[0].clip)
    state, losses = TrainState.init(sae, recipe.optimizer, jax.random.key(0)), []
    for batch in batches:
        state, metrics = step((modules, batch), state)
        losses.append(float(metrics["loss"]))
    trained = _leaves("final", state.sae, arrays, TRAINED)
    return [compare("train_losses", np.array(losses), arrays["train_losses"], TRAINED), *trained]


def _leaves(prefix: str, tree: AbstractSAE, arrays: Golden, tolerance: float) -> list[Row]:
    return [
        compare(
            f"{prefix}/{theirs}",
            np.asarray(jnp.swapaxes(getattr(tree, ours), -1, -2) if swap else getattr(tree, ours)),
            arrays[f"{prefix}/{theirs}"],
            tolerance,
        )
        for theirs, ours, swap in LEAVES
    ]
