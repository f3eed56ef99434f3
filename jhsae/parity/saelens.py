"""SAELens recomputed: one training forward pass of every architecture, its loss terms and its gradients.

SAELens stores ``W_enc [d_in, d_sae]``; ours has features as rows. Terms are compared weighted, as it returns them.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae import losses
from jhsae.errors import UserError, nearest
from jhsae.files import bounded
from jhsae.files.forms import brief, count, setting
from jhsae.losses import AbstractTerm, Objective
from jhsae.parity.golden import FORWARD, GRADIENT, Golden, Row, compare, group, sizes
from jhsae.sae import AbstractSAE, Context, DecoderNormUnit, FeatureStats, FlatSAE, GatedSAE, PlainUnit
from jhsae.sparsify import AbstractSparsifier, BatchTopK, JumpReLU, ReLU, TopK

CONFIG = "the config in the golden file"
Config = dict[str, Any]
Weighted = dict[str, tuple[float, AbstractTerm]]


def rows(arrays: Golden) -> list[Row]:
    """Every quantity of a ``saelens`` golden file, architecture by architecture."""
    sizes(arrays, {"x": "batch embed", "dead_mask": "features"})
    names = sorted({key.split("/")[0] for key in arrays if key.endswith("/config")})
    if not names:
        raise UserError("the golden file has no array 'NAME/config', expected one for every architecture")
    for name in names:
        sizes(arrays, {"x": "batch embed", "dead_mask": "features", f"{name}/param/W_enc": "embed features"})
    x, dead = jnp.asarray(arrays["x"]), jnp.asarray(arrays["dead_mask"], jnp.float32)
    return [row for name in names for row in _architecture(name, group(arrays, name), x, dead)]


def _architecture(name: str, golden: Golden, x: Float[Array, "batch embed"], dead: Array) -> list[Row]:
    config = bounded.as_object(bounded.parse_json(str(golden["config"]), CONFIG), CONFIG)
    if (embed := count(config, "d_in", CONFIG)) != x.shape[-1]:
        raise UserError(f"{CONFIG} has d_in {embed}, but 'x' has vectors of {x.shape[-1]}")
    if (features := count(config, "d_sae", CONFIG)) != dead.size:
        raise UserError(f"{CONFIG} has d_sae {features}, but 'dead_mask' has {dead.size} features")
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
        found["topk_threshold"] = sae.observe(FeatureStats.init(sae.features), codes, 1).thresholds[0]
    compared = [compare(f"{name}/{k}", np.asarray(v), golden[k], FORWARD) for k, v in found.items()]
    missed = {k for k in golden if k.startswith("loss_terms/")} - found.keys()
    compared += [Row(f"{name}/{k}", float("inf"), float("inf"), FORWARD) for k in sorted(missed)]
    return compared + [
        compare(f"{name}/grad/{k}", _theirs(k, _leaf(grads, k)), group(golden, "grad")[k], GRADIENT)
        for k in group(golden, "param")
    ]


def _sae(config: Config) -> AbstractSAE:
    """An SAE of the architecture's structure; its values are replaced."""
    embed, features, key = count(config, "d_in", CONFIG), count(config, "d_sae", CONFIG), jax.random.key(0)
    centred = setting(config, "apply_b_dec_to_input", bool, CONFIG)
    if config.get("architecture") == "gated":
        return GatedSAE(embed, features, apply_b_dec_to_input=centred, key=key)
    unit = DecoderNormUnit() if config.get("rescale_acts_by_decoder_norm") is True else PlainUnit()
    return FlatSAE(embed, features, _sparsifier(config), code_unit=unit, apply_b_dec_to_input=centred, key=key)


def _sparsifier(config: Config) -> AbstractSparsifier:
    batch = lambda: BatchTopK(_number(config, "k"), _number(config, "topk_threshold_lr"))  # noqa: E731
    made: dict[str, Callable[[], AbstractSparsifier]] = {
        "standard": ReLU,
        "topk": lambda: TopK(count(config, "k", CONFIG, count(config, "d_sae", CONFIG))),
        "batchtopk": batch,
        "matryoshka_batchtopk": batch,
        "jumprelu": lambda: JumpReLU(
            _number(config, "jumprelu_init_threshold"),
            _number(config, "jumprelu_bandwidth"),
            "threshold_and_input" if setting(config, "jumprelu_ste_to_input", bool, CONFIG) else "threshold",
        ),
    }
    if (name := setting(config, "architecture", str, CONFIG)) not in made:
        raise UserError(f"{CONFIG} has the architecture {brief(name)}, expected one of {sorted(made)}, gated")
    return made[name]()


