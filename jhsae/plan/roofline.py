"""The time of a program on a chip, from below: each operation takes the longer of its arithmetic and its traffic.

``step = sum over operations of max(FLOPs / peak, bytes / bandwidth) + sum over collectives of sent bytes / link rate``.

Products count at the sizes of the matrix unit (`products`), at the bfloat16 rate of the chip for float32 and bfloat16
operands alike: XLA rounds float32 operands to bfloat16 unless told otherwise, so that ``precision: float32`` costs
bytes, not passes. Nothing of an exchange is hidden behind arithmetic. Left out: elementwise arithmetic, sorting and
gathering beyond their bytes, latencies. A real step is slower (Williams, Waterman, Patterson, "Roofline", 2009).
"""

from typing import NamedTuple

from jhsae.plan import links
from jhsae.plan.chips import Chip
from jhsae.plan.cost import Operation, Work


class Times(NamedTuple):
    """Seconds of one step on a chip. `arithmetic` and `memory` overlap in `chip`."""

    arithmetic: float
    memory: float
    chip: float
    """Operation by operation, the longer of the two."""
    ici: float
    dcn: float

    @property
    def exchange(self) -> float:
        return self.ici + self.dcn

    @property
    def step(self) -> float:
        return self.chip + self.exchange

    @property
    def bound(self) -> str:
        """What takes the most: arithmetic, memory, ici or dcn."""
        parts = {"arithmetic": self.arithmetic, "memory": self.memory, "ici": self.ici, "dcn": self.dcn}
        return max(parts, key=lambda name: parts[name])


def times_of(work: Work, chip: Chip, places: links.Places) -> Times:
    """The seconds of the work of one chip."""
    arithmetic = memory = both = 0.0
    for operation in work.operations:
        products, moved = _arithmetic(operation, chip), operation.times * operation.bytes / chip.bandwidth
        arithmetic, memory, both = arithmetic + products, memory + moved, both + max(products, moved)
    network = {False: 0.0, True: 0.0}
    for collective in work.collectives:
        seconds = collective.times * links.seconds(collective, chip, places)
        network[links.on_dcn(collective, places)] += seconds
    return Times(arithmetic, memory, both, network[False], network[True])


def _arithmetic(operation: Operation, chip: Chip) -> float:
    return operation.times * sum((product.padded(chip.mxu) for product in operation.products), 0.0) / chip.flops
