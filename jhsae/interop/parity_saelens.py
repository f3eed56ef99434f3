"""SAELens recomputed: one training forward pass of every architecture, its loss terms and its gradients.

SAELens stores ``W_enc [d_in, d_sae]``; ours has features as rows. Terms are compared weighted, as it returns them.
"""

import json
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae import losses
from jhsae.errors import UserError, nearest
from jhsae.interop.golden import FORWARD, GRADIENT, Row, compare, group
from jhsae.losses import AbstractTerm, Objective
from jhsae.sae import AbstractSAE, DecoderNormUnit, FlatSAE, GatedSAE, PlainUnit
from jhsae.sparsify import AbstractSparsifier, BatchTopK, JumpReLU, ReLU, TopK
from jhsae.usage import Context, Usage

Config = dict[str, Any]
Weighted = dict[str, tuple[float, AbstractTerm]]


def rows(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Every quantity of a ``saelens`` golden file, architecture by architecture."""
    names = sorted({key.split("/")[0] for key in arrays if key.endswith("/config")})
    x, dead = jnp.asarray(arrays["x"]), jnp.asarray(arrays["dead_mask"], jnp.float32)
    return [row for name in names for row in _architecture(name, group(arrays, name), x, dead)]


def _architecture(name: str, golden: dict[str, np.ndarray], x: Float[Array, "batch embed"], dead: Array) -> list[Row]:
    config = json.loads(str(golden["config"]))
    sae = _filled(_sae(config), group(golden, "param"))
    terms = {"mse_loss": (1.0, losses.SquaredError()), **_terms(config)}
    objective = Objective({k: t for k, (_, t) in terms.items()}, {k: w for k, (w, _) in terms.items()})
    context = Context(key=jax.random.key(0), dead=dead)
    params, static = eqx.partition(sae, eqx.is_inexact_array)

    def loss(params: AbstractSAE) -> tuple[Array, tuple[Any, ...]]:
        model = eqx.combine(params, static)
        forward = model.forward(x, context)
        total, values = objective(model, forward, 0)
        return total, (total, values, forward.codes.dense(), forward.x_hat, forward.codes)

    grads, (total, values, acts, x_hat, codes) = jax.jit(jax.grad(loss, has_aux=True))(params)
    found = {"feature_acts": acts, "x_hat": x_hat, "loss": total}
    found |= {f"loss_terms/{k}": w * values.get(k, 0.0) for k, (w, _) in terms.items()}  # weight 0 is left out
    if "topk_threshold" in golden:
        found["topk_threshold"] = sae.observe(Usage.init(sae.features), codes, 1).thresholds[0]
    compared = [compare(f"{name}/{k}", np.asarray(v), golden[k], FORWARD) for k, v in found.items()]
    missed = {k for k in golden if k.startswith("loss_terms/")} - found.keys()
    compared += [Row(f"{name}/{k}", float("inf"), float("inf"), FORWARD) for k in sorted(missed)]
    return compared + [
        compare(f"{name}/grad/{k}", _theirs(k, _leaf(grads, k)), g, GRADIENT) for k, g in group(golden, "grad").items()
    ]


def _sae(config: Config) -> AbstractSAE:
    """An SAE of the architecture's structure; its values are replaced."""
    embed, features, key = config["d_in"], config["d_sae"], jax.random.key(0)
    centred = config["apply_b_dec_to_input"]
    if config["architecture"] == "gated":
        return GatedSAE(embed, features, apply_b_dec_to_input=centred, key=key)
    unit = DecoderNormUnit() if config.get("rescale_acts_by_decoder_norm") else PlainUnit()
    return FlatSAE(embed, features, _sparsifier(config), code_unit=unit, apply_b_dec_to_input=centred, key=key)


def _sparsifier(config: Config) -> AbstractSparsifier:
    batch = lambda: BatchTopK(config["k"], config["topk_threshold_lr"])  # noqa: E731
    made: dict[str, Callable[[], AbstractSparsifier]] = {
        "standard": ReLU,
        "topk": lambda: TopK(config["k"]),
        "batchtopk": batch,
        "matryoshka_batchtopk": batch,
        "jumprelu": lambda: JumpReLU(
            config["jumprelu_init_threshold"],
            config["jumprelu_bandwidth"],
            "threshold_and_input" if config["jumprelu_ste_to_input"] else "threshold",
        ),
    }
    if (name := config["architecture"]) not in made:
        raise UserError(f"the golden file has the architecture '{name}', expected one of {sorted(made)}, gated")
    return made[name]()


def _terms(config: Config) -> Weighted:
    """SAELens's loss terms beside the squared error, under its names, with their weights."""
    name = config["architecture"]
    if name == "standard":
        return {"l1_loss": (config["l1_coefficient"], losses.Contributions(config["lp_norm"]))}
    if name == "gated":
        return {
            "l1_loss": (config["l1_coefficient"], losses.GateL1()),
            "auxiliary_reconstruction_loss": (1.0, losses.GateReconstructionFreeDecoder()),
        }
    if name == "jumprelu":
        return _jump_terms(config)
    widths = config.get("matryoshka_widths", [])[:-1]
    levels = config.get("use_matryoshka_aux_loss", False)
    aux = losses.MatryoshkaAuxK(tuple(widths)) if levels else losses.AuxK()
    terms: Weighted = {"auxiliary_reconstruction_loss": (config["aux_loss_coefficient"], aux)}
    return terms | {f"inner_mse_loss_{w}": (1.0, losses.Prefixes((w,))) for w in widths}


def _jump_terms(config: Config) -> Weighted:
    modes: dict[str, Callable[[], AbstractTerm]] = {
        "step": losses.L0,
        "tanh": lambda: losses.TanhL0(config["jumprelu_tanh_scale"]),
        "quadratic": lambda: losses.QuadraticL0(config["target_l0"]),
    }
    mode = config["jumprelu_sparsity_loss_mode"]
    if mode not in modes:
        raise UserError(f"jumprelu_sparsity_loss_mode is '{mode}'{nearest(mode, modes)}; known: {', '.join(modes)}")
    terms: Weighted = {"l0_loss": (config["l0_coefficient"], modes[mode]())}
    if config["pre_act_loss_coefficient"] is not None:
        terms["pre_act_loss"] = (config["pre_act_loss_coefficient"], losses.DeadPreActivation())
    return terms


def _filled(sae: AbstractSAE, params: dict[str, np.ndarray]) -> AbstractSAE:
    return eqx.tree_at(
        lambda s: [_leaf(s, name) for name in params], sae, [jnp.asarray(_theirs(k, v)) for k, v in params.items()]
    )


def _leaf(sae: Any, name: str) -> Any:
    """Our leaf under SAELens's name."""
    return sae.sparsifier.threshold if name == "threshold" else getattr(sae, name)


def _theirs(name: str, array: Any) -> np.ndarray:
    """To and from SAELens's layout: only W_enc is transposed."""
    return np.asarray(array).T if name == "W_enc" else np.asarray(array)
