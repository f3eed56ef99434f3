"""Memory, work, communication and time of a program compiled ahead of time for a mesh of devices that need not exist.

Memory is what the compiler reports. The time is a lower bound, a roofline: each operation takes the longer of its
arithmetic and its traffic, and collectives are added (Williams, Waterman, Patterson, "Roofline", 2009):

``step = sum over operations of max(FLOPs / peak, bytes / bandwidth) + sum over collectives of sent bytes / link rate``.

Products count at the sizes of the matrix unit (`Product.padded`), at the bfloat16 rate of the chip for float32 and
bfloat16 operands alike: XLA rounds float32 operands to bfloat16 unless told otherwise, so that ``precision: float32``
costs bytes, not passes. No communication is overlapped with computation. Left out: elementwise arithmetic, sorting and
gathering beyond their bytes, latencies.
"""

import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jhsae.errors import UserError
from jhsae.plan.by_operation import traffic_of
from jhsae.plan.collectives import Groups, on_dcn, transfer_seconds
from jhsae.plan.cost import Operation, Work, work_of
from jhsae.plan.loops import TileLoad
from jhsae.plan.topology import Chip, Places, Topology

TOO_LARGE = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)
"""libtpu's out-of-memory messages: (needed, available)."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
MEMORY_KINDS = ("argument", "output", "alias", "temp")


class Lowered(NamedTuple):
    """A program before it is compiled, and the bytes per device of its arguments."""

    program: jax.stages.Lowered
    parameters: float
    optimizer: float
    parameter_count: int
    """Over all devices."""


class Compiled(NamedTuple):
    """A compiled program, or the memory that a program too large for its chip needs."""

    program: jax.stages.Compiled | None
    total: float
    """Bytes per device that the program needs: arguments + outputs - aliased + temporaries."""
    usable: float | None
    """Bytes available to it; the compiler reports them only where they are too few."""
    seconds: float
    """Compile time."""


def compile_program(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles; a program that is too large for the chip's memory is a result and not an error."""
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = next((found for pattern in TOO_LARGE if (found := pattern.search(str(error)))), None)
        if used is None:
            raise
        needed, usable = (float(used[i]) * UNITS[used[i + 1]] for i in (1, 3))
        return Compiled(None, needed, usable, time.perf_counter() - start)
    sizes = memory_of(compiled)
    total = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    return Compiled(compiled, total, None, time.perf_counter() - start)


