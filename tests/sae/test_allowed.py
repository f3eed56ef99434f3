"""The features per token that the rules of an SAE allow, and the encoder products that follow from them."""

import jax
import pytest

from jhsae import sparsify
from jhsae.sae import FlatSAE, GatedSAE, HierarchicalSAE
from jhsae.sae.allowed import allowed

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (sparsify.TopK(2), (2.0, 4.0)),
        (sparsify.BatchTopK(2.5), (2.5, 5.0)),
        (sparsify.JumpReLU(0.1), (5.0, 10.0)),
    ],
    ids=["topk", "batch", "jump"],
)
def test_atoms_multiply_with_experts(route, expected):
    sae = HierarchicalSAE(6, 5, 2, 3, route, sparsify.TopK(2), key=KEY)
    assert allowed(sae) == expected
    products = 0
    for _ in range(5 * 6):  # the router, one product at a time
        products += 1
    assert sae.encoder_macs(allowed(sae)).tables == products + expected[0] * (2 * 6 + 3 * 2)


def test_a_flat_sae_has_one_level():
    assert allowed(FlatSAE(6, 10, sparsify.TopK(3), key=KEY)) == (3.0,)
    assert allowed(GatedSAE(6, 10, key=KEY)) == (10.0,), "no rule: all may be active"
