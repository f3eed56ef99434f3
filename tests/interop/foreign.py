"""What every reader of a foreign format is held to: its codes and reconstructions, before and after save and load."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jhsae
from jhsae.data import AbstractNormalizer
from jhsae.interop import imported
from jhsae.interop.imported import Imported
from jhsae.sae import AbstractSAE

EMBED, FEATURES, BATCH = 12, 40, 64


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights of a size that leaves codes and reconstructions near 1."""
    return (0.3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def inputs() -> np.ndarray:
    """float64, so that an oracle rounds nothing; every entry is a float32."""
    return (3 * normal(BATCH, EMBED, seed=100) + np.float32(0.5)).astype(np.float64)


def top_k(pre: np.ndarray, k: int) -> np.ndarray:
    """The k largest of ReLU(pre) in every row, zeros elsewhere."""
    positive = np.maximum(pre, 0)
    last = np.sort(positive, axis=-1)[:, -k, None]
    return np.where(positive >= last, positive, 0)


def computes(sae: AbstractSAE, normalizer: AbstractNormalizer, codes: np.ndarray, x_hat: np.ndarray) -> None:
    x = jnp.asarray(inputs(), jnp.float32)
    rows, token = normalizer(x)
    found = sae.encode(rows)
    assert np.count_nonzero(codes) > 0
    np.testing.assert_array_equal(found.l0(), np.count_nonzero(codes, axis=-1))
    np.testing.assert_allclose(found.dense(), codes, atol=1e-5)
    np.testing.assert_allclose(normalizer.undo(sae(rows), token), x_hat, atol=1e-5)


def agrees(read: Imported, codes: np.ndarray, x_hat: np.ndarray, folder: Path) -> None:
    """`read` computes `codes` and `x_hat` from `inputs()`, and so does what `load_sae` finds in `folder` after save."""
    computes(read.sae, read.normalizer, codes, x_hat)
    imported.save(read, folder)
    sae, normalizer, about = jhsae.load_sae(folder)
    computes(sae, normalizer, codes, x_hat)
    assert about["source"] == read.about["source"] and about["reads"] == read.about["reads"]
