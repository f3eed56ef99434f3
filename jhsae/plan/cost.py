"""FLOPs, memory traffic, collectives and loops of one chip in one run of a compiled program.

Counted from the compiler's text, loops by their trip counts. `compiler_flops` and `compiler_bytes` are the compiler's
own (``cost_analysis``), which counts every loop body once and elementwise arithmetic too; `once` is our count with
every loop run once, to compare the two.

FLOPs are those of matrix products: a product of M x K with K x N takes ``2 M N K``; on a matrix unit of m x m it costs
as much as one of sizes rounded up, ``2 ceil8(M) ceil_m(N) ceil_m(K)``, or the same with M and N exchanged, whichever is
less. An expert's product with 16 tokens and 4 dimensions leaves most of the unit idle.

Traffic: every instruction outside fusions reads its operands from main memory and writes its results to it; values in
VMEM cost nothing. A hand-written kernel moves what its cost estimate says: of the rows that it gathers, the compiler
knows only the array. A slice or a gather reads its result's bytes, not the whole array; an in-place update writes the
bytes that change. A sort counts as one pass. Padding of tiles counts.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jhsae.plan.collectives import Collective, collectives_of
from jhsae.plan.hlo import Computation, Instruction, Module, Value, int_list
from jhsae.plan.loops import Executed, Loop, TileLoad, execution

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
        """FLOPs at the sizes of the matrix unit, all bfloat16 passes included."""

        def up(size: int, to: int) -> int:
            return size + -size % to

        rows = min(up(self.m, 8) * up(self.n, unit), up(self.n, 8) * up(self.m, unit))
        return 2.0 * self.copies * rows * up(self.k, unit) * self.passes


def product_of(instruction: Instruction, computation: Computation) -> Product | None:
    """The matrix product that an instruction computes, None for other instructions."""
    if instruction.opcode not in ("dot", "convolution"):
        return None
    left, right = (computation.operand(instruction, i).values[0].dims for i in (0, 1))
    precision = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    passes = PASSES.get(precision[1], 1) if precision else 1
    if instruction.opcode == "dot":
        return _dot(instruction, left, right, passes)
    return _convolution(instruction, left, right, passes)


def _dot(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], passes: int) -> Product:
    listed = {(side, kind): int_list(dims) for side, kind, dims in LISTED.findall(instruction.attributes)}
    contracted, batch = (listed.get(("lhs", kind), []) for kind in ("contracting", "batch"))
    k, count = math.prod(left[i] for i in contracted), math.prod(left[i] for i in batch)
    m, n = math.prod(left) // (k * count), math.prod(right) // (k * count)
    return Product(count, m, n, k, passes)


def _convolution(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], passes: int) -> Product:
    """XLA:TPU writes every product as a convolution; batch dimensions are windows of one element each."""
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


KERNEL = '"tpu_custom_call"'
ESTIMATE = re.compile(r'"cost_estimate":\{[^}]*"bytes_accessed":"(\d+)"')


class Operation(NamedTuple):
    """One instruction outside fusions, with the products fused into it; `bytes` of one run, `times` runs a step."""

    name: str
    label: str
    products: tuple[Product, ...]
    bytes: float
    times: int
    frame: int = 0


class Work(NamedTuple):
    """The work of one chip in one run of the program."""

    operations: list[Operation]
    collectives: list[Collective]
    loops: list[Loop]
    kernels: int
    """Calls of hand-written kernels, whose products are not counted."""
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


def work_of(text: str, chips: int, tiles: TileLoad | None = None, cost: dict[str, Any] | None = None) -> Work:
    """Counts the work in a program's text.

    Args:
        text: An optimised module in XLA's text form.
        chips: Devices of the mesh.
        tiles: The expected load of loops over tiles; without it they count once.
        cost: The compiler's own analysis, where there is one.
    """
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
            operations.append(Operation(instruction.name, instruction.label, products, moved, times, instruction.frame))
    return [op for op in operations if op.products or op.bytes]


def _once(executed: Sequence[Executed]) -> float:
    products = (product_of(e.instruction, e.computation) for e in executed if e.times)
    return sum((product.flops for product in products if product), 0.0)


FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "opt-barrier", "copy-done", "slice-done", "dynamic-slice-done", "async-done",
    "async-start", "async-update", "send-done", "recv-done", "all-reduce-done", "all-gather-done",
    "collective-permute-done", "domain", "add-dependency",
}  # fmt: skip
STARTS = {"copy-start", "slice-start", "dynamic-slice-start"}
READS_PART = {"dynamic-slice", "gather", "slice"}
UPDATES = {"dynamic-update-slice", "scatter"}
NO_WORK = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding", "SliceBitcast"}


def bytes_moved(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes of one run of an instruction outside fusions."""
    opcode = instruction.opcode
    if opcode in FREE or _no_work(instruction):
        return 0.0
    if opcode in STARTS:
        return _started(instruction)
    if KERNEL in instruction.attributes and (estimate := ESTIMATE.search(instruction.attributes)):
        return float(estimate[1])
    if opcode == "fusion":
        return _fusion(module, computation, instruction)
    if opcode in READS_PART:
        source = computation.operand(instruction, 0).values[0]
        return _stored(instruction.values) + source.in_memory * sum(value.stored for value in instruction.values)
    if opcode in UPDATES:
        return 2 * _stored(computation.operand(instruction, _update(instruction)).values)
    reads = sum(_stored(computation.instructions[name].values) for name in dict.fromkeys(instruction.operands))
    return reads + _stored(instruction.values)


