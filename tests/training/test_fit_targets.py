"""`fit` with a target: what a transcoder learns, and that devices change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jhsae
from jhsae.data import ArrayRows, Between, CenterScale
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape
from jhsae.sae import HierarchicalTranscoder, Transcoder
from jhsae.sparsify import TopK

ROWS, EMBED, OUTPUT = 512, 12, 8
KEY = jax.random.key(0)


def mlp() -> tuple[np.ndarray, np.ndarray]:
    """What a small random MLP of two equal layers reads and writes."""
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(EMBED, 16)), rng.normal(size=(16, OUTPUT))
    x = rng.normal(size=(ROWS, EMBED)).astype(np.float32)
    return x, (np.maximum(x @ up, 0) @ down + 3).astype(np.float32)


def make(kind: str):
    if kind == "flat":
        return Transcoder(EMBED, 64, TopK(6), output=OUTPUT, layers=2, key=KEY)
    return HierarchicalTranscoder(EMBED, 16, 2, 4, TopK(3), TopK(1), output=OUTPUT, layers=2, key=KEY)


@pytest.mark.parametrize("kind", ["flat", "tree"])
def test_eight_devices_train_as_one_does(kind):
    x, y = mlp()
    how = {"target": y, "steps": 20, "batch": 64, "learning_rate": 1e-2}
    one, rows = jhsae.fit(make(kind), x, **how)
    many, _ = jhsae.fit(make(kind), x, mesh=MeshShape(4, 2), **how)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)
    assert rows[-1]["explained_variance"] > rows[0]["explained_variance"]


def test_the_normaliser_maps_what_is_read_to_what_is_written():
    x, y = mlp()
    normalizer = Between((EMBED, OUTPUT), CenterScale().fit(ArrayRows(x)), CenterScale().fit(ArrayRows(y)))
    sae, rows = jhsae.fit(make("flat"), x, target=y, normalizer=normalizer, steps=400, batch=64, learning_rate=1e-2)
    inside, token = normalizer(jnp.asarray(x))
    y_hat = np.asarray(normalizer.undo(sae(inside), token))
    assert 1 - np.sum((y - y_hat) ** 2) / np.sum((y - y.mean(axis=0)) ** 2) > 0.3
    assert rows[-1]["explained_variance"] > 0.3


def test_a_target_that_does_not_fit_is_refused():
    x, y = mlp()
    flat = jhsae.FlatSAE(EMBED, 8, TopK(2), key=KEY)
    for sae, given, message in (
        (make("flat"), None, "a Transcoder writes something else than it reads; write target="),
        (flat, y, "a FlatSAE reconstructs what it reads, but a target was given"),
        (make("flat"), y[:5], "x has 512 rows and target 5, expected one"),
        (make("tree"), x, "expected"),
    ):
        with pytest.raises(UserError, match=message):
            jhsae.fit(sae, x, target=given, steps=1)
