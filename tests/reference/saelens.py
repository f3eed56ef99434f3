"""SAELens as the reference: golden files and single loss terms, for sizes and settings drawn at random.

Nothing is imported at the top: `load` skips the test where sae_lens is not installed.
"""

import json
import warnings
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.sae import DecoderNormUnit, FlatSAE, GatedSAE, PlainUnit
from jhsae.sparsify import BatchTopK, JumpReLU, ReLU, TopK

Settings = dict[str, Any]
DEAD = ("some", "none", "all", "few")


def load() -> tuple[ModuleType, ModuleType]:
    """sae_lens and torch; importing them warns about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens"), pytest.importorskip("torch")


def settings(rng: np.random.Generator, architecture: str, embed: int, features: int, **fixed: Any) -> Settings:
    """What SAELens's config of `architecture` takes, drawn, with `fixed` in the place of the drawn."""
    k = float(np.round(rng.uniform(1.0, features / 3), 2))
    drawn: Settings = {"apply_b_dec_to_input": bool(rng.random() < 0.5)}
    if architecture in ("standard", "gated"):
        drawn["l1_coefficient"] = float(rng.uniform(0.1, 1.0))
    if architecture == "standard":
        drawn["lp_norm"] = float(rng.choice([1.0, 0.5, 2.0]))
    if architecture in ("topk", "batchtopk", "matryoshka_batchtopk"):
        drawn |= {"k": int(k) if architecture == "topk" else k, "aux_loss_coefficient": float(rng.uniform(0.1, 2.0))}
        drawn["rescale_acts_by_decoder_norm"] = bool(rng.random() < 0.5)
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        drawn["topk_threshold_lr"] = float(rng.uniform(0.01, 0.5))
    if architecture == "matryoshka_batchtopk":
        inner = rng.choice(np.arange(1, features), size=int(rng.integers(1, 4)), replace=False)
        drawn |= {"matryoshka_widths": [*sorted(int(w) for w in inner), features]}
        drawn["use_matryoshka_aux_loss"] = bool(rng.random() < 0.5)
    if architecture == "jumprelu":
        drawn |= {
            "jumprelu_bandwidth": float(rng.uniform(0.1, 2.0)),
            "jumprelu_sparsity_loss_mode": str(rng.choice(["step", "tanh", "quadratic"])),
            "l0_coefficient": float(rng.uniform(0.1, 1.0)),
            "pre_act_loss_coefficient": float(rng.uniform(0.01, 1.0)) if rng.random() < 0.7 else None,
            "jumprelu_tanh_scale": float(rng.uniform(0.5, 5.0)),
            "jumprelu_ste_to_input": bool(rng.random() < 0.5),
            "target_l0": float(rng.uniform(1.0, features / 2)),
        }
    return drawn | fixed


def dead_mask(rng: np.random.Generator, kind: str, embed: int, features: int) -> np.ndarray:
    """Half of the features, none, all, or fewer than the k of AuxK (half the embed size)."""
    count = {"some": features // 2, "none": 0, "all": features, "few": max(1, embed // 2 - 2)}[kind]
    mask = np.zeros(features, bool)
    mask[rng.choice(features, size=count, replace=False)] = True
    return mask


def training_sae(
    lens: tuple[ModuleType, ModuleType], rng: np.random.Generator, architecture: str, embed: int, features: int, **fixed
) -> Any:
    """A TrainingSAE of SAELens with random parameters: rows of different norms, thresholds from 0 to 1/2."""
    sae_lens, torch = lens
    sae_class, config_class = sae_lens.registry.get_sae_training_class(architecture)
    config = config_class(d_in=embed, d_sae=features, **settings(rng, architecture, embed, features, **fixed))
    sae = sae_class(config)
    for name, p in sae.named_parameters():
        size = tuple(p.shape)
        new = rng.uniform(0.0, 0.5, size) if name == "threshold" else 0.4 * rng.normal(size=size)
        p.data = torch.tensor(new, dtype=torch.float32)
    return sae


def passed(lens: tuple[ModuleType, ModuleType], sae: Any, x: np.ndarray, dead: np.ndarray) -> Any:
    """The output of one training forward pass."""
    sae_lens, torch = lens
    coefficients = {name: c.value for name, c in sae.get_coefficients().items()}
    return sae.training_forward_pass(
        sae_lens.saes.sae.TrainStepInput(torch.tensor(x), coefficients, torch.tensor(dead), 0, False)
    )


def gradients(sae: Any, value: Any) -> dict[str, np.ndarray]:
    """Of a scalar, to every parameter; 0 where it does not reach one."""
    sae.zero_grad()
    if value.requires_grad:
        value.backward()
    return {
        name: np.zeros(tuple(p.shape), np.float32) if p.grad is None else p.grad.numpy().copy()
        for name, p in sae.named_parameters()
    }


def parameters(sae: Any) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in sae.named_parameters()}


