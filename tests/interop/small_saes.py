"""Small SAEs of every kind with random parameters, rows to run them on, and edits of what was written from them."""

import json
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from reference.filled import filled
from safetensors.numpy import load_file, save_file

from jhsae.data import (
    AbstractNormalizer,
    ArrayRows,
    CenteredUnitNorm,
    CenterScale,
    ConstantNorm,
    Identity,
    LayerNorm,
    Scale,
    Standardize,
    UnitNorm,
    Whiten,
)
from jhsae.sae import AbstractSAE, DecoderNormUnit, FlatSAE, GatedSAE, HierarchicalSAE, MatchingPursuitSAE
from jhsae.schedule import Constant
from jhsae.sparsify import GumbelTopK, JumpReLU, ReLU, TopK
from jhsae.usage import Context

EMBED, FEATURES, K = 12, 40, 5
EVALUATION = Context()
AFFINE = [Identity(), Scale(), CenterScale(), Standardize(), Whiten()]
PER_TOKEN = [UnitNorm(), ConstantNorm(), LayerNorm(), CenteredUnitNorm()]
ABOUT = {
    "name": "small",
    "config_hash": "0123456789ab",
    "commit": "abcdef",
    "versions": {"jhsae": "0.1.0"},
    "reads": {"model": "google/gemma-2-2b", "layer": 3},
}


def rows(count: int = 64) -> np.ndarray:
    """Activations with a mean, and with very different scales by dimension."""
    rng = np.random.default_rng(7)
    mixed = rng.normal(size=(count, EMBED)) @ rng.normal(size=(EMBED, EMBED)) * np.linspace(0.5, 3, EMBED)
    return (mixed + np.linspace(-2, 4, EMBED)).astype(np.float32)


def fitted(normalizer: AbstractNormalizer) -> AbstractNormalizer:
    return normalizer.fit(ArrayRows(rows(512)))


def flat(sparsifier, **options) -> FlatSAE:
    """Encoder and decoder differ, and no row has norm 1."""
    return filled(lambda: FlatSAE(EMBED, FEATURES, sparsifier, **options, key=jax.random.key(0)), seed=1, scale=0.4)


def jump(**options) -> FlatSAE:
    """Thresholds from 0 to 1."""
    sae = flat(JumpReLU(), **options)
    return eqx.tree_at(lambda s: s.sparsifier.threshold, sae, jnp.linspace(0, 1, FEATURES))


def gated(**options) -> GatedSAE:
    return filled(lambda: GatedSAE(EMBED, FEATURES, **options, key=jax.random.key(0)), seed=1, scale=0.4)


def pursuit(**options) -> MatchingPursuitSAE:
    sae = MatchingPursuitSAE(EMBED, FEATURES, **options, key=jax.random.key(0))
    return eqx.tree_at(lambda s: s.b_dec, sae, jnp.linspace(-0.3, 0.3, EMBED))


def hierarchical() -> HierarchicalSAE:
    return HierarchicalSAE(EMBED, 6, 2, 3, TopK(2), TopK(1), key=jax.random.key(0))


def saes() -> dict[str, AbstractSAE]:
    """One SAE of every kind that other libraries have, plain, in the unit of its norms, and without b_dec inside."""
    unit, outside = {"code_unit": DecoderNormUnit()}, {"apply_b_dec_to_input": False}
    return {
        "relu": flat(ReLU()),
        "relu_outside": flat(ReLU(), **outside),
        "relu_unit": flat(ReLU(), **unit),
        "topk": flat(TopK(K)),
        "topk_unit": flat(TopK(K), **unit),
        "topk_unit_outside": flat(TopK(K), **unit, **outside),
        "gumbel": flat(GumbelTopK(K, Constant(1.0))),
        "jump": jump(),
        "jump_unit": jump(**unit),
        "jump_outside": jump(**outside),
        "gated": gated(),
        "gated_outside": gated(**outside),
    }


def run(sae: AbstractSAE, normalizer: AbstractNormalizer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense codes, and the reconstruction in the units of `x`."""
    inside, token = normalizer(jnp.asarray(x))
    codes = sae.encode(inside)
    return np.asarray(codes.dense()), np.asarray(normalizer.undo(sae.decode(codes), token))


def near(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def same(got: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    """Codes and reconstructions are equal, and so is the L0 of every token."""
    assert 0 < np.count_nonzero(expected[0]) < expected[0].size
    near(got[0], expected[0])
    near(got[1], expected[1])
    np.testing.assert_array_equal(np.count_nonzero(got[0], axis=1), np.count_nonzero(expected[0], axis=1))


def change(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Edits the tensors of a SAELens directory."""
    tensors = load_file(folder / "sae_weights.safetensors")
    edit(tensors)
    save_file(tensors, folder / "sae_weights.safetensors")


def configure(folder: Path, **changes: object) -> None:
    """Sets keys of cfg.json; None takes one out. `metadata` is merged."""
    config = json.loads((folder / "cfg.json").read_text())
    changes["metadata"] = config["metadata"] | changes.get("metadata", {})
    config = {k: v for k, v in (config | changes).items() if v is not None}
    (folder / "cfg.json").write_text(json.dumps(config))
