"""Collectives of a compiled program: kind, who takes part, payload, how often, and the seconds of the links.

With g chips in a group and N bytes of payload per chip (the larger of what a chip gives and gets), each chip sends over
its links, by the ring algorithms of Chan et al., "Collective communication: theory, practice, and experience"
(2007): all-gather and reduce-scatter ``N (g-1)/g``, all-reduce twice that, all-to-all ``N g/4`` on a ring (each part
travels g/4 hops on average; ``N (g-1)/g`` for g = 2), collective-permute and broadcast N.

What crosses slices stands in the program as a `send` to the runtime that joins them.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jhsae.plan.hlo import Instruction
from jhsae.plan.loops import Executed

KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
LISTED = re.compile(r"replica_groups=(\{\{[\d,{}]*\}\}|\{\})")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}")
ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")
BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
TARGET = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}')

Groups = Int[np.ndarray, "groups members"]


class Collective(NamedTuple):
    """One line of a program; `bytes` is the payload of one run, `times` how often it runs in a step."""

    kind: str
    groups: Groups
    """Numbers of the chips, as the mesh counts them."""
    bytes: float
    times: int
    label: str
    between: bool = False
    """Whether it goes between slices, where the compiler says so itself."""

    @property
    def size(self) -> int:
        return self.groups.shape[1]

    @property
    def sent(self) -> float:
        """Bytes that each chip sends in one run."""
        g = self.size
        share = (g - 1) / g
        match self.kind:
            case "all-reduce":
                return 2 * self.bytes * share
            case "all-gather" | "reduce-scatter":
                return self.bytes * share
            case "all-to-all" | "ragged-all-to-all":
                return self.bytes * max(share, g / 4)
        return self.bytes


def collectives_of(executed: Sequence[Executed], chips: int) -> list[Collective]:
    """Every collective among more than one chip; asynchronous ones by their start."""
    found = []
    for instruction, computation, times, _ in executed:
        between = instruction.opcode == "send" and BETWEEN.search(instruction.attributes)
        kind = between[1].lower().replace("_", "-") if between else instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        groups = _slices(instruction, chips) if between else groups_of(instruction, chips)
        if groups.shape[1] > 1:
            operands = [computation.instructions[name] for name in instruction.operands]
            given = sum((value.bytes for operand in operands for value in operand.values), 0.0)
            payload = given * groups.shape[1] if kind == "all-gather" else given
            found.append(Collective(kind, groups, payload, times, instruction.label, bool(between)))
    return found


def _slices(instruction: Instruction, chips: int) -> Groups:
    """The chips at the same place in every slice; the mesh counts slice by slice."""
    listed = TARGET.search(instruction.attributes)
    if listed is None:
        raise ValueError(f"{instruction.name}: an exchange between slices that does not say which")
    parts = [part.split(":") for part in listed[1].split(",")]
    count = sum(int(part[-1]) - int(part[0]) + 1 for part in parts)
    return np.arange(chips).reshape(count, -1).T


def groups_of(instruction: Instruction, chips: int) -> Groups:
    """The groups that talk with each other, in any of XLA's three ways to write them.

    Raises ValueError for groups of several sizes and for a notation that is not known.
    """
    text = instruction.attributes
    if pairs := PAIRS.search(text):
        return _rows(pairs[1])
    if found := IOTA.search(text):
        return _iota(found[2], found[3]).reshape(_numbers(found[1]))
    if found := MESH.search(text):
        return _mesh(found)
    if (found := LISTED.search(text)) and found[1] != "{}":
        return _rows(found[1][1:-1])
    if "replica_groups=mesh" in text:
        raise ValueError(f"{instruction.name}: groups of a mesh in an unknown notation: {text[:200]}")
    return np.arange(chips)[None]


def _mesh(found: re.Match[str]) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    devices = ORDER.search(found[2])
    numbers = _iota(devices[1], devices[2]) if devices else np.arange(math.prod(sizes.values()))
    names, inside = list(sizes), re.findall(r"'(\w+)'", found[3])
    array = numbers.reshape(list(sizes.values()))
    outside = [name for name in names if name not in inside]
    array = array.transpose([names.index(name) for name in (*outside, *inside)])
    return array.reshape(-1, math.prod(sizes[name] for name in inside))


def _iota(dims: str, order: str | None) -> np.ndarray:
    shape = _numbers(dims)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(_numbers(order)) if order else numbers


def _rows(text: str) -> Groups:
    rows = [_numbers(row) for row in re.findall(r"\{([\d,]+)\}", text)]
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"groups of several sizes: {text[:120]}")
    return np.asarray(rows)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]
