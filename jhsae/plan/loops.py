"""Trip counts: how often each instruction of a compiled program runs.

XLA's own `cost_analysis` counts the body of a loop once. Here a loop counts by its trips: those that the compiler
records (``known_trip_count``, CPU), else those of a condition ``i < constant`` whose counter starts at a constant and
steps by one (TPU), also where the loop may end before (a pursuit that no token goes on with). A loop whose end depends
on data is one over tiles of pairs (`jhsae.ops.tiles`): its maximum is read from the slices that it takes, the expected
number is `TileLoad.expected`. Both branches of a conditional count.
"""

import re
from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from jhsae.ops.tiles import MOST_ROWS, ROWS
from jhsae.plan.hlo import Computation, Instruction, Module

SIZES = [(ROWS << i,) for i in range((MOST_ROWS // ROWS).bit_length())]  # of the tiles of `jhsae.ops.tiles`
KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class TileLoad(NamedTuple):
    """Selected pairs (token, expert) of a chip if all experts are used equally: an assumption, not a measurement."""

    pairs: float
    """Per chip."""
    experts: int
    """Per chip."""

    def expected(self, group: int, most: int, rows: int = ROWS) -> int:
        """Trips of a loop over groups of `group` tiles of `rows` pairs that makes at most `most`."""
        used = self.experts * ceil(self.pairs / self.experts / rows)
        return min(most, ceil(used / group))


class Loop(NamedTuple):
    """A loop of the program: its trips each time that it is entered."""

    label: str
    trips: int
    most: int
    how: str
    """``known``, ``most`` (it may end before), ``expected`` (of at most `most`) or ``once`` (its end is unknown)."""


class Executed(NamedTuple):
    """An instruction and how often it runs. `fused`: it is part of the preceding fusion."""

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool


class Program(NamedTuple):
    """Everything that runs, and the loops it runs in."""

    executed: list[Executed]
    loops: list[Loop]


def execution(module: Module, tiles: TileLoad | None = None) -> Program:
    """Walks the program from its entry. Without `tiles` a loop of unknown length counts once."""
    executed: list[Executed] = []
    loops: list[Loop] = []

    def walk(computation: Computation, times: int, fused: bool) -> None:
        for instruction in computation.instructions.values():
            executed.append(Executed(instruction, computation, times, fused))
            if instruction.opcode == "while":
                loop = _loop(module, computation, instruction, tiles)
                loops.append(loop)
                walk(_called(module, instruction, "body"), times * loop.trips, fused)
            elif instruction.opcode in ("fusion", "call", "async-start"):
                walk(_called(module, instruction, "calls"), times, fused or instruction.opcode == "fusion")
            elif instruction.opcode == "conditional":
                for branch in _branches(instruction):
                    walk(module.computations[branch], times, fused)

    walk(module.entry, 1, False)
    return Program(executed, loops)


def _called(module: Module, instruction: Instruction, key: str) -> Computation:
    found = module.called(instruction, key) or module.called(instruction, "to_apply")
    if found is None:
        raise ValueError(f"{instruction.name} ({instruction.opcode}) calls no computation of the program's text")
    return found


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed[1])
    return [name for key in ("true_computation", "false_computation") if (name := instruction.attribute(key))]


def _loop(module: Module, outside: Computation, loop: Instruction, tiles: TileLoad | None) -> Loop:
    body, known = _called(module, loop, "body"), KNOWN.search(loop.attributes)
    compares, alone = _compares(module, _called(module, loop, "condition"))
    bounds = [_counted(outside, loop, body, *sides) for sides in compares]
    trips = int(known[1]) if known else min((bound for bound in bounds if bound is not None), default=None)
    if trips is not None:
        return Loop(loop.label, trips, trips, "known" if known or alone else "most")
    slices = sorted(_slices(module, body))
    if tiles is None or not slices:
        return Loop(loop.label, 1, 1, "once")
    _, group, most, rows = slices[-1]
    return Loop(loop.label, tiles.expected(group, most, rows), most, "expected")


def _compares(module: Module, condition: Computation) -> tuple[list[tuple[Instruction, Instruction]], bool]:
    """Both sides of each ``a < b`` that a condition needs, and whether it is one and nothing more."""
    inner, root = condition, condition.root
    if root.opcode == "fusion":  # the CPU compiler wraps it
        inner, root = _called(module, condition.root, "calls"), _called(module, condition.root, "calls").root

    def origin(name: str) -> Instruction:
        found = inner.origin(name)
        if inner is condition or found.opcode != "parameter":
            return found
        return condition.origin(condition.root.operands[int(found.literal)])

    parts = [inner.origin(name) for name in root.operands] if root.opcode == "and" else [root]
    less = [part for part in parts if part.opcode == "compare" and "direction=LT" in part.attributes]
    return [(origin(part.operands[0]), origin(part.operands[1])) for part in less], root.opcode != "and"


def _counted(
    outside: Computation, loop: Instruction, body: Computation, counter: Instruction, limit: Instruction
) -> int | None:
    """Trips of ``for i in range(start, stop)`` where both are constants."""
    if counter.opcode != "get-tuple-element":
        return None
    start = _initial(outside, loop, counter)
    stop = _initial(outside, loop, limit) if limit.opcode == "get-tuple-element" else _constant(limit)
    if start is None or stop is None or not _by_one(body, counter):
        return None
    return max(0, stop - start)


def _initial(outside: Computation, loop: Instruction, element: Instruction) -> int | None:
    """The constant that a loop variable starts at."""
    start = outside.origin(loop.operands[0])
    if start.opcode != "tuple":
        return None
    return _constant(outside.origin(start.operands[int(element.attribute("index") or 0)]))


def _constant(instruction: Instruction) -> int | None:
    whole = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.literal)
    return int(instruction.literal) if whole else None


def _by_one(body: Computation, counter: Instruction) -> bool:
    index = int(counter.attribute("index") or 0)
    if body.root.opcode != "tuple":
        return False
    following = body.origin(body.root.operands[index])
    if following.opcode not in ("add", "fusion"):
        return False
    steps = [_constant(body.origin(name)) for name in following.operands]
    return 1 in steps


def _slices(module: Module, body: Computation) -> Iterator[tuple[int, int, int, int]]:
    """(axes, tiles at once, groups of them, their rows) of the integer arrays of tiles that a body takes a slice of.

    Sorted, the last is the most reliable: arrays of tiles x rows rank above one-dimensional lists.
    """
    for instruction in body.instructions.values():
        if instruction.opcode == "fusion":
            yield from _slices(module, _called(module, instruction, "calls"))
        if instruction.opcode != "dynamic-slice":
            continue
        whole, part = body.operand(instruction, 0).values[0], instruction.values[0]
        rows = part.dims[1:]
        listed = part.dtype in ("s32", "pred") and rows == whole.dims[1:] and (rows == () or rows in SIZES)
        if listed and part.dims and 1 <= part.dims[0] < whole.dims[0]:
            yield len(part.dims), part.dims[0], whole.dims[0] // part.dims[0], *(rows or (ROWS,))