def memory_of(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Bytes per device of arguments, outputs, outputs aliased to donated arguments, and temporaries."""
    memory = compiled.memory_analysis()
    return {key: float(getattr(memory, f"{key}_size_in_bytes")) for key in MEMORY_KINDS}


class StepTime(NamedTuple):
    """Seconds of one step on a chip. `arithmetic` and `memory` overlap in `chip`."""

    arithmetic: float
    memory: float
    chip: float
    """Operation by operation, the longer of the two."""
    ici: float
    dcn: float

    @property
    def exchange(self) -> float:
        return self.ici + self.dcn

    @property
    def step(self) -> float:
        return self.chip + self.exchange

    @property
    def bound(self) -> str:
        """The largest of arithmetic, memory, ici and dcn."""
        seconds = {"arithmetic": self.arithmetic, "memory": self.memory, "ici": self.ici, "dcn": self.dcn}
        return max(seconds, key=lambda name: seconds[name])


def step_time(work: Work, chip: Chip, places: Places) -> StepTime:
    """Seconds of the work of one chip, by the roofline."""
    arithmetic = memory = both = 0.0
    for operation in work.operations:
        products, moved = _arithmetic(operation, chip), operation.times * operation.bytes / chip.bandwidth
        arithmetic, memory, both = arithmetic + products, memory + moved, both + max(products, moved)
    network = {False: 0.0, True: 0.0}
    for collective in work.collectives:
        seconds = collective.times * transfer_seconds(collective, chip, places)
        network[on_dcn(collective, places)] += seconds
    return StepTime(arithmetic, memory, both, network[False], network[True])


def _arithmetic(operation: Operation, chip: Chip) -> float:
    return operation.times * sum((product.padded(chip.mxu) for product in operation.products), 0.0) / chip.flops


Row = dict[str, Any]


def estimate(
    lowered: Lowered,
    topology: Topology,
    mesh: Mesh,
    tokens: int,
    tiles: TileLoad | None = None,
    traffic: bool = False,
) -> Row:
    """Compiles a program and estimates memory, work, communication and time of each chip.

    Args:
        lowered: The program and the bytes of its arguments.
        topology: Its slice.
        mesh: The mesh that its arrays are sharded on.
        tokens: Tokens of one run, over all chips.
        tiles: The expected load of loops over tiles; None counts each of them once.
        traffic: Whether to add `traffic`, the HBM traffic by operation.

    Returns:
        Plain data, as ``jhsae plan --json`` writes it. Seconds, and what follows from them, are None where the chip's
        rates are unknown (``cpu:8``); so is everything but memory where a program does not fit.
    """
    compiled = compile_program(lowered.program)
    hbm = topology.chip.hbm if topology.chip else None
    row = {
        "mesh": {"data": mesh.shape["host"] * mesh.shape["data"], "expert": mesh.shape["expert"]},
        "chips": mesh.size,
        "tokens_per_step": tokens,
        "parameters": lowered.parameter_count,
        "bytes_per_chip": compiled.total,
        "memory": _memory(lowered, compiled),
        "hbm_bytes": compiled.usable or hbm,
        "fits": compiled.program is not None and (hbm is None or compiled.total <= hbm),
        "compile_seconds": compiled.seconds,
    }
    if compiled.program is None:
        unknown = ("flops", "hbm_traffic", "collectives", "loops", "times", "step_seconds", "tokens_per_second")
        return row | dict.fromkeys(unknown)
    text = _text(compiled.program)
    work = work_of(text, mesh.size, tiles, compiled.program.cost_analysis())
    row |= {"traffic": [found._asdict() for found in traffic_of(work, text)]} if traffic else {}
    return row | _estimated(work, topology, mesh, tokens)


def _memory(lowered: Lowered, compiled: Compiled) -> dict[str, float | None]:
    """Bytes per chip by content; the sum is `bytes_per_chip`."""
    known: dict[str, float | None] = {"parameters": lowered.parameters, "optimizer": lowered.optimizer}
    if compiled.program is None:
        return known | {"batch_and_outputs": None, "temporaries": None}
    temporaries = memory_of(compiled.program)["temp"]
    rest = compiled.total - temporaries - lowered.parameters - lowered.optimizer
    return known | {"batch_and_outputs": rest, "temporaries": temporaries}


def _text(compiled: jax.stages.Compiled) -> str:
    """The compiled program, in words.

    Raises:
        UserError: it was compiled by a libtpu of another release than jaxlib, which cannot read it.
    """
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"the installed jax {jax.__version__} cannot read what the installed libtpu compiled; write pip install "
            f"'jax[tpu]=={jax.__version__}' for the libtpu of that release"
        ) from error


def _estimated(work: Work, topology: Topology, mesh: Mesh, tokens: int) -> Row:
    places = topology.places(list(mesh.devices.flat))
    times = step_time(work, topology.chip, places) if topology.chip else None
    step = times.step if times else None
    return {
        "flops": work.flops,
        "hbm_traffic": work.bytes,
        "kernels": work.kernels,
        "compiler": {"flops": work.compiler_flops, "bytes": work.compiler_bytes, "our_flops_loops_once": work.once},
        "collectives": _communication(work, topology, mesh, places),
        "loops": [loop._asdict() for loop in work.loops],
        "times": times and {**times._asdict(), "exchange": times.exchange, "bound": times.bound},
        "step_seconds": step,
        "tokens_per_second": step and tokens / step,
    }


def _communication(work: Work, topology: Topology, mesh: Mesh, places: Places) -> list[Row]:
    """One row per kind, group and network: payload and sent bytes of a chip in one step, and its seconds."""
    rows: dict[tuple[Any, ...], Row] = {}
    for collective in work.collectives:
        axes, dcn = axes_of(collective.groups, mesh), on_dcn(collective, places)
        key = {"kind": collective.kind, "axes": axes, "group": collective.size, "network": "dcn" if dcn else "ici"}
        empty = {"count": 0, "bytes": 0.0, "sent_bytes": 0.0, "seconds": 0.0 if topology.chip else None}
        row = rows.setdefault(tuple(key.values()), key | empty)
        row["count"] += collective.times
        row["bytes"] += collective.times * collective.bytes
        row["sent_bytes"] += collective.times * collective.sent
        if topology.chip:
            row["seconds"] += collective.times * transfer_seconds(collective, topology.chip, places)
    return sorted(rows.values(), key=lambda row: -row["sent_bytes"])


def axes_of(groups: Groups, mesh: Mesh) -> str:
    """The mesh axes along which the chips of a group differ, such as ``data`` or ``host+data``."""
    places = np.stack(np.unravel_index(groups[0], mesh.devices.shape))
    differ = [name for name, row in zip(mesh.axis_names, places, strict=True) if len(set(row.tolist())) > 1]
    return "+".join(differ)
