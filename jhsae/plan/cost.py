"""What one chip does in one run of a compiled program: products, memory traffic, collectives, loops.

Counted from the compiler's text, loops by their trips. `compiler_flops` and `compiler_bytes` are what the compiler says
(``cost_analysis``), which counts every loop body once and elementwise arithmetic too; `once` is our count with every
loop run once, so that the two can be held against each other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jhsae.plan.collectives import Collective, collectives_of
from jhsae.plan.hlo import Module
from jhsae.plan.loops import Executed, Loop, Tiles, execution
from jhsae.plan.products import Product, product_of
from jhsae.plan.traffic import bytes_moved

KERNEL = '"tpu_custom_call"'


class Operation(NamedTuple):
    """One instruction outside fusions, with what is fused into it. Numbers of one run."""

    name: str
    label: str
    products: tuple[Product, ...]
    bytes: float
    times: int


class Work(NamedTuple):
    """Of one chip and one run of the program."""

    operations: list[Operation]
    collectives: list[Collective]
    loops: list[Loop]
    kernels: int
    """Calls of hand-written kernels, into which nobody looks: their products are not counted."""
    once: float
    """FLOPs of products with every loop run once."""
    compiler_flops: float | None
    compiler_bytes: float | None

    @property
    def flops(self) -> float:
        """FLOPs of matrix products."""
        return sum((product.flops * op.times for op in self.operations for product in op.products), 0.0)

    @property
    def bytes(self) -> float:
        """Bytes to and from main memory."""
        return sum((op.bytes * op.times for op in self.operations), 0.0)


def work_of(text: str, chips: int, tiles: Tiles | None = None, cost: dict[str, Any] | None = None) -> Work:
    """Counts the work in a program's text; `cost` is the compiler's own analysis, where there is one."""
    module = Module.parse(text)
    program = execution(module, tiles)
    operations = _operations(module, program.executed)
    cost = cost or {}
    return Work(
        operations,
        collectives_of(program.executed, chips),
        program.loops,
        sum(e.times for e in program.executed if KERNEL in e.instruction.attributes),
        _once(program.executed),
        cost.get("flops"),
        cost.get("bytes accessed"),
    )


def _operations(module: Module, executed: Sequence[Executed]) -> list[Operation]:
    operations: list[Operation] = []
    for instruction, computation, times, fused in executed:
        product = product_of(instruction, computation)
        products = (product,) if product else ()
        if fused:
            last = operations[-1]
            operations[-1] = last._replace(products=last.products + products)
        else:
            moved = bytes_moved(module, computation, instruction)
            operations.append(Operation(instruction.name, instruction.label, products, moved, times))
    return [op for op in operations if op.products or op.bytes]


def _once(executed: Sequence[Executed]) -> float:
    products = (product_of(e.instruction, e.computation) for e in executed if e.times)
    return sum((product.flops for product in products if product), 0.0)
