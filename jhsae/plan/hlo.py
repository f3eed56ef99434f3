"""A compiled program's text as data: computations, their instructions, and the arrays these give.

XLA's text form of an optimised module (`Compiled.as_text`), https://openxla.org/xla/operation_semantics. Only what a
count of work needs is read: names, result types with layout and memory, operands, and attributes as they stand.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property

SIZES = {"pred": 1, "token": 0, "opaque": 0, "s4": 0.5, "u4": 0.5, "bf16": 2}
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
LEAF = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
MEMORY = re.compile(r"S\((\d+)\)")
TILE = re.compile(r":T\(([\d,]+)\)")
OPERAND = re.compile(r"%([\w.\-]+)")
COMMENT = re.compile(r"/\*.*?\*/")


@dataclass(frozen=True)
class Value:
    """One array of a result."""

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @cached_property
    def bytes(self) -> float:
        """Of the numbers alone."""
        return float(self.size * itemsize(self.dtype))

    @cached_property
    def stored(self) -> float:
        """Bytes with the padding of a TPU's tiles, say 8 x 128: what moves when the array is read."""
        tile, order = TILE.search(self.layout), re.match(r"\{([\d,]+)", self.layout)
        if tile is None or order is None or not self.dims:
            return self.bytes
        sizes = [self.dims[int(i)] for i in order[1].split(",")]  # the fastest axis first
        for i, unit in enumerate(reversed([int(n) for n in tile[1].split(",")])):
            if i < len(sizes):
                sizes[i] += -sizes[i] % unit
        return float(math.prod(sizes) * itemsize(self.dtype))

    @property
    def in_memory(self) -> bool:
        """Whether it stands in the chip's main memory and not in a buffer beside the arithmetic (S(1), S(2), ...)."""
        place = MEMORY.search(self.layout)
        return place is None or place[1] == "0"


@dataclass(frozen=True)
class Instruction:
    """``name = values opcode(operands), attributes``."""

    name: str
    opcode: str
    values: tuple[Value, ...]
    operands: tuple[str, ...]
    literal: str
    """What stands between the brackets: the number of a constant or parameter."""
    attributes: str
    root: bool

    def attribute(self, key: str) -> str | None:
        """A computation's name, or another plain word, of an attribute ``key=%word``."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def label(self) -> str:
        """Where in the traced program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in order of execution."""

    name: str
    instructions: dict[str, Instruction]

    @cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)

    @cached_property
    def parameters(self) -> dict[int, str]:
        return {int(i.literal): i.name for i in self.instructions.values() if i.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Which instructions read each value."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        return self.instructions[instruction.operands[index]]

    def origin(self, name: str) -> Instruction:
        """The instruction behind copies and reinterpretations."""
        found = self.instructions[name]
        while found.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
            found = self.operand(found, 0)
        return found


@dataclass(frozen=True)
class Module:
    """All computations of a program; `entry` runs."""

    computations: dict[str, Computation]
    entry: Computation

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Raises ValueError where the text has no entry computation."""
        computations: dict[str, Computation] = {}
        entry, here = None, None
        for line in text.splitlines():
            if head := COMPUTATION.match(line):
                here = Computation(head[2], {})
                computations[head[2]] = here
                entry = here if head[1] else entry
            elif here is not None and (found := _instruction(line)):
                here.instructions[found.name] = found
        if entry is None:
            raise ValueError("this is not a program's text: it has no ENTRY computation")
        return cls(computations, entry)

    def called(self, instruction: Instruction, key: str = "calls") -> Computation | None:
        name = instruction.attribute(key)
        return self.computations.get(name) if name else None


def itemsize(dtype: str) -> float:
    """Bytes of one number of an XLA type."""
    if dtype in SIZES:
        return float(SIZES[dtype])
    bits = re.match(r"[a-z]+(\d+)", dtype)
    if bits is None:
        raise ValueError(f"the type {dtype!r} is unknown; add it to jhsae.plan.hlo.SIZES")
    return int(bits[1]) / 8


def _instruction(line: str) -> Instruction | None:
    name = NAME.match(line)
    if name is None:
        return None
    rest = COMMENT.sub("", line[name.end() :])
    kind, rest = _split(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    inside, attributes = _split("(" + rest)
    values = tuple(
        Value(dtype, tuple(int(n) for n in dims.split(",") if n), layout or "")
        for dtype, dims, layout in LEAF.findall(kind)
    )
    operands = () if opcode in ("constant", "parameter") else tuple(OPERAND.findall(inside))
    return Instruction(name[2], opcode, values, operands, inside[1:-1], attributes, bool(name[1]))


def _split(text: str) -> tuple[str, str]:
    """The bracket that `text` begins with, and what follows."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    raise ValueError(f"no end of the bracket in {text[:80]!r}")