def _no_work(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and any(f'"{name}"' in instruction.attributes for name in NO_WORK)


def _update(instruction: Instruction) -> int:
    if instruction.opcode == "dynamic-update-slice":
        return 1
    return len(instruction.operands) - 1  # a scatter lists arrays, indices, updates


def _stored(values: tuple[Value, ...]) -> float:
    return sum((value.stored for value in values if value.in_memory), 0.0)


def _started(instruction: Instruction) -> float:
    """A copy between memories: its smallest array, once for each side in main memory."""
    arrays = [value for value in instruction.values if value.dims]
    return min(value.stored for value in arrays) * sum(value.in_memory for value in arrays) if arrays else 0.0


def _fusion(module: Module, computation: Computation, fusion: Instruction) -> float:
    inner = module.called(fusion)
    if inner is None:
        raise ValueError(f"{fusion.name}: a fusion without its computation")
    total = 0.0
    for index, name in enumerate(fusion.operands):
        values = computation.instructions[name].values
        if any(value.in_memory for value in values):
            total += min(_read(module, inner, inner.parameters[index]), sum(value.stored for value in values))
    roots = [inner.root] if inner.root.opcode != "tuple" else [inner.instructions[n] for n in inner.root.operands]
    results = [root for root in roots for _ in root.values]  # one may have several results, such as a sort
    for value, root in zip(fusion.values, results, strict=True):
        total += _written(module, inner, root, value) if value.in_memory else 0.0
    return total


def _read(module: Module, inner: Computation, name: str) -> float:
    """Bytes that a fusion reads of one of its inputs."""
    whole = sum((value.stored for value in inner.instructions[name].values), 0.0)
    total = 0.0
    for user in inner.users[name]:
        first = user.operands[0] == name
        if user.opcode in READS_PART and first:
            total += sum(value.stored for value in user.values)
        elif user.opcode in UPDATES and first:
            total += 0.0 if user.opcode == "dynamic-update-slice" else _changed(inner, user)
        elif user.opcode in ("bitcast", "reshape"):
            total += _read(module, inner, user.name)
        elif user.opcode == "fusion" and (nested := module.called(user)):
            total += _read(module, nested, nested.parameters[user.operands.index(name)])
        elif user.opcode == "tuple":
            continue
        else:
            total += whole
    return min(total, whole)


def _written(module: Module, inner: Computation, root: Instruction, value: Value) -> float:
    while root.opcode in ("bitcast", "reshape"):
        root = inner.operand(root, 0)
    if root.opcode == "fusion" and (nested := module.called(root)) and nested.root.opcode != "tuple":
        return _written(module, nested, nested.root, value)
    return _changed(inner, root) if root.opcode in UPDATES else value.stored


def _changed(inner: Computation, update: Instruction) -> float:
    return sum((value.stored for value in inner.operand(update, _update(update)).values), 0.0)
