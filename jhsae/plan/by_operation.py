"""The HBM traffic of a compiled step, by the operation of the traced program that it comes from.

A compiled instruction names the operation that it was made from, with the scopes and transformations around it, such
as ``jvp(decode)/while/body/scatter-add``, and the lines of Python that asked for it. What the compiler adds by itself,
such as copies, has no name: it is listed under its kind, in parentheses.
"""

import re
from typing import NamedTuple

from jhsae.plan.cost import Work

JITTED = re.compile(r"^(jit\([^)]*\)/)+")
NUMBER = re.compile(r"[.\d]+$")
TABLE = re.compile(r"^(FileNames|FileLocations|StackFrames)$")
ENTRY = re.compile(r"^(\d+) (.*)$")
SHOWN = 2  # the innermost lines of Python: often one of a helper, and the one that called it


class Traffic(NamedTuple):
    """The traffic of one operation of the traced program, in one step of a chip.

    Args:
        operation: its name and scopes.
        source: the lines of Python, the innermost first; empty where the compiler names none.
        bytes: to and from main memory, in all runs.
        runs: how often its instructions run.
    """

    operation: str
    source: str
    bytes: float
    runs: int


def traffic_of(work: Work, text: str) -> list[Traffic]:
    """The traffic of a compiled program by operation and source, the most first.

    Args:
        work: of `work_of`.
        text: the same program's.
    """
    sources, found = _sources(text), dict[tuple[str, str], tuple[float, int]]()
    for one in work.operations:
        if moved := one.bytes * one.times:
            name = JITTED.sub("", one.label) or f"({NUMBER.sub('', one.name)})"
            key = name, sources.get(one.frame, "")
            total, runs = found.get(key, (0.0, 0))
            found[key] = total + moved, runs + one.times
    rows = [Traffic(*key, *value) for key, value in found.items()]
    return sorted(rows, key=lambda row: (-row.bytes, row.operation, row.source))


def _sources(text: str) -> dict[int, str]:
    """The innermost lines of each stack frame: ``tiles.py:147 < expert_major.py:150``."""
    tables: dict[str, dict[int, str]] = {name: {} for name in ("FileNames", "FileLocations", "StackFrames")}
    table: dict[int, str] | None = None
    for line in text.splitlines():
        if TABLE.match(line):
            table = tables[line]
        elif (entry := ENTRY.match(line)) and table is not None:
            table[int(entry[1])] = entry[2]
        elif line and line[0] not in "0123456789":
            table = None
    files = {number: name.strip('"').rpartition("/")[2] for number, name in tables["FileNames"].items()}
    places = {
        number: f"{files.get(_number(entry, 'file_name_id'), '?')}:{_number(entry, 'line')}"
        for number, entry in tables["FileLocations"].items()
    }
    return {number: " < ".join(_lines(number, tables["StackFrames"], places)) for number in tables["StackFrames"]}


def _lines(frame: int, frames: dict[int, str], places: dict[int, str]) -> list[str]:
    found: list[str] = []
    seen = set()
    while frame in frames and frame not in seen and len(found) < SHOWN:
        seen.add(frame)
        place = places.get(_number(frames[frame], "file_location_id"), "?")
        if place not in found:
            found.append(place)
        frame = _number(frames[frame], "parent_frame_id") - 1  # written with 1 added, so that 1 is none
    return found


def _number(entry: str, key: str) -> int:
    found = re.search(rf"\b{key}=(\d+)", entry)
    return int(found[1]) if found else 0
