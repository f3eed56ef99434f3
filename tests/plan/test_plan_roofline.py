"""Seconds from work, by hand."""

import jax
import numpy as np
import pytest

from jhsae.errors import UserError
from jhsae.plan import estimate
from jhsae.plan.collectives import Collective, on_dcn, rate
from jhsae.plan.cost import Operation, Product, Work
from jhsae.plan.estimate import step_time
from jhsae.plan.topology import CHIPS, Chip, Places

CHIP = Chip("toy", 1e12, 128, 1e10, 1e11, 1e10, 2, 4, 1e9)  # links close to rings along axes of 4, 8, ...


def square(size: int, slices: int = 1) -> Places:
    one = np.stack(np.meshgrid(range(size), range(size), indexing="ij"), axis=-1).reshape(-1, 2)
    return Places(np.concatenate([one] * slices), np.repeat(np.arange(slices), size * size))


def collective(kind: str, groups: list[list[int]], size: float = 4e9, times: int = 1) -> Collective:
    return Collective(kind, np.asarray(groups), size, times, "")


ROW, ALL = [[0, 1, 2, 3]], [list(range(16))]


@pytest.mark.parametrize(
    ("kind", "groups", "sent"),
    [
        ("all-gather", ROW, 3e9),
        ("reduce-scatter", ROW, 3e9),
        ("all-reduce", ROW, 6e9),
        ("all-to-all", ROW, 4e9),
        ("all-to-all", [[0, 1]], 2e9),
        ("collective-permute", ROW, 4e9),
    ],
)
def test_bytes_sent_by_the_ring_algorithms(kind: str, groups: list[list[int]], sent: float):
    assert collective(kind, groups).sent == sent


@pytest.mark.parametrize(
    ("groups", "size", "links"),
    [
        (ROW, 4, 2),  # a whole axis that closes to a ring
        (ALL, 4, 4),  # both axes
        ([[0, 1]], 4, 1),  # a part of an axis is a line
        ([[0, 2]], 4, 1),  # every second chip of a ring shares its two links with the others
        ([[0, 1, 2]], 3, 1),  # an axis of 3 has no link back
        ([[0, 2]], 8, 0.5),  # every second chip of a line
    ],
)
def test_links_of_a_group(groups: list[list[int]], size: int, links: float):
    assert rate(collective("all-gather", groups), CHIP, square(size)) == links * CHIP.ici


def test_a_permutation_uses_one_link():
    assert rate(collective("collective-permute", ALL), CHIP, square(4)) == CHIP.ici


def test_between_slices_the_other_network_is_used():
    across = collective("all-reduce", [[0, 16]])
    assert on_dcn(across, square(4, slices=2)) and rate(across, CHIP, square(4, slices=2)) == CHIP.dcn
    with pytest.raises(UserError, match="plan one slice"):
        rate(across, CHIP._replace(dcn=None), square(4, slices=2))


def test_step_time_by_hand():
    product = Product(1, 256, 128, 128, 1)
    assert product.padded(128) == product.flops == 2 * 256 * 128 * 128
    assert product._replace(passes=6).padded(128) == 6 * product.flops
    small = Product(10, 16, 4, 2304, 1)
    assert small.padded(128) == 2 * 10 * 128 * 8 * 2304  # 4 rows become 8, 16 columns 128
    operations = [
        Operation("a", "", (product,) * 1000, 1e6, 3),  # 3 x 8.39 ms of products, 3 x 0.01 ms of traffic
        Operation("b", "", (), 1e9, 2),  # 2 x 10 ms of traffic
    ]
    exchange = [collective("all-gather", ROW, 4e9, 5), collective("all-reduce", [[0, 16]], 1e9, 1)]
    times = step_time(Work(operations, exchange, [], 0, 0.0, None, None), CHIP, square(4, slices=2))
    assert times.arithmetic == pytest.approx(3 * 1000 * product.flops / 1e12)
    assert times.memory == pytest.approx((3e6 + 2e9) / 1e11)
    assert times.chip == pytest.approx(times.arithmetic + 2e9 / 1e11)
    assert times.ici == pytest.approx(5 * 3e9 / 2e10)
    assert times.dcn == pytest.approx(1e9 / 1e9)
    assert times.step == pytest.approx(times.chip + times.ici + times.dcn)
    assert times.bound == "dcn"


def test_the_table_of_chips():
    assert set(CHIPS) == {"v4", "v5e", "v5p", "v6e"}
    for chip in CHIPS.values():
        # bidirectional bandwidth of all links, as the pages give it: 600, 400, 1200, 800 GB/s
        assert 2 * chip.ici * 2 * chip.axes in (400e9, 600e9, 800e9, 1200e9)
        assert 100e12 < chip.flops < 1e15 and 15 * 2**30 < chip.hbm < 96 * 2**30


def test_a_libtpu_of_another_release_is_one_sentence(monkeypatch):
    def unreadable(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    compiled = jax.jit(lambda x: x).lower(1.0).compile()
    monkeypatch.setattr(type(compiled), "as_text", unreadable)
    with pytest.raises(UserError, match=r"libtpu.*pip install 'jax\[tpu\]=="):
        estimate._text(compiled)