def golden(lens: tuple, seed: int, variants: list[tuple[str, Settings]], dead: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file: one training forward pass of every variant on the same inputs."""
    rng = np.random.default_rng(seed)
    rows, embed, features = int(rng.integers(6, 30)), int(rng.integers(6, 24)), int(rng.integers(10, 60))
    x = rng.normal(0.3, 1.0, size=(rows, embed)).astype(np.float32)
    mask = dead_mask(rng, dead, embed, features)
    arrays: dict[str, Any] = {"x": x, "dead_mask": mask}
    for number, (architecture, fixed) in enumerate(variants):
        sae = training_sae(lens, rng, architecture, embed, features, **fixed)
        out = passed(lens, sae, x, mask)
        config = {key: value for key, value in sae.cfg.to_dict().items() if key != "metadata"}
        found: dict[str, Any] = {"config": json.dumps(config), "loss": out.loss.detach().numpy()}
        found |= {"feature_acts": out.feature_acts.detach().numpy(), "x_hat": out.sae_out.detach().numpy()}
        found |= {f"loss_terms/{key}": value.detach().numpy() for key, value in out.losses.items()}
        found |= {f"param/{key}": value for key, value in parameters(sae).items()}
        found |= {f"grad/{key}": value for key, value in gradients(sae, out.loss).items()}
        if "topk_threshold" in out.metrics:
            found["topk_threshold"] = out.metrics["topk_threshold"].numpy()
        arrays |= {f"{number}_{architecture}/{key}": np.asarray(value) for key, value in found.items()}
    return arrays


def ours(sae: Any) -> FlatSAE | GatedSAE:
    """Our SAE with the structure and parameters of SAELens's."""
    c, key = sae.cfg, jax.random.key(0)
    if c.architecture() == "gated":
        made = lambda: GatedSAE(c.d_in, c.d_sae, apply_b_dec_to_input=c.apply_b_dec_to_input, key=key)  # noqa: E731
    else:
        part = {
            "standard": lambda: ReLU(),
            "topk": lambda: TopK(c.k),
            "batchtopk": lambda: BatchTopK(c.k),
            "matryoshka_batchtopk": lambda: BatchTopK(c.k),
            "jumprelu": lambda: JumpReLU(
                0.0, c.jumprelu_bandwidth, "threshold_and_input" if c.jumprelu_ste_to_input else "threshold"
            ),
        }[c.architecture()]()
        unit = DecoderNormUnit() if "topk" in c.architecture() and c.rescale_acts_by_decoder_norm else PlainUnit()
        made = lambda: FlatSAE(  # noqa: E731
            c.d_in, c.d_sae, part, code_unit=unit, apply_b_dec_to_input=c.apply_b_dec_to_input, key=key
        )
    params = {name: jnp.asarray(ours_layout(name, p)) for name, p in parameters(sae).items()}
    return eqx.tree_at(lambda s: [leaf(s, name) for name in params], eqx.filter_jit(made)(), list(params.values()))


def leaf(sae: Any, name: str) -> Any:
    """Our parameter of SAELens's name."""
    return sae.sparsifier.threshold if name == "threshold" else getattr(sae, name)


def ours_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Rows belong to features."""
    return array.T if name == "W_enc" else array
