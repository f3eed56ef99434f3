"""Compiling ahead of time for devices that need not exist, and the memory that the compiler reports."""

import re
import time
from typing import NamedTuple

import jax

TOO_LARGE = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)
"""How libtpu says that a program needs more memory than the chip has: so much, of so much."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
PARTS = ("argument", "output", "alias", "temp")


class Lowered(NamedTuple):
    """A program before it is compiled, and what stands in its arguments: bytes per device."""

    program: jax.stages.Lowered
    parameters: float
    optimizer: float
    numbers: int
    """How many parameters there are, over all devices."""


class Compiled(NamedTuple):
    """A compiled program, or how many bytes too large one is."""

    program: jax.stages.Compiled | None
    total: float
    """Bytes per device that the program needs: arguments + outputs - aliased + temporaries."""
    usable: float | None
    """Bytes that it may use; the compiler says so when they are too few."""
    seconds: float
    """That compiling took."""


def compile_program(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles; a program that is too large for the chip's memory is a result and not an error."""
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = next((found for words in TOO_LARGE if (found := words.search(str(error)))), None)
        if used is None:
            raise
        needed, usable = (float(used[i]) * UNITS[used[i + 1]] for i in (1, 3))
        return Compiled(None, needed, usable, time.perf_counter() - start)
    sizes = sizes_of(compiled)
    total = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    return Compiled(compiled, total, None, time.perf_counter() - start)


def sizes_of(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Bytes per device of arguments, outputs, the outputs that take a donated argument's place, and temporaries."""
    memory = compiled.memory_analysis()
    return {key: float(getattr(memory, f"{key}_size_in_bytes")) for key in PARTS}
