"""FLOPs of matrix products in a compiled program: all that a TPU's matrix unit does.

A product of M x K with K x N takes ``2 M N K``; on a matrix unit of m x m it costs as much as one of sizes rounded up,
``2 ceil8(M) ceil_m(N) ceil_m(K)``, or the same with M and N exchanged, whichever is less. An expert's product with 16
tokens and 4 dimensions leaves most of the unit idle: this is where that shows. What is computed element by element is
not counted.
"""

import math
import re
from typing import NamedTuple

from jhsae.plan.hlo import Computation, Instruction

PASSES = {"highest": 6, "high": 3}  # bfloat16 passes of one float32 product
LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
LISTED = re.compile(r"(lhs|rhs)_(contracting|batch)_dims=\{([\d,]*)\}")
WINDOW = re.compile(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_\-]+)")


class Product(NamedTuple):
    """One product, `copies` times (the batch dimensions)."""

    copies: int
    m: int
    n: int
    k: int
    passes: int

    @property
    def flops(self) -> float:
        return 2.0 * self.copies * self.m * self.n * self.k

    def padded(self, unit: int) -> float:
        """What the matrix unit is busy with, passes of bfloat16 included."""

        def up(size: int, to: int) -> int:
            return size + -size % to

        rows = min(up(self.m, 8) * up(self.n, unit), up(self.n, 8) * up(self.m, unit))
        return 2.0 * self.copies * rows * up(self.k, unit) * self.passes


def product_of(instruction: Instruction, computation: Computation) -> Product | None:
    """The product that an instruction is, if it is one."""
    if instruction.opcode not in ("dot", "convolution"):
        return None
    left, right = (computation.operand(instruction, i).values[0].dims for i in (0, 1))
    precision = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    passes = PASSES.get(precision[1], 1) if precision else 1
    if instruction.opcode == "dot":
        return _dot(instruction, left, right, passes)
    return _convolution(instruction, left, right, passes)


def _dot(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], passes: int) -> Product:
    listed = {(side, kind): _numbers(dims) for side, kind, dims in LISTED.findall(instruction.attributes)}
    contracted, batch = (listed.get(("lhs", kind), []) for kind in ("contracting", "batch"))
    k, count = math.prod(left[i] for i in contracted), math.prod(left[i] for i in batch)
    m, n = math.prod(left) // (k * count), math.prod(right) // (k * count)
    return Product(count, m, n, k, passes)


def _convolution(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], passes: int) -> Product:
    """XLA:TPU writes every product so; batch dimensions are windows that meet one element each."""
    labels = LABELS.search(instruction.attributes)
    if labels is None:
        raise ValueError(f"{instruction.name}: a convolution without dim_labels")
    dims = (left, right, instruction.values[0].dims)
    sizes = (dict(zip(letters, d, strict=True)) for letters, d in zip(labels.groups(), dims, strict=True))
    lhs, rhs, out = sizes
    window = {key: value.split("x") for key, value in WINDOW.findall(instruction.attributes)}
    count = 1
    for i, letter in enumerate(sorted(letter for letter in out if letter.isdigit())):
        options = {key: values[i] for key, values in window.items()}
        count *= _meetings(lhs[letter], out[letter], options)
    return Product(count, out["b"], out["f"], rhs["i"], passes)


def _meetings(inside: int, outside: int, window: dict[str, str]) -> int:
    """Pairs of an output and a window position that meet an input, along one dimension."""
    size, stride = int(window["size"]), int(window.get("stride", 1))
    spread, holes = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    if inside == outside == size == spread and stride == size - 1:
        return size
    low = int(window.get("pad", "0_0").split("_")[0])
    reach = (inside - 1) * spread
    places = (o * stride - low + w * holes for o in range(outside) for w in range(size))
    return sum(1 for place in places if 0 <= place <= reach and place % spread == 0)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]
