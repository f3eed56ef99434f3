"""The original-style step reproduces the golden numbers of the original program: loss, codes, gradients."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.bench import original
from jhsae.bench.original import Original
from jhsae.parity.golden import GRADIENT, compare, group, read

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module", params=["moe_v2", "moe_v2_fillers"])
def golden(request):
    return read(GOLDEN / f"{request.param}.npz")


def leaves(arrays, prefix):
    return Original(**{name: jnp.asarray(a) for name, a in group(arrays, prefix).items()})


def same(name, ours, reference, tolerance):
    row = compare(name, np.asarray(ours), np.asarray(reference), tolerance)
    assert row.passed, row


def test_loss_codes_and_gradients(golden):
    x, k = jnp.asarray(golden["batches"][0]), int(golden["meta/k"])
    params = leaves(golden, "init")
    (value, selected), grads = jax.jit(jax.value_and_grad(original.loss, has_aux=True), static_argnums=2)(params, x, k)
    same("loss", value, golden["loss"], 1e-6)
    np.testing.assert_array_equal(np.sort(selected.indices, -1), np.sort(golden["topk_indices"], -1))
    same("expert_codes", selected.atoms, golden["expert_codes"], 1e-6)
    for name, gradient in grads._asdict().items():
        same(name, gradient, golden[f"grads/{name}"], GRADIENT)
    for name, gradient in original.project(grads, params)._asdict().items():
        same(name, gradient, golden[f"projected_grads/{name}"], GRADIENT)


def test_the_tracker_counts_positive_codes():
    indices = jnp.array([[0, 2], [2, 1]])
    atoms = jnp.array([[[1.0, -1.0], [0.0, 2.0]], [[3.0, 4.0], [-1.0, 5.0]]])
    counted = original.track(jnp.ones((3, 2)), original.Selected(indices, atoms))
    np.testing.assert_array_equal(counted, 1 + np.array([[1, 0], [0, 1], [1, 2]]))
