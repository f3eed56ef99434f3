"""Parses the text of a compiled program: computations, their instructions, and the arrays these return.

XLA's text form of an optimised module (`Compiled.as_text`), https://openxla.org/xla/operation_semantics. Only names,
result types with layout and memory space, operands and unparsed attributes are read.
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
        """Bytes without padding."""
        return float(self.size * itemsize(self.dtype))

    @cached_property
    def stored(self) -> float:
        """Bytes with the padding of a TPU's tiles, say 8 x 128: what moves when the array is read."""
        tile, order = TILE.search(self.layout), re.match(r"\{([\d,]+)", self.layout)
        if tile is None or order is None or not self.dims:
            return self.bytes
        sizes = [self.dims[int(i)] for i in order[1].split(",")]  # the fastest axis first
        for i, unit in enumerate(reversed(int_list(tile[1]))):
            if i < len(sizes):
                sizes[i] += -sizes[i] % unit
        return float(math.prod(sizes) * itemsize(self.dtype))

    @property
    def in_memory(self) -> bool:
        """Whether it is in the chip's main memory and not in VMEM or another memory space (S(1), S(2), ...)."""
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
    """The text in the parentheses: the value of a constant, the index of a parameter."""
    attributes: str
    root: bool

    def attribute(self, key: str) -> str | None:
        """The value of an attribute ``key=%word``, such as a computation's name."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def label(self) -> str:
        """The op in the traced program that it was compiled from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def frame(self) -> int:
        """The number of the stack frame that asked for it, 0 where the compiler names none; see `by_operation`."""
        found = re.search(r"stack_frame_id=(\d+)", self.attributes)
        return int(found[1]) if found else 0


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
        """The instructions that read each value."""
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
            raise ValueError("no ENTRY computation in the text, expected that of a compiled program")
        return cls(computations, entry)

    def called(self, instruction: Instruction, key: str = "calls") -> Computation | None:
        name = instruction.attribute(key)
        return self.computations.get(name) if name else None


def itemsize(dtype: str) -> float:
    """Bytes of one element of an XLA type."""
    if dtype in SIZES:
        return float(SIZES[dtype])
    bits = re.match(r"[a-z]+(\d+)", dtype)
    if bits is None:
        raise ValueError(f"the type {dtype!r} is unknown; add it to jhsae.plan.hlo.SIZES")
    return int(bits[1]) / 8


def int_list(text: str) -> list[int]:
    """``"1,2,3"`` as [1, 2, 3]."""
    return [int(n) for n in text.split(",") if n]


def _instruction(line: str) -> Instruction | None:
    name = NAME.match(line)
    if name is None:
        return None
    rest = COMMENT.sub("", line[name.end() :])
    kind, rest = _split(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    inside, attributes = _split("(" + rest)
    values = tuple(Value(dtype, tuple(int_list(dims)), layout or "") for dtype, dims, layout in LEAF.findall(kind))
    operands = () if opcode in ("constant", "parameter") else tuple(OPERAND.findall(inside))
    return Instruction(name[2], opcode, values, operands, inside[1:-1], attributes, bool(name[1]))


def _split(text: str) -> tuple[str, str]:
    """The parenthesis that `text` opens with, and the rest."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")