def _terms(config: Config) -> Weighted:
    """SAELens's loss terms beside the squared error, under its names, with their weights."""
    name = config["architecture"]
    if name == "standard":
        term = losses.Contributions(_number(config, "lp_norm"))
        return {"l1_loss": (_number(config, "l1_coefficient"), term)}
    if name == "gated":
        return {
            "l1_loss": (_number(config, "l1_coefficient"), losses.GateL1()),
            "auxiliary_reconstruction_loss": (1.0, losses.GateReconstructionFreeDecoder()),
        }
    if name == "jumprelu":
        return _jump_terms(config)
    widths = _widths(config)[:-1]
    levels = config.get("use_matryoshka_aux_loss") is True
    aux = losses.MatryoshkaAuxK(tuple(widths)) if levels else losses.AuxK()
    terms: Weighted = {"auxiliary_reconstruction_loss": (_number(config, "aux_loss_coefficient"), aux)}
    return terms | {f"inner_mse_loss_{w}": (1.0, losses.Prefixes((w,))) for w in widths}


def _jump_terms(config: Config) -> Weighted:
    modes: dict[str, Callable[[], AbstractTerm]] = {
        "step": losses.L0,
        "tanh": lambda: losses.TanhL0(_number(config, "jumprelu_tanh_scale")),
        "quadratic": lambda: losses.QuadraticL0(_number(config, "target_l0")),
    }
    mode = setting(config, "jumprelu_sparsity_loss_mode", str, CONFIG)
    if mode not in modes:
        raise UserError(f"jumprelu_sparsity_loss_mode is '{mode}'{nearest(mode, modes)}; known: {', '.join(modes)}")
    terms: Weighted = {"l0_loss": (_number(config, "l0_coefficient"), modes[mode]())}
    if config.get("pre_act_loss_coefficient") is not None:
        terms["pre_act_loss"] = (_number(config, "pre_act_loss_coefficient"), losses.DeadPreActivation())
    return terms


def _number(config: Config, key: str) -> float:
    return setting(config, key, float, CONFIG)


def _widths(config: Config) -> list[int]:
    """The levels of a Matryoshka SAE: increasing widths up to the number of features; empty for other SAEs."""
    widths = setting(config, "matryoshka_widths", list, CONFIG) if "matryoshka_widths" in config else []
    edges = [0, *widths]
    if any(type(w) is not int for w in widths) or any(a >= b for a, b in zip(edges, widths, strict=False)):
        raise UserError(f"{CONFIG} has the matryoshka_widths {brief(widths)}, expected whole numbers that grow")
    if widths and widths[-1] > count(config, "d_sae", CONFIG):
        raise UserError(f"{CONFIG} has the matryoshka_widths {brief(widths)}, beyond d_sae {config['d_sae']}")
    return widths


def _filled(sae: AbstractSAE, params: Golden) -> AbstractSAE:
    leaves, _ = jax.tree.flatten_with_path(eqx.filter(sae, eqx.is_inexact_array))
    expected = {path[-1].name for path, _ in leaves}
    for name in sorted(expected):
        array, shape = params[name], _theirs(name, _leaf(sae, name)).shape
        if array.shape != shape or array.dtype.kind != "f":
            what = f"{array.dtype.str} {list(array.shape)}"
            raise UserError(f"the golden file has 'param/{name}' of {what}, expected floats {list(shape)}")
    if more := sorted(params.keys() - expected):
        raise UserError(f"the golden file has 'param/{more[0]}', which {type(sae).__name__} has not")
    return eqx.tree_at(
        lambda s: [_leaf(s, name) for name in params], sae, [jnp.asarray(_theirs(k, v)) for k, v in params.items()]
    )


def _leaf(sae: Any, name: str) -> Any:
    """Our leaf under SAELens's name."""
    return sae.sparsifier.threshold if name == "threshold" else getattr(sae, name)


def _theirs(name: str, array: Any) -> np.ndarray:
    """To and from SAELens's layout: only W_enc is transposed."""
    return np.asarray(array).T if name == "W_enc" else np.asarray(array)
