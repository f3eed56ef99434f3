"""Collectives of a compiled program: kind, groups, payload, trip count, and the bandwidth of the links they use.

With g chips in a group and N bytes of payload per chip (the larger of its input and output), each chip sends over its
links, by the ring algorithms of Chan et al., "Collective communication: theory, practice, and experience" (2007):
all-gather and reduce-scatter ``N (g-1)/g``, all-reduce twice that, all-to-all ``N g/4`` on a ring (each part travels
g/4 hops on average; ``N (g-1)/g`` for g = 2), collective-permute and broadcast N.

A group that spans an axis of the slice sends over the two links of that axis where the axis closes to a ring, over one
where it is a line; with every second chip of the axis only half of that is its own. Groups over several axes use the
links of all. A group with chips of several slices uses the data-centre network; the program contains its transfers as
`send` instructions to the runtime that connects the slices.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jhsae.errors import UserError
from jhsae.plan.hlo import Instruction, int_list
from jhsae.plan.loops import Executed
from jhsae.plan.topology import Chip, Places

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
    """Indices of the chips in the order of the mesh."""
    bytes: float
    times: int
    label: str
    between: bool = False
    """Whether it crosses slices, where the compiler marks it so."""

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
        groups = _across_slices(instruction, chips) if between else groups_of(instruction, chips)
        if groups.shape[1] > 1:
            operands = [computation.instructions[name] for name in instruction.operands]
            given = sum((value.bytes for operand in operands for value in operand.values), 0.0)
            payload = given * groups.shape[1] if kind == "all-gather" else given
            found.append(Collective(kind, groups, payload, times, instruction.label, bool(between)))
    return found


def _across_slices(instruction: Instruction, chips: int) -> Groups:
    """Groups of the chips with the same index in every slice; the mesh is ordered slice by slice."""
    listed = TARGET.search(instruction.attributes)
    if listed is None:
        raise ValueError(f"{instruction.name}: a transfer between slices that does not name them")
    parts = [part.split(":") for part in listed[1].split(",")]
    count = sum(int(part[-1]) - int(part[0]) + 1 for part in parts)
    return np.arange(chips).reshape(count, -1).T


def groups_of(instruction: Instruction, chips: int) -> Groups:
    """The replica groups of a collective, in any of XLA's three notations.

    Raises ValueError for groups of different sizes and for an unknown notation.
    """
    text = instruction.attributes
    if pairs := PAIRS.search(text):
        return _rows(pairs[1])
    if found := IOTA.search(text):
        return _iota(found[2], found[3]).reshape(int_list(found[1]))
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
    indices = _iota(devices[1], devices[2]) if devices else np.arange(math.prod(sizes.values()))
    names, inside = list(sizes), re.findall(r"'(\w+)'", found[3])
    array = indices.reshape(list(sizes.values()))
    outside = [name for name in names if name not in inside]
    array = array.transpose([names.index(name) for name in (*outside, *inside)])
    return array.reshape(-1, math.prod(sizes[name] for name in inside))


def _iota(dims: str, order: str | None) -> np.ndarray:
    shape = int_list(dims)
    indices = np.arange(math.prod(shape)).reshape(shape)
    return indices.transpose(int_list(order)) if order else indices


def _rows(text: str) -> Groups:
    rows = [int_list(row) for row in re.findall(r"\{([\d,]+)\}", text)]
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"groups of different sizes: {text[:120]}")
    return np.asarray(rows)


def transfer_seconds(collective: Collective, chip: Chip, places: Places) -> float:
    """Seconds of one run: bytes that a chip sends over its bandwidth; no latency."""
    return collective.sent / rate(collective, chip, places)


def on_dcn(collective: Collective, places: Places) -> bool:
    """Whether the collective crosses slices."""
    return collective.between or len({int(places.slices[i]) for i in collective.groups[0]}) > 1


def rate(collective: Collective, chip: Chip, places: Places) -> float:
    """Bytes/s that one chip of the group can send. Raises `UserError` where no public page gives it."""
    if on_dcn(collective, places):
        if chip.dcn is None:
            raise UserError(f"the network between slices of {chip.name} is not in jhsae.plan.topology; plan one slice")
        return chip.dcn
    if collective.kind == "collective-permute":
        return chip.ici
    members = places.coordinates[collective.groups[0]]
    links = sum(_links(np.unique(members[:, axis]), size, chip) for axis, size in enumerate(places.shape))
    return chip.ici * max(links, 1 / max(places.shape))


def _links(positions: Int[np.ndarray, " positions"], size: int, chip: Chip) -> float:
    """Links of one axis that belong to a group at these positions of it."""
    if len(positions) < 2:
        return 0.0
    stride = int(np.diff(positions).min())
    ring = len(positions) * stride >= size and size % chip.wraps == 0
    return (2 if ring else 1) / stride
