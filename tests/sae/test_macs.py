"""The multiplications of an encoder, against counts of every product of two numbers, one after the other."""

from functools import partial

import jax
import pytest
from pursuits import pursuit

from jhsae.ops import swept
from jhsae.sae import FlatSAE, Screened, mixture_of_experts_v2
from jhsae.sparsify import ExactL0, Threshold, TopK

EMBED = 8


def counted(levels, entered, sweeps, extra=0, candidates=None, rounds=(), tables=True, after=None, by_round=False):
    """A pursuit in which rows of these levels enter, one by one; a multiplication is added where it is made."""
    roots, each = levels[0], [*levels[1:], 0]
    competing, macs, opened = min(candidates or roots, roots), 0, 0
    if tables:
        macs += EMBED * roots  # the roots with the token
    screens = {sum(rounds[:i]) for i in range(len(rounds))}
    for t in range(len(entered) + 1):
        moved = t == 0 or after is None or after[t - 1]
        if t in screens:
            rows = roots + opened * by_round
            macs += (t * rows if t else 0) if tables else EMBED * rows
        terms = t if moved else 1
        at_pick = competing + (0 if by_round else opened)
        macs += terms * at_pick if tables else EMBED * (at_pick + terms)  # and the residual
        if t < len(entered):
            macs += 0 if tables else t * EMBED  # the products of the new row
            opened += each[entered[t]]
            scored = not by_round or t < max(screens)
            macs += EMBED * each[entered[t]] * scored if tables else 0  # the new children with the token
            macs += (t + 1) ** 2 if after is None or after[t] else 0  # a sweep
    macs += sweeps * len(entered) ** 2
    macs += sum((len(entered) - gone) ** 2 for gone in range(1, extra + 1))  # a sweep after each that leaves
    return macs + (sweeps * (len(entered) - extra) ** 2 if extra else 0)


def test_one_matrix_product_of_a_flat_sae_and_the_active_experts_of_a_tree():
    flat = FlatSAE(EMBED, 20, TopK(2), key=jax.random.key(0))
    assert flat.encoder_macs((2.0,)) == (160, 160)
    tree = mixture_of_experts_v2(EMBED, experts=10, sub=2, atoms=3, k=2, key=jax.random.key(0))
    assert tree.encoder_macs((4.0, 3.0)).tables == 10 * EMBED + 4 * (2 * EMBED + 2 * 3)


@pytest.mark.parametrize("tables", [True, False])
def test_a_flat_pursuit_is_counted_exactly(tables):
    sae = pursuit((24,), EMBED, Threshold(0.1, 6))
    macs = sae.encoder_macs((5.0,))
    assert (macs.tables if tables else macs.plain) == counted((24,), [0] * 5, 3, tables=tables)


@pytest.mark.parametrize("tables", [True, False])
def test_fewer_sweeps_are_counted_exactly(tables):
    sae = pursuit((24,), EMBED, Threshold(0.1, 9), growth=1.5)
    macs, after = sae.encoder_macs((7.0,)), swept(9, 1.5)
    assert (macs.tables if tables else macs.plain) == counted((24,), [0] * 7, 3, tables=tables, after=after)


@pytest.mark.parametrize("tables", [True, False])
def test_extra_rows_that_leave_again(tables):
    sae = pursuit((24,), EMBED, ExactL0(4, 2), sweeps=2)
    macs = sae.encoder_macs((4.0,))
    assert (macs.tables if tables else macs.plain) == counted((24,), [0] * 6, 2, extra=2, tables=tables)


@pytest.mark.parametrize("tables", [True, False])
def test_a_tree_is_counted_but_for_the_order_in_which_children_open(tables):
    sae = pursuit((8, 3, 2), EMBED, Threshold(0.1, 6))
    macs = sae.encoder_macs((3.0, 2.0, 1.0))
    orders = ([0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 1, 0])
    least, most = sorted(counted((8, 3, 2), order, 3, tables=tables) for order in orders)
    found = macs.tables if tables else macs.plain
    assert 0.95 * least <= found <= 1.05 * most


def test_screens_cost_all_roots_and_picks_the_candidates():
    sae = pursuit((24,), EMBED, Threshold(0.1, 6), Screened(2, 4))
    plain = counted((24,), [0] * 6, 3, candidates=4, rounds=(2, 4), tables=False)
    assert sae.encoder_macs((6.0,)).plain == plain
    assert sae.encoder_macs((6.0,)).tables < pursuit((24,), EMBED, Threshold(0.1, 6)).encoder_macs((6.0,)).tables


@pytest.mark.parametrize("tables", [True, False])
def test_children_that_are_candidates_by_round_are_scored_when_a_round_is_chosen(tables):
    sae = pursuit((8, 3), EMBED, Threshold(0.1, 6), Screened(2, 4, "every round"))
    count = partial(counted, (8, 3), sweeps=3, candidates=4, rounds=(2, 4), tables=tables, by_round=True)
    least, most = sorted(count(order) for order in ([0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 0, 0]))
    macs = sae.encoder_macs((4.0, 2.0))
    assert least <= (macs.tables if tables else macs.plain) <= most
    at_every_pick = pursuit((8, 3), EMBED, Threshold(0.1, 6), Screened(2, 4)).encoder_macs((4.0, 2.0))
    assert macs.tables < at_every_pick.tables and macs.plain < at_every_pick.plain
