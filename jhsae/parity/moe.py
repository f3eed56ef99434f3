"""`MixtureOfExperts_v2` recomputed: forward, loss, gradients, projected gradients, training.

The original stores decoders as columns; ours are rows.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae.constraint import ProjectAndRenormalize
from jhsae.data import Identity
from jhsae.losses import CrossOrthogonalityRowDiagonal, L1All, Objective, ParentsOnly, SquaredError
from jhsae.optimizer import adam
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
from jhsae.sae import AbstractSAE, HierarchicalSAE
from jhsae.schedule import Constant, Linear, WarmupCosine
from jhsae.sparsify import LeakyOffsetTopK, OffsetTopK
from jhsae.training.step import StageModules, TrainState, make_step
from jhsae.usage import Context

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
L1, ORTHO, PARENTS = 1e-3, 0.1, 0.1


def rows(arrays: Golden) -> list[Row]:
    """Every quantity of a ``moe_v2`` golden file."""
    sae = _model(arrays)
    batches = jnp.asarray(arrays["batches"])
    return [
        *_forward(sae, batches[0], arrays),
        *_gradients(sae, batches[0], arrays),
        *_training(sae, batches, arrays),
    ]


def _model(arrays: Golden) -> HierarchicalSAE:
    init = group(arrays, "init")
    axes = sizes(arrays, SHAPES)
    embed, k = axes["embed"], whole_number(arrays, "meta/k", axes["experts"])
    sae = HierarchicalSAE(
        embed,
        axes["experts"],
        axes["sub"],
        axes["atoms"],
        OffsetTopK(k, offset=embed**-0.5, topk="scan"),
        LeakyOffsetTopK(1, offset=embed**-0.5),
        key=jax.random.key(0),
    )
    params = {ours: _ours(init[theirs], swap) for theirs, ours, swap in LEAVES}
    names = [ours for _, ours, _ in LEAVES]
    return eqx.tree_at(lambda s: [getattr(s, n) for n in names], sae, [params[n] for n in names])


def _ours(array: np.ndarray, swap: bool) -> Float[Array, "..."]:
    return jnp.asarray(np.swapaxes(array, -1, -2) if swap else array)


def _objective(warmup: int | None = None) -> Objective:
    ramp = (lambda w: Constant(w)) if warmup is None else (lambda w: Linear(0.0, w, warmup))
    terms = {
        "reconstruction": SquaredError(),
        "parents_only": ParentsOnly(),
        "l1": L1All(),
        "orthogonality": CrossOrthogonalityRowDiagonal(),
    }
    return Objective(terms, {"parents_only": PARENTS, "l1": ramp(L1), "orthogonality": ramp(ORTHO)})


def _forward(sae: HierarchicalSAE, x: Float[Array, "batch embed"], arrays: Golden) -> list[Row]:
    forward = sae.forward(x, Context())
    total, terms = _objective()(sae, forward, 0)
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
        "loss_terms/total_ortho_loss": ORTHO * terms["orthogonality"],
    }
    return [
        same_sets("topk_indices", indices, arrays["topk_indices"]),
        *(compare(name, np.asarray(value), arrays[name], FORWARD) for name, value in values.items()),
    ]


def _gradients(sae: HierarchicalSAE, x: Float[Array, "batch embed"], arrays: Golden) -> list[Row]:
    params, static = eqx.partition(sae, eqx.is_inexact_array)

    def loss(params: HierarchicalSAE) -> Float[Array, ""]:
        model = eqx.combine(params, static)
        return _objective()(model, model.forward(x, Context()), 0)[0]

    grads = jax.jit(jax.grad(loss))(params)
    projected = ProjectAndRenormalize().tangent(grads, params)
    return [
        *_leaves("grads", grads, arrays, GRADIENT),
        *_leaves("projected_grads", projected, arrays, GRADIENT),
    ]


def _training(sae: HierarchicalSAE, batches: Float[Array, "steps batch embed"], arrays: Golden) -> list[Row]:
    rate = WarmupCosine(peak=5e-4, warmup=2, steps=10, start=1e-11, final=0.1)
    modules = StageModules(_objective(warmup=2), rate, ProjectAndRenormalize(), Identity())
    optimizer = adam()
    step = make_step(optimizer, clip=0.75)
    state, losses = TrainState.init(sae, optimizer, jax.random.key(0)), []
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
