"""The encoder's multiplications are those that a plain encoder of loops does, counted one by one."""

import equinox as eqx
import jax
import pytest

from jhsae import sparsify
from jhsae.sae import FlatSAE, GatedSAE, HierarchicalSAE, MatchingPursuitSAE, Residual, Token

EMBED, EXPERTS, SUB, ATOMS = 6, 5, 2, 3
KEY = jax.random.key(0)


class Counter:
    """Numbers whose products are counted."""

    def __init__(self) -> None:
        self.products = 0

    def inner(self, size: int) -> float:
        """An inner product of vectors of `size` ones."""
        total = 0.0
        for _ in range(size):
            self.products += 1
            total += 1.0 * 1.0
        return total


def plain(selected: int, reads_residual: bool) -> int:
    """The router, then the residual where it is read, then each selected expert's projector and atoms."""
    count = Counter()
    for _ in range(EXPERTS):
        count.inner(EMBED)
    for _ in range(selected):
        if reads_residual:
            for _ in range(EMBED):
                count.inner(1)
    for _ in range(selected):
        for _ in range(SUB):
            count.inner(EMBED)
        for _ in range(ATOMS):
            count.inner(SUB)
    return count.products


def tree(route, child_input=Token()):  # noqa: B008
    pick = sparsify.TopK(1)
    return HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, route, pick, child_input=child_input, key=KEY)


@pytest.mark.parametrize("child_input", [Token(), Residual()], ids=["token", "residual"])
def test_of_a_hierarchical_sae_only_selected_experts_count(child_input):
    sae = tree(sparsify.TopK(2), child_input)
    expected = plain(2, child_input.reads_residual)
    assert sae.encoder_macs() == (expected, expected)
    assert sae.encoder_macs((1.0, 1.0)).tables == plain(1, child_input.reads_residual)
    shapes = eqx.filter_eval_shape(lambda: tree(sparsify.TopK(2), child_input))
    assert shapes.encoder_macs().tables == expected, "shapes are enough"


def test_a_rule_without_a_fixed_number_costs_what_was_active():
    sae = tree(sparsify.JumpReLU(0.1))
    assert sae.encoder_macs().tables == plain(EXPERTS, False), "at most all"
    assert sae.encoder_macs((2.0, 2.0)).tables == plain(2, False)


def test_of_a_flat_sae_every_feature_counts():
    count = Counter()
    for _ in range(10):
        count.inner(EMBED)
    assert FlatSAE(EMBED, 10, sparsify.TopK(2), key=KEY).encoder_macs().tables == count.products
    assert GatedSAE(EMBED, 10, key=KEY).encoder_macs().tables == count.products


def test_a_matching_pursuit_scores_all_rows_at_every_iteration():
    count = Counter()
    for _ in range(3):
        for _ in range(10):
            count.inner(EMBED)  # scores
        count.inner(EMBED)  # the value
        for _ in range(EMBED):
            count.inner(1)  # the residual
    sae = MatchingPursuitSAE(EMBED, 10, max_iterations=4, key=KEY)
    assert sae.encoder_macs((3.0,)).tables == count.products
    assert sae.encoder_macs().tables == count.products / 3 * 4
